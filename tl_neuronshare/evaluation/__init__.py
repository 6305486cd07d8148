"""Measuring what a model answers, and how probable it finds the right answer."""

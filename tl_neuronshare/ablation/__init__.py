"""Switching neurons off: hooks, reference values, controls and the study."""

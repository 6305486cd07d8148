"""Measuring what each type of neuron contributes to the answer."""

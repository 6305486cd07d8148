"""The one error class of the package."""


class NeuronShareError(ValueError):
    """Bad input, an unsuitable model or a foreign file; the message says what, where, and what to do."""

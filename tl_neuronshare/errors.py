"""The one error class of the package, and the one kind of it that is not a mistake."""


class NeuronShareError(ValueError):
    """Bad input, an unsuitable model or a foreign file; the message says what, where, and what to do."""


class UnfinishedError(NeuronShareError):
    """The process has done its part of the work (`shard`), and what other processes do is not there yet."""

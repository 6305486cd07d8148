"""The one error class of the package, and the one kind of it that is not a mistake."""

_LONGEST = 1500  # characters; a value that the user gave may have many more


class NeuronShareError(ValueError):
    """Bad input, an unsuitable model or a foreign file; the message says what, where, and what to do."""

    def __init__(self, message: str) -> None:
        half = _LONGEST // 2  # the beginning says what is wrong, and the end what to do
        super().__init__(message if len(message) <= _LONGEST else f"{message[:half]} [...] {message[-half:]}")


class UnfinishedError(NeuronShareError):
    """The process has done its part of the work (`shard`), and what other processes do is not there yet."""

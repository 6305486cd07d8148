"""Paired bootstrap intervals over examples: each example is drawn with all its languages, types and layers."""

from __future__ import annotations

import tempfile
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tl_neuronshare.checks import count
from tl_neuronshare.errors import NeuronShareError

FEWEST = 10  # examples that an interval needs; one from fewer would look more certain than it is
_CHUNK = 1 << 22  # how many numbers are held at a time
_EXAMPLES, _RESAMPLES = 1 << 12, 1 << 8  # how many of them are multiplied at a time
_IN_MEMORY = 1 << 20  # how many bytes of values are kept in memory; more are kept in a file


class Bootstrap:
    """Compute intervals of means and ratios; values of equally many examples share their resamples.

    Raises:
        NeuronShareError: n_resamples is not a whole number above 0.

    Examples:
        >>> low, high = Bootstrap(1000).intervals(np.arange(20.0))
        >>> bool(low < 9.5 < high)
        True
    """

    def __init__(self, n_resamples: int) -> None:
        self.n_resamples = count("n_resamples", n_resamples, such_as=5000)
        self._draws: NDArray[np.uint8] = np.empty((0, 0), np.uint8)

    def intervals(
        self, numerators: NDArray[np.float64], denominators: NDArray[Any] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the ends of the 95 % intervals of sum(numerators) / sum(denominators); examples are on the first axis.

        Without denominators these are intervals of the mean over examples. An interval is NaN where fewer than ten
        examples have a denominator. Memory does not grow with the number of examples, if the values lie in a file (see
        `Collected`).
        """
        shape, n = numerators.shape[1:], len(numerators)
        above = numerators.reshape(n, -1)
        below = np.broadcast_to(1.0, above.shape) if denominators is None else denominators.reshape(n, -1)
        blocks = [slice(start, start + _EXAMPLES) for start in range(0, n, _EXAMPLES)]
        low, high = np.full(above.shape[1], np.nan), np.full(above.shape[1], np.nan)
        enough = np.flatnonzero(sum((below[block] != 0).sum(0) for block in blocks) >= FEWEST)
        step = max(1, _CHUNK // self.n_resamples)
        for start in range(0, len(enough), step):
            columns, drawn = enough[start : start + step], self._resamples(n)
            totals = np.zeros((2, self.n_resamples, len(columns)))
            for block in blocks:
                values = [side[block][:, columns].astype(float, copy=False) for side in (above, below)]
                for first in range(0, self.n_resamples, _RESAMPLES):
                    times = drawn[first : first + _RESAMPLES, block].astype(float)
                    for total, of_block in zip(totals, values, strict=True):
                        total[first : first + _RESAMPLES] += times @ of_block
            with np.errstate(invalid="ignore"):  # a resample may have no denominator
                ratios = np.divide(totals[0], totals[1], out=totals[0])
            # `nanquantile` takes one column at a time.
            quantile = np.nanquantile if np.isnan(ratios).any() else np.quantile
            low[columns], high[columns] = quantile(ratios, [0.025, 0.975], axis=0)
        return low.reshape(shape), high.reshape(shape)

    def _resamples(self, n: int) -> NDArray[np.uint8]:
        """Return how often each resample draws each example."""
        if self._draws.shape[1] != n:
            rng, draws = np.random.default_rng(0), Collected(np.uint8)
            step = max(1, _CHUNK // (4 * n))
            for start in range(0, self.n_resamples, step):
                size = min(step, self.n_resamples - start)
                draws.add(rng.multinomial(n, np.full(n, 1 / n), size=size))  # 256 times the same is beyond all chance
            self._draws = draws.whole()
        return self._draws


class Collected:
    """Collect values of examples in pieces: few are kept in memory, and many in a temporary file.

    Examples:
        >>> collected = Collected(float)
        >>> collected.add(np.ones((2, 3)))
        >>> collected.add(np.zeros((1, 3)))
        >>> collected.whole()[:, 0]
        array([1., 1., 0.])
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._pieces: list[NDArray[Any]] = []
        self._file: IO[bytes] | None = None
        self._shape: tuple[int, ...] = (0,)

    def add(self, values: NDArray[Any]) -> None:
        """Add the values of more examples.

        Raises:
            NeuronShareError: there is no room for the temporary file.
        """
        self._pieces.append(np.ascontiguousarray(values, self._dtype))
        self._shape = (self._shape[0] + len(values), *values.shape[1:])
        if sum(piece.nbytes for piece in self._pieces) > _IN_MEMORY:
            self._put_away()

    def whole(self) -> NDArray[Any]:
        """Return the values of all examples; those in a file are read where they lie, and not to be written."""
        if self._file is None:
            return np.concatenate(self._pieces)
        self._put_away()
        return np.memmap(self._file, self._dtype, "r", shape=self._shape)

    def _put_away(self) -> None:
        """Write to the file what is in memory."""
        try:
            self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115  # open as long as it is used
            for piece in self._pieces:
                self._file.write(piece.data)
            self._file.flush()
        except OSError as error:
            raise NeuronShareError(
                f"The temporary folder {tempfile.gettempdir()!r} cannot be written ({error}); make room there, or set "
                "the environment variable TMPDIR to another folder."
            ) from error
        self._pieces.clear()

"""Percentile intervals over examples, paired: an example is drawn with all its languages, types and layers."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_neuronshare.errors import NeuronShareError

FEWEST = 10  # examples for an interval: of fewer it would look surer than it is
_CHUNK = 1 << 22  # numbers at a time


class Bootstrap:
    """Intervals of means and of ratios; the same resamples for all that have as many examples.

    Raises:
        NeuronShareError: no number of resamples.

    Example:
        >>> low, high = Bootstrap(1000).intervals(np.arange(20.0))
        >>> bool(low < 9.5 < high)
        True
    """

    def __init__(self, n_resamples: int) -> None:
        given: Any = n_resamples  # numpy's integers are Integral too
        if isinstance(given, bool) or not isinstance(given, Integral) or given < 1:
            raise NeuronShareError(f"n_resamples={n_resamples!r}; give a number, such as 5000.")
        self.n_resamples = int(n_resamples)
        self._counts: dict[int, NDArray[np.float64]] = {}

    def intervals(
        self, numerators: NDArray[np.float64], denominators: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The 95 % intervals of sum(numerators) / sum(denominators), examples on the first axis.

        Without denominators of the mean over examples. NaN where fewer than ten examples have a denominator.
        """
        shape, n = numerators.shape[1:], len(numerators)
        above = numerators.reshape(n, -1)
        below = np.ones_like(above) if denominators is None else denominators.reshape(n, -1)
        low, high = np.full(above.shape[1], np.nan), np.full(above.shape[1], np.nan)
        enough = np.flatnonzero((below != 0).sum(0) >= FEWEST)
        for some in self._pieces(enough):
            drawn = self._resamples(n)
            with np.errstate(invalid="ignore"):  # a resample may have nothing below
                ratios = (drawn @ above[:, some]) / (drawn @ below[:, some])
            low[some], high[some] = np.nanquantile(ratios, [0.025, 0.975], axis=0)
        return low.reshape(shape), high.reshape(shape)

    def _pieces(self, columns: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
        step = max(1, _CHUNK // self.n_resamples)
        for start in range(0, len(columns), step):
            yield columns[start : start + step]

    def _resamples(self, n: int) -> NDArray[np.float64]:
        """How often each resample has drawn each example."""
        if n not in self._counts:
            rng = np.random.default_rng(0)
            self._counts[n] = rng.multinomial(n, np.full(n, 1 / n), size=self.n_resamples).astype(float)
        return self._counts[n]

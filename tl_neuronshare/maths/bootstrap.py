"""Paired bootstrap intervals over examples: each example is drawn with all its languages, types and layers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tl_neuronshare.checks import count

FEWEST = 10  # examples that an interval needs; one from fewer would look more certain than it is
_CHUNK = 1 << 22  # how many numbers are held at a time


class Bootstrap:
    """Compute intervals of means and ratios; values of equally many examples share their resamples.

    Raises:
        NeuronShareError: n_resamples is not a whole number above 0.

    Example:
        >>> low, high = Bootstrap(1000).intervals(np.arange(20.0))
        >>> bool(low < 9.5 < high)
        True
    """

    def __init__(self, n_resamples: int) -> None:
        self.n_resamples = count("n_resamples", n_resamples, such_as=5000)
        self._counts: dict[int, NDArray[np.float64]] = {}

    def intervals(
        self, numerators: NDArray[np.float64], denominators: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the ends of the 95 % intervals of sum(numerators) / sum(denominators); examples are on the first axis.

        Without denominators these are intervals of the mean over examples. An interval is NaN where fewer than ten
        examples have a denominator.
        """
        shape, n = numerators.shape[1:], len(numerators)
        above = numerators.reshape(n, -1)
        below = np.ones_like(above) if denominators is None else denominators.reshape(n, -1)
        low, high = np.full(above.shape[1], np.nan), np.full(above.shape[1], np.nan)
        enough = np.flatnonzero((below != 0).sum(0) >= FEWEST)
        step = max(1, _CHUNK // self.n_resamples)
        for start in range(0, len(enough), step):
            columns, drawn = enough[start : start + step], self._resamples(n)
            with np.errstate(invalid="ignore"):  # a resample may have no denominator
                ratios = (drawn @ above[:, columns]) / (drawn @ below[:, columns])
            # `nanquantile` takes one column at a time.
            quantile = np.nanquantile if np.isnan(ratios).any() else np.quantile
            low[columns], high[columns] = quantile(ratios, [0.025, 0.975], axis=0)
        return low.reshape(shape), high.reshape(shape)

    def _resamples(self, n: int) -> NDArray[np.float64]:
        """Return how often each resample draws each example."""
        if n not in self._counts:
            rng = np.random.default_rng(0)
            self._counts[n] = rng.multinomial(n, np.full(n, 1 / n), size=self.n_resamples).astype(float)
        return self._counts[n]

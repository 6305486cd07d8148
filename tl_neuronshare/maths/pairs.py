"""Means over pairs of examples, and differences of such means, with intervals.

Pairs that have an example in common are not independent, and resampling examples makes intervals of such means too
wide. The variance is therefore computed from what each example contributes to all pairs that it is in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl_neuronshare.maths.bootstrap import FEWEST
from tl_neuronshare.maths.excess import deviations


@dataclass(frozen=True)
class Pairs:
    """A value of each pair of examples, or several on the second axis.

    Attributes:
        first: the number of each pair's first example.
        second: that of its second; the same number where an example is paired with itself.
        is_drawn: whether the first example's partners are a draw from more that fit.
        values: what each pair shows; NaN where it shows nothing.
    """

    first: NDArray[np.integer]
    second: NDArray[np.integer]
    is_drawn: NDArray[np.bool_]
    values: NDArray[np.float64]

    def of(self, examples: NDArray[np.integer]) -> Pairs:
        """Select the pairs whose first example is one of these."""
        chosen = np.isin(self.first, examples)
        return Pairs(self.first[chosen], self.second[chosen], self.is_drawn[chosen], self.values[chosen])

    def mean(self) -> NDArray[np.float64]:
        """The mean over the pairs that have a value; NaN if none has."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.nansum(self.values, 0) / (~np.isnan(self.values)).sum(0))

    def contributions(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What each pair adds to the mean's deviation because of its first example, and because of its second.

        One more example that fits makes one more pair with each other that it fits. Where partners are drawn, it takes
        a place from other partners of the same first example instead, and counts by its difference from these.
        """
        n_pairs = (~np.isnan(self.values)).sum(0)
        with np.errstate(invalid="ignore"):
            of_first = np.nan_to_num((self.values - self.mean()) / n_pairs)
        groups = np.unique(self.first, return_inverse=True)[1].ravel()
        sizes = np.bincount(groups, minlength=1)[:, None]
        others = (of_first - (_sums(groups, of_first) / sizes)[groups]) * (sizes / np.maximum(sizes - 1, 1))[groups]
        return of_first, np.where(self.is_drawn[:, None], others, of_first)


def interval_of_pairs(
    pairs: Pairs, minus: Pairs | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return a mean over pairs, or its difference from a second such mean, and the ends of its 95 % interval.

    The variance is the sum of the products of any two pairs' contributions that have an example in common. A sum below
    that of the squares alone is chance, and the squares are taken.

    Returns:
        Three arrays, one number for each of the values. The interval is NaN if fewer than ten examples have pairs.

    Source: Fafchamps and Gubert (2007), on dyadic regressions; Aronow, Samii and Assenova (2015). Drawn partners are
    ours.

    Example:
        >>> first, second = np.triu_indices(12, 1)
        >>> values = (first % 2 + second % 2).astype(float)[:, None]
        >>> pairs = Pairs(first, second, np.zeros(len(first), bool), values)
        >>> [round(float(each[0]), 2) for each in interval_of_pairs(pairs)]
        [1.0, 0.39, 1.61]
    """
    sides = [pairs] if minus is None else [pairs, minus]
    first, second = (np.concatenate([getattr(side, name) for side in sides]) for name in ("first", "second"))
    both = [side.contributions() for side in sides]
    of_first, of_second = (
        np.concatenate([sign * each for each, sign in zip(role, (1, -1), strict=False)])
        for role in zip(*both, strict=True)
    )
    mean = pairs.mean() - (minus.mean() if minus is not None else 0)
    n_examples = len(np.unique(pairs.first))
    low = high = np.full(len(mean), np.nan)
    if n_examples >= FEWEST:
        of_second[first == second] = 0  # an example that is paired with itself counts once
        by_example = _sums(np.concatenate([first, second]), np.concatenate([of_first, of_second]))
        ends = np.stack([np.minimum(first, second), np.maximum(first, second)])
        numbers = np.unique(ends, axis=1, return_inverse=True)[1].ravel()
        twice, least = (np.square(_sums(numbers, each)).sum(0) for each in (of_second, of_first))
        variance = np.maximum(np.square(by_example).sum(0) - twice, least)
        wide = deviations(n_examples) * np.sqrt(variance * n_examples / (n_examples - 1))
        low, high = mean - wide, mean + wide
    return mean, low, high


def _sums(groups: NDArray[np.integer], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add values up by group."""
    sums = np.zeros((int(groups.max(initial=-1)) + 1, values.shape[1]))
    np.add.at(sums, groups, values)
    return sums

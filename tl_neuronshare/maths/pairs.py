"""Means over examples of what they show with their partners, and differences of such means, with intervals.

Pairs that have an example in common are not independent, and resampling examples makes intervals of such means too
wide. The variance is therefore computed from what the mean would be without each example.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl_neuronshare.maths.bootstrap import FEWEST
from tl_neuronshare.maths.excess import deviations


@dataclass(frozen=True)
class Pairs:
    """A value of each pair of an example and its partner, or several on the second axis.

    Attributes:
        first: the number of each pair's example.
        second: that of its partner; the same number where an example is paired with itself.
        values: what each pair shows; NaN where it shows nothing.
    """

    first: NDArray[np.integer]
    second: NDArray[np.integer]
    values: NDArray[np.float64]

    def partners(self, n_examples: int) -> NDArray[np.float64]:
        """How many partners with a value each example has."""
        return _sums(self.first, ~np.isnan(self.values), n_examples)

    def means(self, n_examples: int) -> NDArray[np.float64]:
        """Each example's mean over its partners; NaN if it has none with a value."""
        with np.errstate(invalid="ignore"):
            return _sums(self.first, np.nan_to_num(self.values), n_examples) / self.partners(n_examples)


def interval_of_pairs(
    pairs: Pairs, minus: Pairs | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.integer]]:
    """Return the mean over examples of their means over partners, and the ends of its 95 % interval.

    With a second set of pairs, each example's mean over these is subtracted, and examples without either are left out.
    Each example counts the same, however many partners it has, so that both sides of a difference are of the same
    examples with the same weights.

    An example deviates from the mean by itself, and it changes the means of those whose partner it is: without it they
    have one partner less, or are left out. The variance is the sum of these contributions' squares, less what each pair
    adds to both of its examples. An estimate below that of independent examples is chance, and theirs is taken.

    Returns:
        Four arrays, one number for each of the values: the mean, its interval, and of how many examples it is. The
        interval is NaN for fewer than ten examples, and the mean for none.

    Source: as Fafchamps and Gubert (2007) for regressions on pairs; means over partners are ours.

    Examples:
        >>> first = np.arange(20)
        >>> pairs = Pairs(first, (first + 1) % 20, (first % 2).astype(float)[:, None])
        >>> [round(float(each[0]), 2) for each in interval_of_pairs(pairs)]
        [0.5, 0.26, 0.74, 20.0]
    """
    sides = [(1, pairs)] if minus is None else [(1, pairs), (-1, minus)]
    n = 1 + max(int(ends.max(initial=0)) for _, side in sides for ends in (side.first, side.second))
    partners, means = [side.partners(n) for _, side in sides], [side.means(n) for _, side in sides]
    own = means[0] if minus is None else means[0] - means[1]
    is_known = ~np.isnan(own)
    n_examples = is_known.sum(0)
    with np.errstate(invalid="ignore"):
        mean = np.nansum(own, 0) / n_examples
        alone = np.nan_to_num((own - mean) / n_examples)
    together, of_pairs = alone.copy(), []
    for (sign, side), n_partners, mean_of in zip(sides, partners, means, strict=True):
        with np.errstate(invalid="ignore", divide="ignore"):
            by_one_less = sign * (side.values - mean_of[side.first]) / (n_partners[side.first] - 1) / n_examples
        adds = np.where(n_partners[side.first] > 1, np.nan_to_num(by_one_less), alone[side.first])
        adds[~is_known[side.first] | np.isnan(side.values) | (side.first == side.second)[:, None]] = 0
        together += _sums(side.second, adds, n)
        of_pairs.append(adds)
    ends = np.sort(np.concatenate([np.stack([side.first, side.second]) for _, side in sides], axis=1), axis=0)
    numbers = np.unique(ends, axis=1, return_inverse=True)[1].ravel()
    twice = np.square(_sums(numbers, np.concatenate(of_pairs), len(numbers))).sum(0)
    variance = np.maximum(np.square(together).sum(0) - twice, np.square(alone).sum(0))
    enough = n_examples >= FEWEST
    counted = np.maximum(n_examples, FEWEST)
    wide = np.where(enough, deviations(counted) * np.sqrt(variance * counted / (counted - 1)), np.nan)
    return mean, mean - wide, mean + wide, n_examples


def _sums(groups: NDArray[np.integer], values: NDArray[np.generic], n_groups: int) -> NDArray[np.float64]:
    """Add values up by group."""
    sums = np.zeros((n_groups, values.shape[1]))
    np.add.at(sums, groups, values)
    return sums

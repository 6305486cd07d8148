"""Many tests at once: how many of those that are called significant are so by chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tl_neuronshare.errors import NeuronShareError


def benjamini_hochberg(p_values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjust p-values for the number of tests, so that a bar on them bounds the expected share of false discoveries.

    With p_(i) the i-th smallest of n p-values, its adjusted value is the smallest n p_(j) / j of all j >= i, at most 1.
    Missing values (NaN) stay so and do not count as tests.

    Raises:
        NeuronShareError: these are not p-values, one after the other.

    Source: Benjamini and Hochberg (1995).

    Examples:
        >>> benjamini_hochberg([0.01, 0.04, 0.03, float("nan")]).round(3).tolist()
        [0.03, 0.04, 0.04, nan]
    """
    values = np.asarray(p_values, dtype=float)
    if values.ndim != 1 or ((values < 0) | (values > 1)).any():
        raise NeuronShareError("These are not p-values in a row; give numbers from 0 to 1, such as a table's column.")
    adjusted = np.full(values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    of_ranks = values[order] * len(order) / np.arange(1, len(order) + 1)
    adjusted[order] = np.minimum(np.minimum.accumulate(of_ranks[::-1])[::-1], 1)
    return adjusted

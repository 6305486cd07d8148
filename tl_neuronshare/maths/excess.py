"""How much more languages share for one input than for different inputs, with an interval.

Measured and mismatched sharing are of the same examples, so that their difference is surer than each of them. The
mismatched mean is a U-statistic: each of its rows has an example for each language. Its interval follows from what each
example contributes to all rows that it is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_neuronshare.maths.bootstrap import FEWEST

_EXAMPLES = 1 << 12  # used at a time
_EXAMPLES_PER_LANGUAGE = 5
_DEVIATIONS = 1.959964  # of a normal distribution's middle 95 %


def excess(
    measured: NDArray[Any], draws: Sequence[tuple[NDArray[Any], Sequence[int]]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean of what is measured minus that of mismatched examples, and the ends of its 95 % interval.

    Let x be what an example shows, and H the sum over languages of what the mismatched rows show in which it stands for
    that language, as a mean over draws of the other examples. Then the variance of the difference is that of x - H,
    divided by the number n of examples, and what is left of the rows' variance, divided by n and the number of draws.
    The variance of H is the covariance of two draws, which have nothing but the example in common.

    Args:
        measured: a count for each example and, on the other axes, whatever is counted apart.
        draws: for each draw of mismatched examples the same counts of its rows, and by how many examples each language
            is moved: row j shows example j + offset.

    Returns:
        Three arrays without the first axis. The interval is NaN for fewer than two draws, ten examples, or five for
        each language: rows of so few have more than one example in common.

    Source: Hoeffding (1948), on U-statistics; the estimate from several draws is ours.

    Examples:
        >>> same, different = np.tile([[8], [6]], (10, 1)), np.tile([[3], [5]], (10, 1))
        >>> [round(float(each[0]), 2) for each in excess(same, [(different, [0, 2]), (different, [0, 4])])]
        [3.0, 1.57, 4.43]
    """
    n, n_draws = len(measured), len(draws)
    shape = (n, -1)
    flat, rows = measured.reshape(shape), [(counts.reshape(shape), offsets) for counts, offsets in draws]
    size = flat.shape[1]
    sums = {name: np.zeros(size) for name in ("x", "xx", "xm", "m", "mm", "cc", "y", "yy")}
    of_draws = np.zeros((n_draws, size))
    for start in range(0, n, _EXAMPLES):
        examples = np.arange(start, min(start + _EXAMPLES, n))
        x, together = flat[examples].astype(float), np.zeros((len(examples), size))
        for number, (counts, offsets) in enumerate(rows):
            of_draw = np.sum([counts[(examples - offset) % n] for offset in offsets], axis=0, dtype=float)
            y = counts[examples].astype(float)
            together += of_draw
            of_draws[number] += of_draw.sum(0)
            for name, values in (("cc", of_draw * of_draw), ("y", y), ("yy", y * y)):
                sums[name] += values.sum(0)
        for name, values in (("x", x), ("xx", x * x), ("xm", x * together), ("m", together), ("mm", together**2)):
            sums[name] += values.sum(0)
    n_languages = len(draws[0][1]) if draws else 1
    n_rows = n * n_draws
    difference = sums["x"] / n - sums["y"] / max(1, n_rows)
    low = high = np.full(size, np.nan)
    if n >= max(FEWEST, _EXAMPLES_PER_LANGUAGE * n_languages) and n_draws > 1:
        of_x = (sums["xx"] - sums["x"] ** 2 / n) / (n - 1)
        of_both = (sums["xm"] - sums["x"] * sums["m"] / n) / (n - 1) / n_draws
        of_pairs = sums["mm"] - sums["cc"] - (of_draws.sum(0) ** 2 - (of_draws**2).sum(0)) / n
        of_h = np.maximum(of_pairs / (n - 1) / (n_draws * (n_draws - 1)), 0)
        of_rows = (sums["yy"] - sums["y"] ** 2 / n_rows) / n_rows
        left = np.maximum(of_rows - of_h / n_languages, 0)
        deviation = np.sqrt(np.maximum(of_x - 2 * of_both + of_h + left / n_draws, 0) / n)
        wide = deviations(n) * deviation
        low, high = difference - wide, difference + wide
    kept = measured.shape[1:]
    return difference.reshape(kept), low.reshape(kept), high.reshape(kept)


def deviations(n: Any) -> Any:
    """How many standard deviations a 95 % interval reaches to each side, if the deviation is estimated from n examples.

    This is Student's distribution, by the first term of its expansion.

    Examples:
        >>> round(deviations(60), 2), round(deviations(10**6), 2)
        (2.0, 1.96)
    """
    return _DEVIATIONS + (_DEVIATIONS**3 + _DEVIATIONS) / (4 * (n - 1))

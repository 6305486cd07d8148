"""Means over partners: their variance by leaving examples out, and what few pairs give."""

from __future__ import annotations

import numpy as np
import pytest

from tl_neuronshare.maths.excess import deviations
from tl_neuronshare.maths.pairs import Pairs, interval_of_pairs


def some_pairs(rng, n_examples=15, n_partners=4, n_columns=2):
    """Each example with some partners, some of which show nothing."""
    first = np.repeat(np.arange(n_examples), n_partners)
    steps = [rng.choice(n_examples - 1, n_partners, replace=False) + 1 for _ in range(n_examples)]
    second = (first + np.concatenate(steps)) % n_examples
    values = rng.normal(size=(len(first), n_columns)) + first[:, None] / 4 + second[:, None] / 4
    values[rng.random(values.shape) < 0.1] = np.nan
    return Pairs(first, second, values)


def one_by_one(pairs, column, without=None):
    """Each example's mean over its partners, one of whom is left out."""
    found = {}
    for first, second, value in zip(pairs.first, pairs.second, pairs.values[:, column], strict=True):
        if not np.isnan(value) and second != without:
            found.setdefault(int(first), []).append(value)
    return {first: np.mean(values) for first, values in found.items()}


def test_the_variance_is_of_what_the_mean_would_be_without_each_example():
    rng = np.random.default_rng(0)
    for n_sides in (1, 2) * 3:
        sides = [some_pairs(rng, n_partners=n_partners) for n_partners in (3, 5)[:n_sides]]
        mean, low, high, n_examples = interval_of_pairs(*sides)
        for column in range(2):
            each = [one_by_one(side, column) for side in sides]
            own = {i: each[0][i] - (each[1][i] if n_sides == 2 else 0) for i in each[0] if all(i in e for e in each)}
            n, whole = len(own), np.mean(list(own.values()))
            assert (n_examples[column], mean[column]) == (n, pytest.approx(whole))
            together, of_pairs = {i: (value - whole) / n for i, value in own.items()}, {}
            least = sum(value**2 for value in together.values())
            for example in range(15):
                for sign, side in zip((1, -1), sides, strict=False):
                    full, less = one_by_one(side, column), one_by_one(side, column, without=example)
                    for i, value in own.items():
                        if full[i] == less.get(i):
                            continue
                        lost = sign * (full[i] - less[i]) / n if i in less else (value - whole) / n
                        together[example] = together.get(example, 0) + lost
                        pair = frozenset((i, example))
                        of_pairs[pair] = of_pairs.get(pair, 0) + lost
            variance = sum(value**2 for value in together.values()) - sum(value**2 for value in of_pairs.values())
            wide = deviations(n) * np.sqrt(max(variance, least) * n / (n - 1))
            assert (high[column] - mean[column], mean[column] - low[column]) == pytest.approx((wide, wide))


def test_examples_that_are_paired_with_themselves_are_a_sample_of_numbers():
    values = np.random.default_rng(0).normal(size=(30, 1))
    mean, low, high, n_examples = interval_of_pairs(Pairs(np.arange(30), np.arange(30), values))
    assert (mean, n_examples) == (pytest.approx(values.mean()), 30)
    assert high - low == pytest.approx(2 * deviations(30) * values.std(ddof=1) / np.sqrt(30))


def test_two_examples_that_have_nobody_else_count_as_one_pair():
    """Fifteen pairs, each in both orders: a sample of fifteen numbers, but for the correction of few."""
    values = np.random.default_rng(1).normal(size=15)
    first = np.arange(30)
    mean, low, high, _ = interval_of_pairs(Pairs(first, first ^ 1, np.repeat(values, 2)[:, None]))
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * deviations(30) * values.std() / np.sqrt(15) * np.sqrt(30 / 29))


def test_few_examples_have_no_interval_and_no_pair_has_no_mean():
    mean, low, high, _ = interval_of_pairs(Pairs(np.arange(9), np.arange(9), np.arange(9.0)[:, None]))
    assert mean == 4
    assert np.isnan([low, high]).all()
    none = Pairs(*np.zeros((2, 0), int), np.zeros((0, 2)))
    assert np.isnan(interval_of_pairs(none)[:3]).all()

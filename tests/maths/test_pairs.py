"""Means over pairs of examples: their variance by a double loop, and what few pairs give."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tl_neuronshare.maths.excess import deviations
from tl_neuronshare.maths.pairs import Pairs, interval_of_pairs


def some_pairs(rng, n_examples=14, n_pairs=40, n_columns=3):
    """Pairs of different examples, some of them in both orders, some without a value."""
    first = rng.integers(n_examples, size=n_pairs)
    second = (first + rng.integers(1, n_examples, size=n_pairs)) % n_examples
    first, second = np.concatenate([first, second[:5]]), np.concatenate([second, first[:5]])
    values = rng.normal(size=(n_pairs + 5, n_columns)) + first[:, None] / 4 + second[:, None] / 4
    values[rng.random(values.shape) < 0.1] = np.nan
    return Pairs(first, second, np.zeros(len(first), bool), values)


def looped(sides):
    """The first column's variance: over any two pairs with an example in common, and at least over equal pairs."""
    terms = [
        (sign * (value - np.nanmean(side.values[:, 0])) / (~np.isnan(side.values[:, 0])).sum(), {i, j})
        for side, sign in zip(sides, (1, -1), strict=False)
        for i, j, value in zip(side.first.tolist(), side.second.tolist(), side.values[:, 0], strict=True)
        if not np.isnan(value)
    ]
    both = list(itertools.product(terms, repeat=2))
    variance = sum(x * y for (x, one), (y, other) in both if one & other)
    return max(variance, sum(x * y for (x, one), (y, other) in both if one == other))


def test_the_variance_is_that_of_a_double_loop():
    rng = np.random.default_rng(0)
    for n_sides in (1, 2) * 5:
        sides = [some_pairs(rng) for _ in range(n_sides)]
        mean, low, high = interval_of_pairs(*sides)
        assert mean[0] == pytest.approx(np.nanmean(sides[0].values[:, 0]) - sum(s.mean()[0] for s in sides[1:]))
        n = len(np.unique(sides[0].first))
        expected = deviations(n) * np.sqrt(looped(sides) * n / (n - 1))
        assert (high[0] - mean[0], mean[0] - low[0]) == (pytest.approx(expected), pytest.approx(expected))


def test_pairs_of_an_example_with_itself_are_a_sample_of_numbers():
    values = np.random.default_rng(0).normal(size=(30, 1))
    alone = Pairs(np.arange(30), np.arange(30), np.zeros(30, bool), values)
    mean, low, high = interval_of_pairs(alone)
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * deviations(30) * values.std(ddof=1) / np.sqrt(30))


def test_drawn_partners_that_fit_alike_add_nothing():
    """Two groups: each example has two partners of its own group, with the group's value whoever they are."""
    numbers = np.arange(40)
    first = np.repeat(numbers, 2)
    second = (first + np.tile([2, 4], 40)) % 40
    values = (first % 2).astype(float)[:, None]
    mean, low, high = interval_of_pairs(Pairs(first, second, np.ones(80, bool), values))
    assert mean == 0.5
    assert high - low == pytest.approx(2 * deviations(40) * np.std(numbers % 2, ddof=1) / np.sqrt(40))


def test_few_examples_have_no_interval_and_no_pair_has_no_mean():
    nine = Pairs(np.arange(9), np.arange(9), np.zeros(9, bool), np.arange(9.0)[:, None])
    mean, low, high = interval_of_pairs(nine)
    assert mean == 4
    assert np.isnan([low, high]).all()
    none = Pairs(*np.zeros((2, 0), int), np.zeros(0, bool), np.zeros((0, 2)))
    assert np.isnan(interval_of_pairs(none)).all()

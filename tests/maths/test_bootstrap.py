"""Intervals, compared with resampling example by example."""

from __future__ import annotations

import numpy as np
import pytest

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths import bootstrap
from tl_neuronshare.maths.bootstrap import Bootstrap, Collected


def by_hand(numerators, denominators=None, n_resamples=20_000):
    """Return the interval of the ratio of sums from resamples that are drawn example by example."""
    rng = np.random.default_rng(5)
    denominators = np.ones(len(numerators)) if denominators is None else denominators
    ratios = []
    for _ in range(n_resamples):
        drawn = rng.integers(len(numerators), size=len(numerators))
        ratios.append(numerators[drawn].sum() / denominators[drawn].sum())
    return np.nanquantile(ratios, [0.025, 0.975])


def test_means_and_ratios():
    rng = np.random.default_rng(1)
    above, below = rng.normal(size=30), rng.uniform(1, 3, size=30)
    assert Bootstrap(20_000).intervals(above) == pytest.approx(by_hand(above), abs=0.01)
    assert Bootstrap(20_000).intervals(above, below) == pytest.approx(by_hand(above, below), abs=0.01)
    assert Bootstrap(100).intervals(np.full(10, 0.25)) == pytest.approx((0.25, 0.25))


def test_a_mean_over_those_examples_that_have_one():
    """Some resamples draw none of these examples, and so have no ratio."""
    has = np.arange(40) % 4 == 0
    values = np.where(has, np.arange(40.0), 0)
    assert Bootstrap(20_000).intervals(values, has.astype(float)) == pytest.approx(by_hand(values, has), abs=0.3)


def test_few_examples_have_no_interval():
    assert np.isnan(Bootstrap(100).intervals(np.full(9, 0.25))).all()
    low, high = Bootstrap(100).intervals(np.ones((20, 2)), np.stack([np.ones(20), np.arange(20) < 9], 1).astype(float))
    assert np.isnan([low[1], high[1]]).all()
    assert (low[0], high[0]) == (1, 1)


def test_many_at_once_are_each_as_alone(monkeypatch):
    """Values on further axes, computed in pieces, have the intervals that each has alone."""
    numbers = np.random.default_rng(2).normal(size=(15, 3, 4))
    monkeypatch.setattr(bootstrap, "_CHUNK", 5 * 300)
    low, high = Bootstrap(300).intervals(numbers, numbers**2)
    assert low.shape == high.shape == (3, 4)
    for place in np.ndindex(3, 4):
        one = numbers[(slice(None), *place)]
        np.testing.assert_allclose((low[place], high[place]), Bootstrap(300).intervals(one, one**2))


def test_intervals_are_the_same_from_memory_and_from_a_file_and_in_blocks(monkeypatch):
    numbers = np.random.default_rng(3).normal(size=(40, 5))
    has = numbers > 0
    expected = Bootstrap(100).intervals(numbers, has)
    collected = [Collected(np.float64), Collected(np.bool_)]
    monkeypatch.setattr(bootstrap, "_IN_MEMORY", 100)
    for start in range(0, 40, 7):
        for kept, values in zip(collected, (numbers, has), strict=True):
            kept.add(values[start : start + 7])
    values, known = (kept.whole() for kept in collected)
    assert isinstance(values, np.memmap)
    np.testing.assert_array_equal(values, numbers)
    np.testing.assert_array_equal(known, has)
    np.testing.assert_array_equal(Bootstrap(100).intervals(values, known), expected)
    monkeypatch.setattr(bootstrap, "_EXAMPLES", 16)
    monkeypatch.setattr(bootstrap, "_RESAMPLES", 8)
    np.testing.assert_allclose(Bootstrap(100).intervals(values, known), expected, rtol=1e-12)


def test_resamples_are_those_of_one_draw(monkeypatch):
    """However few are drawn at a time, they are the rows of one multinomial draw."""
    expected = np.random.default_rng(0).multinomial(25, np.full(25, 1 / 25), size=60)
    monkeypatch.setattr(bootstrap, "_CHUNK", 700)
    low, high = Bootstrap(60).intervals(np.arange(25.0))
    means = expected @ np.arange(25.0) / 25
    np.testing.assert_allclose((low, high), np.quantile(means, [0.025, 0.975]))


def test_no_room_for_the_temporary_file_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "_IN_MEMORY", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(NeuronShareError, match="temporary folder .*absent' cannot be written .*set the environment"):
        Collected(np.float64).add(np.ones(3))

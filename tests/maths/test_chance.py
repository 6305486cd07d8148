"""Chance levels as pure functions, compared with counting and drawing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tl_neuronshare.maths.chance import expected_intersection, independent_types, jaccard


def test_expected_intersection_equals_all_pairs_of_sets():
    first = [set(chosen) for chosen in itertools.combinations(range(6), 2)]
    second = [set(chosen) for chosen in itertools.combinations(range(6), 3)]
    pairs = list(itertools.product(first, second))
    common = expected_intersection(torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([6.0])).item()
    assert common == pytest.approx(sum(len(a & b) for a, b in pairs) / len(pairs))
    # In a layer of a few hundred neurons, the index of the expected counts is close to the expected index.
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(400):
        one, other = (set(torch.randperm(600, generator=generator)[:n].tolist()) for n in (120, 200))
        drawn.append(len(one & other) / len(one | other))
    expected = jaccard(*(torch.tensor(n) for n in (120 * 200 / 600, 120.0, 200.0))).item()
    assert expected == pytest.approx(np.mean(drawn), abs=0.003)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_independent_types_equal_all_combinations_of_languages(shares):
    expected = [0.0] * 4
    for spoken in itertools.product([False, True], repeat=len(shares)):
        number = sum(spoken)
        type = 3 if number == len(shares) else min(number, 2)
        expected[type] += math.prod(share if on else 1 - share for share, on in zip(shares, spoken, strict=True))
    found = independent_types(torch.tensor(shares, dtype=torch.float64)[:, None])[:, 0]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_the_index_of_two_empty_sets_is_none():
    assert jaccard(*torch.zeros(3)).isnan()
    assert jaccard(torch.tensor(0.0), torch.tensor(0.0), torch.tensor(2.0)) == 0

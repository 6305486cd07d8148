"""Chance levels as pure functions, against counting and drawing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tl_neuronshare.maths.chance import expected_intersection, jaccard


def test_expected_intersection_equals_all_pairs_of_sets():
    first = [set(chosen) for chosen in itertools.combinations(range(6), 2)]
    second = [set(chosen) for chosen in itertools.combinations(range(6), 3)]
    pairs = list(itertools.product(first, second))
    common = expected_intersection(torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([6.0])).item()
    assert common == pytest.approx(sum(len(a & b) for a, b in pairs) / len(pairs))
    # In a layer of some hundred neurons the index of what is expected is the index that is expected.
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(400):
        one, other = (set(torch.randperm(600, generator=generator)[:n].tolist()) for n in (120, 200))
        drawn.append(len(one & other) / len(one | other))
    expected = jaccard(*(torch.tensor(n) for n in (120 * 200 / 600, 120.0, 200.0))).item()
    assert expected == pytest.approx(np.mean(drawn), abs=0.003)

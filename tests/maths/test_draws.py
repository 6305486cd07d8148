"""Draws and matches as pure functions, compared with brute force."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from support.masks import random_mask, seeded
from tl_neuronshare.maths import draws


def by_brute_force(order, impact, mask):
    """Return, for each of the mask's neurons in this order, the nearest unused neuron outside the mask."""
    free = [neuron for neuron in range(len(impact)) if not mask[neuron]]
    found = set()
    for neuron in order:
        nearest = min(free, key=lambda other: abs(impact[other] - impact[neuron]))
        free.remove(nearest)
        found.add(nearest)
    return found


@given(st.integers(0, 10_000), st.sampled_from([1, 1000]))
def test_matches_are_the_nearest_by_brute_force(seed, n_values):
    mask, noise = random_mask(2, 3, 12, seed=seed), torch.rand(2, 3, 12, generator=seeded(seed))
    mask[..., 6:] = False  # at most half, so that there are enough
    # Often equal, or hardly ever.
    impact = torch.randint(10 * n_values, (2, 3, 12), generator=seeded(seed + 1)) / n_values
    found, far = draws.matched(noise, mask, impact)
    for example in range(2):
        for layer in range(3):
            here = (example, layer)
            order = [neuron for neuron in noise[here].argsort(descending=True).tolist() if mask[here][neuron]]
            expected = by_brute_force(order, impact[here].tolist(), mask[here])
            assert set(found[here].nonzero().flatten().tolist()) == expected
            assert not (far[here] & ~mask[here]).any()


@given(st.integers(0, 10_000), st.sampled_from([4, 10_000]))
def test_drawn_are_those_with_the_most_noise_of_those_that_may_be(seed, n_values):
    noise = torch.randint(n_values, (2, 3, 12), generator=seeded(seed)) / n_values  # often equal, or hardly ever
    within = random_mask(3, 12, share=0.6, seed=seed)
    count = torch.minimum(within.sum(-1), torch.tensor([[0, 2, 12], [1, 3, 5]]))
    found = draws.drawn(noise, count, within)
    for example, layer in itertools.product(range(2), range(3)):
        order = noise[example, layer].argsort(descending=True).tolist()
        expected = [neuron for neuron in order if within[layer, neuron]][: count[example, layer]]
        assert found[example, layer].nonzero().flatten().tolist() == sorted(expected)

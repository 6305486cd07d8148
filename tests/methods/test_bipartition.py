"""Bipartitions against all ways to divide the languages, one neuron at a time, and on planted neurons."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

import tl_neuronshare as ns
from tl_neuronshare.methods import bipartition

LANGUAGES = ("en", "de", "ru", "th", "vi")
WIDTHS = (6, 9)


def literal(histograms: torch.Tensor, n_languages: int, share: float) -> dict[str, set[tuple[int, int]]]:
    """The method as loops over neurons, pairs of languages and ways to divide them."""
    numbers = range(n_languages)
    overlap = {}
    for layer, width in enumerate(WIDTHS):
        for neuron in range(width):
            counts = histograms[:, layer, neuron].tolist()
            for a, b in combinations(numbers, 2):
                smaller = [
                    min(x / sum(counts[a]), y / sum(counts[b])) for x, y in zip(counts[a], counts[b], strict=True)
                ]
                overlap[layer, neuron, a, b] = sum(smaller)
    bar = sorted(overlap.values())[max(1, int(share * len(overlap))) - 1]
    chosen = {language: set() for language in LANGUAGES[:n_languages]}
    for layer, width in enumerate(WIDTHS):
        for neuron in range(width):
            ways = []
            for size in range(1, n_languages // 2 + 1):
                for group in combinations(numbers, size):
                    if 2 * size == n_languages and 0 not in group:
                        continue
                    rest = [number for number in numbers if number not in group]
                    across = max(overlap[layer, neuron, min(a, b), max(a, b)] for a in group for b in rest)
                    ways.append((across, len(ways), group))
            across, _, group = min(ways)
            if across <= bar:
                for number in group:
                    chosen[LANGUAGES[number]].add((layer, neuron))
    return chosen


def neurons(masks):
    return {language: {tuple(place) for place in mask.nonzero().tolist()} for language, mask in masks.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n_languages", "share"), [(2, 0.3), (3, 0.2), (4, 0.5), (5, 0.3)])
def test_the_method_on_random_histograms(seed, n_languages, share):
    generator = torch.Generator().manual_seed(seed)
    histograms = torch.randint(0, 997, (n_languages, 2, 9, 6), generator=generator)
    found = bipartition(histograms, languages=LANGUAGES[:n_languages], widths=WIDTHS, share=share)
    expected = literal(histograms, n_languages, share)
    assert neurons(found) == expected
    assert any(expected.values())


def test_planted_neurons_are_found_and_none_other():
    """Planted neurons have values of their own in one language, or in two; all others are distributed alike."""
    histograms = torch.randint(90, 110, (5, 2, 9, 8), generator=torch.Generator().manual_seed(0))
    planted = {(0, 2): (0,), (1, 8): (4,), (1, 0): (1, 2)}
    for (layer, neuron), languages in planted.items():
        histograms[:, layer, neuron] = 0
        for number in range(5):
            histograms[number, layer, neuron, 7 if number in languages else 0] = 800
    n_pairs = 4 + 4 + 6  # those of a planted neuron whose overlap is 0
    found = bipartition(histograms, languages=LANGUAGES, widths=WIDTHS, share=n_pairs / (15 * 10))
    assert neurons(found) == {"en": {(0, 2)}, "de": {(1, 0)}, "ru": {(1, 0)}, "th": set(), "vi": {(1, 8)}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"histograms": torch.ones(2, 1, 3, dtype=torch.long)}, r"The histograms have shape \(2, 1, 3\); 2 languages"),
        ({"widths": [3]}, r"layers of 3 neurons need \(2, 1, 3, 'bins'\)"),
        ({"languages": ["en"]}, "languages=.*; give a list of names of languages, each once"),
        ({"share": 0.0}, "share=0.0; give a share"),
        ({"histograms": torch.zeros(2, 1, 2, 4, dtype=torch.long)}, "Language 'en' has a neuron without any value"),
    ],
)
def test_bad_input(as_users_run_it, changes, message):
    fitting = {"histograms": torch.ones(2, 1, 2, 4, dtype=torch.long), "languages": ["en", "de"], "widths": [2]}
    with pytest.raises(ns.NeuronShareError, match=message):
        bipartition(**fitting | changes)

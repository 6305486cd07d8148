"""Bipartitions against all ways to divide the languages, one neuron at a time, and on planted neurons."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

import tl_neuronshare as ns
from tl_neuronshare.methods import bipartition

LANGUAGES = ("en", "de", "ru", "th", "vi", "tr", "zh")
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


def counted(bins, n_bins):
    """How many tokens are in each bin, from the bin of each token."""
    return torch.nn.functional.one_hot(bins, n_bins).sum(-2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n_languages", "share"), [(3, 0.2), (4, 0.5), (5, 0.3), (6, 0.3), (7, 1.0)])
def test_the_method_on_random_histograms(seed, n_languages, share):
    generator = torch.Generator().manual_seed(seed)
    skewed = torch.rand(n_languages, 2, 9, 1, generator=generator) * torch.rand(
        n_languages, 2, 9, 997, generator=generator
    )
    histograms = counted((6 * skewed).long(), n_bins=6)
    found = bipartition(ns.ValueHistograms(histograms, languages=LANGUAGES[:n_languages], widths=WIDTHS), share=share)
    expected = literal(histograms, n_languages, share)
    assert neurons(found) == expected
    assert any(expected.values())


def test_planted_neurons_are_found_and_none_other():
    """Planted neurons have values of their own in one language, or in two; all others are distributed alike."""
    values = torch.randint(0, 8, (5, 2, 9, 800), generator=torch.Generator().manual_seed(0))
    histograms = counted(values, n_bins=8)
    planted = {(0, 2): (0,), (1, 8): (4,), (1, 0): (1, 2)}
    for (layer, neuron), languages in planted.items():
        histograms[:, layer, neuron] = 0
        for number in range(5):
            histograms[number, layer, neuron, 7 if number in languages else 0] = 800
    n_pairs = 4 + 4 + 6  # those of a planted neuron whose overlap is 0
    found = bipartition(
        ns.ValueHistograms(histograms, languages=LANGUAGES[:5], widths=WIDTHS), share=n_pairs / (15 * 10)
    )
    assert neurons(found) == {"en": {(0, 2)}, "de": {(1, 0)}, "ru": {(1, 0)}, "th": set(), "vi": {(1, 8)}}


def test_layers_that_are_not_measured_have_no_neurons():
    counts = counted(torch.randint(0, 4, (3, 2, 5, 50), generator=torch.Generator().manual_seed(0)), n_bins=4)
    histograms = ns.ValueHistograms(counts, languages=["en", "de", "ru"], widths=[5, 5], n_measured=1)
    found = torch.stack([*bipartition(histograms, share=1.0).values()]).sum(0)
    assert found.tolist() == [[1] * 5, [0] * 5]


def test_neurons_that_tell_nothing_apart_are_never_kept():
    histograms = torch.tensor([[1, 2, 4], [3, 6, 12], [7, 14, 28]])[:, None, None].expand(3, 2, 9, 3)
    found = bipartition(ns.ValueHistograms(histograms.clone(), languages=LANGUAGES[:3], widths=WIDTHS), share=1.0)
    assert not any(mask.any() for mask in found.values())


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_bad_share(share):
    histograms = ns.ValueHistograms(torch.ones(3, 1, 2, 4, dtype=torch.long), languages=LANGUAGES[:3], widths=[2])
    with pytest.raises(ns.NeuronShareError, match=f"share={share}; give a share"):
        bipartition(histograms, share=share)


@pytest.mark.parametrize(("languages", "only"), [(["en"], "en only"), (["en", "de"], "en and de only")])
def test_two_languages_cannot_be_divided(as_users_run_it, languages, only):
    counts = torch.ones(len(languages), 1, 2, 4, dtype=torch.long)
    histograms = ns.ValueHistograms(counts, languages=languages, widths=[2])
    with pytest.raises(ns.NeuronShareError, match=f"There are histograms of {only}; .*: give at least three"):
        bipartition(histograms)
    with pytest.raises(ns.NeuronShareError, match="histograms is a Tensor; give a ValueHistograms"):
        bipartition(counts)

"""LAPE against a literal reading of its formula, neuron by neuron, and on planted language neurons."""

from __future__ import annotations

import math

import pytest
import torch

import tl_neuronshare as ns

LANGUAGES = ("en", "de", "ru", "th")


def literal(rates: ns.NeuronRates, share: float, quantile: float) -> dict[str, set[tuple[int, int]]]:
    """The paper's words as loops: the neurons of each language, as (layer, neuron)."""
    p = {
        (layer, neuron): [rates.counts[k, layer, neuron].item() / rates.tokens[k].item() for k in range(len(LANGUAGES))]
        for layer, width in enumerate(rates.widths)
        for neuron in range(width)
    }
    every = sorted(value for values in p.values() for value in values)
    bar = every[max(1, round(quantile * len(every))) - 1]
    scores = []
    for neuron, values in p.items():
        if max(values) <= bar:
            continue
        q = [value / sum(values) for value in values]
        scores.append((-sum(each * math.log(each) for each in q if each), neuron))
    kept = [neuron for _, neuron in sorted(scores)[: round(share * len(p))]]
    return {name: {neuron for neuron in kept if p[neuron][k] > bar} for k, name in enumerate(LANGUAGES)}


def neurons(masks):
    return {language: {tuple(place) for place in mask.nonzero().tolist()} for language, mask in masks.items()}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("share", "quantile"), [(0.01, 0.95), (0.1, 0.5), (1.0, 0.01), (0.3, 1.0)])
def test_the_formula_on_random_counts(seed, share, quantile):
    generator = torch.Generator().manual_seed(seed)
    widths, tokens = (150, 97, 120), (1009, 2003, 757, 1501)  # with primes, no two rates are equal but by intention
    counts = torch.zeros(4, 3, 150, dtype=torch.long)
    for layer, width in enumerate(widths):
        for k, n in enumerate(tokens):
            counts[k, layer, :width] = (n * torch.rand(width, generator=generator) ** 3).long()
    rates = ns.NeuronRates(counts, tokens, languages=LANGUAGES, widths=widths)
    found = ns.methods.lape(rates, share=share, quantile=quantile)
    assert list(found) == list(LANGUAGES)
    assert all(mask.shape == (3, 150) and mask.dtype == torch.bool for mask in found.values())
    assert neurons(found) == literal(rates, share, quantile)


@pytest.mark.parametrize("noise", [0, 20])
def test_planted_neurons_are_found_and_none_other(noise):
    """Known neurons fire for one language only (but for noise); all others fire alike in all languages."""
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(300, 500, (4, 2, 100), generator=generator)
    planted = {"en": {(0, 3), (1, 99)}, "de": {(0, 50)}, "ru": set(), "th": {(0, 4), (1, 5), (1, 6)}}
    for k, language in enumerate(LANGUAGES):
        for layer, neuron in planted[language]:
            counts[:, layer, neuron] = torch.randint(0, noise + 1, (4,), generator=generator)
            counts[k, layer, neuron] = 900
    rates = ns.NeuronRates(counts, [1000] * 4, languages=LANGUAGES, widths=[100, 100])
    found = ns.methods.lape(rates, share=6 / 200, quantile=0.95)
    assert neurons(found) == planted  # Russian has none


def test_a_neuron_of_two_languages_belongs_to_both():
    counts = torch.full((4, 1, 50), 400)
    counts[:, 0, 7] = torch.tensor([900, 0, 900, 0])
    found = ns.methods.lape(ns.NeuronRates(counts, [1000] * 4, languages=LANGUAGES, widths=[50]), share=0.02)
    assert neurons(found) == {"en": {(0, 7)}, "de": set(), "ru": {(0, 7)}, "th": set()}


def test_neurons_at_the_bar_do_not_pass_it_and_fewer_may_be_left_than_asked_for():
    counts = torch.full((4, 1, 50), 400)  # all rates are equal, and equal to the bar
    rates = ns.NeuronRates(counts, [1000] * 4, languages=LANGUAGES, widths=[50])
    assert not any(mask.any() for mask in ns.methods.lape(rates, share=1.0).values())
    counts[1, 0, 3] = 401
    rates = ns.NeuronRates(counts, [1000] * 4, languages=LANGUAGES, widths=[50])
    assert neurons(ns.methods.lape(rates, share=1.0)) == {"en": set(), "de": {(0, 3)}, "ru": set(), "th": set()}


def test_equal_entropies_are_taken_in_the_order_of_the_model():
    counts = torch.full((4, 2, 25), 100)
    counts[2, 0, [20, 9]], counts[2, 1, 4] = 500, 500
    for neuron in ((0, 20), (0, 9), (1, 4)):
        counts[[0, 1, 3], neuron[0], neuron[1]] = 0
    rates = ns.NeuronRates(counts, [1000] * 4, languages=LANGUAGES, widths=[25, 25])
    assert neurons(ns.methods.lape(rates, share=2 / 50))["ru"] == {(0, 9), (0, 20)}


def test_layers_that_are_not_measured_have_no_neurons():
    counts = torch.zeros(4, 2, 25, dtype=torch.long)
    counts[0, 0, 3] = 900
    rates = ns.NeuronRates(counts, [1000] * 4, languages=LANGUAGES, widths=[25, 25], n_measured=1)
    found = ns.methods.lape(rates, share=1.0)
    assert found["en"].shape == (2, 25)
    assert neurons(found) == {"en": {(0, 3)}, "de": set(), "ru": set(), "th": set()}


def test_bad_input():
    rates = ns.NeuronRates(torch.full((1, 1, 2), 1), [4], languages=["en"], widths=[2])
    with pytest.raises(ns.NeuronShareError, match="There are only rates of 'en'; this method compares"):
        ns.methods.lape(rates)
    for name in ("share", "quantile"):
        with pytest.raises(ns.NeuronShareError, match=f"{name}=0.0; give a share, above 0 and at most 1"):
            ns.methods.lape(rates, **{name: 0.0})

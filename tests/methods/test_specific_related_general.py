"""Specific, related and general neurons against a literal reading of the formula, and on planted ones."""

from __future__ import annotations

import math

import pytest
import torch

import tl_neuronshare as ns
from tl_neuronshare.methods import by_number_of_languages, largest_weight, specific_related_general

LANGUAGES = ("en", "de", "ru", "th")
WIDTHS = (60, 41)
TOKENS = (1009, 2003, 757, 1501)


def random_rates(seed: int) -> ns.NeuronRates:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(4, 2, 60, dtype=torch.long)
    for layer, width in enumerate(WIDTHS):
        for k, n in enumerate(TOKENS):
            counts[k, layer, :width] = (n * torch.rand(width, generator=generator)).long()
    return ns.NeuronRates(counts, TOKENS, languages=LANGUAGES, widths=WIDTHS)


def literal(rates: ns.NeuronRates, share: float, quantile: float, weight: float) -> dict[str, set[tuple[int, int]]]:
    """The formula as loops: the neurons of each language, as (layer, neuron)."""
    p = {
        (layer, neuron): [rates.counts[k, layer, neuron].item() / TOKENS[k] for k in range(4)]
        for layer, width in enumerate(WIDTHS)
        for neuron in range(width)
    }
    every = sorted(value for values in p.values() for value in values)
    bar = every[round(quantile * len(every)) - 1]
    harmonic = 1 + 1 / 2 + 1 / 3 + 1 / 4
    scores = []
    for neuron, values in p.items():
        q = [value / sum(values) for value in values]
        entropy = -sum(each * math.log(each) for each in q if each)
        scores.append((entropy / math.log(4) - weight * max(values) / (harmonic / 4), neuron))
    kept = [neuron for _, neuron in sorted(scores)[: round(share * len(p))]]
    return {name: {neuron for neuron in kept if p[neuron][k] > bar} for k, name in enumerate(LANGUAGES)}


def neurons(masks):
    return {language: {tuple(place) for place in mask.nonzero().tolist()} for language, mask in masks.items()}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("share", "quantile", "weight"), [(0.05, 0.95, 0.0), (0.2, 0.8, 0.1), (0.5, 0.5, 2.0)])
def test_the_formula_on_random_counts(seed, share, quantile, weight):
    rates = random_rates(seed)
    found = specific_related_general(rates, share=share, quantile=quantile, weight=weight)
    assert neurons(found) == literal(rates, share, quantile, weight)


@pytest.mark.parametrize("seed", range(4))
def test_the_weight_is_the_largest_without_general_neurons(seed):
    rates, how = random_rates(seed), {"share": 0.3, "quantile": 0.4}

    def has_general(weight):
        return bool(set.intersection(*literal(rates, how["share"], how["quantile"], weight).values()))

    allowed = [step / 1000 for step in range(201) if not has_general(step / 1000)]
    if not allowed:
        with pytest.raises(ns.NeuronShareError, match=r"With each weight from 0 to 0\.2, one of the 30.00% of neurons"):
            largest_weight(rates, **how)
        return
    assert largest_weight(rates, **how) == pytest.approx(max(allowed))
    found = specific_related_general(rates, **how)
    assert neurons(found) == literal(rates, *how.values(), max(allowed))
    assert not by_number_of_languages(found)["general"].any()


def test_planted_neurons_are_found_and_none_other():
    """Specific neurons are activated often by one language, related ones by two; all others alike by all."""
    counts = torch.randint(300, 500, (4, 1, 100), generator=torch.Generator().manual_seed(0))
    planted = {3: (0,), 50: (1,), 99: (3,), 7: (0, 2)}
    for neuron, languages in planted.items():
        counts[:, 0, neuron] = torch.tensor([900 if k in languages else 0 for k in range(4)])
    rates = ns.NeuronRates(counts, [1000] * 4, languages=LANGUAGES, widths=[100])
    found = specific_related_general(rates, share=4 / 100, quantile=0.95)
    assert neurons(found) == {"en": {(0, 3), (0, 7)}, "de": {(0, 50)}, "ru": {(0, 7)}, "th": {(0, 99)}}
    classes = {name: set(mask[0].nonzero()[:, 0].tolist()) for name, mask in by_number_of_languages(found).items()}
    assert classes == {"specific": {3, 50, 99}, "related": {7}, "general": set()}


def test_bad_input():
    one = ns.NeuronRates(torch.full((1, 1, 2), 1), [4], languages=["en"], widths=[2])
    for function in (specific_related_general, largest_weight):
        with pytest.raises(ns.NeuronShareError, match="There are only rates of 'en'"):
            function(one)
    with pytest.raises(ns.NeuronShareError, match="weight=nan is not a finite number"):
        specific_related_general(random_rates(0), weight=math.nan)
    with pytest.raises(ns.NeuronShareError, match="masks of fewer than two languages"):
        by_number_of_languages({"en": torch.ones(1, 2, dtype=torch.bool)})
    with pytest.raises(ns.NeuronShareError, match="The masks have different shapes"):
        by_number_of_languages({"en": torch.ones(1, 2, dtype=torch.bool), "de": torch.ones(1, 3, dtype=torch.bool)})

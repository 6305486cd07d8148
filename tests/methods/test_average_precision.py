"""Average precision against a count sentence by sentence, and on planted neurons."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns
from tl_neuronshare.methods.average_precision import average_precision, precisions

WIDTHS = (5, 7)


def drawn(seed: int, *, rounded: bool) -> dict[str, torch.Tensor]:
    """Sentences' values; rounded ones have many ties."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"en": 9, "de": 4, "th": 13}
    values = {language: torch.randn(n, 2, 7, generator=generator) for language, n in sizes.items()}
    return {language: each.round() if rounded else each for language, each in values.items()}


def literal(values: dict[str, torch.Tensor], language: str, layer: int, neuron: int) -> float:
    """The mean over the language's sentences of the precision among the sentences with at least their value."""
    every = [(of[row, layer, neuron].item(), name) for name, of in values.items() for row in range(len(of))]
    own = [value for value, name in every if name == language]
    precision = []
    for value in own:
        found = [name for other, name in every if other >= value]
        precision.append(found.count(language) / len(found))
    return sum(precision) / len(own)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("chunk", [1, 26 * 4, 1 << 24])
def test_the_formula_on_random_values(seed, rounded, chunk, monkeypatch):
    from importlib import import_module

    monkeypatch.setattr(import_module("tl_neuronshare.methods.average_precision"), "_CHUNK", chunk)
    values = drawn(seed, rounded=rounded)
    for language, found in precisions(values).items():
        for layer in range(2):
            for neuron in range(7):
                assert found[layer, neuron].item() == pytest.approx(literal(values, language, layer, neuron))


@pytest.mark.parametrize("which", ["top", "bottom", "both"])
def test_the_first_and_the_last_are_chosen(which):
    values = drawn(5, rounded=False)
    masks = average_precision(values, widths=WIDTHS, n=2, which=which)
    for language, mask in masks.items():
        ranked = sorted(
            (literal(values, language, layer, neuron), layer, neuron)
            for layer, width in enumerate(WIDTHS)
            for neuron in range(width)
        )
        expected = {"top": ranked[-2:], "bottom": ranked[:2], "both": ranked[:2] + ranked[-2:]}[which]
        assert {tuple(place) for place in mask.nonzero().tolist()} == {(layer, neuron) for _, layer, neuron in expected}


def test_planted_neurons_are_found_and_none_other():
    generator = torch.Generator().manual_seed(2)
    values = {language: torch.rand(20, 2, 7, generator=generator) for language in ("en", "de", "th")}
    planted = {"en": (0, 3), "de": (1, 6), "th": (1, 0)}
    for language, (layer, neuron) in planted.items():
        values[language][:, layer, neuron] += 2
    found = average_precision(values, widths=WIDTHS, n=1, which="top")
    assert {language: tuple(mask.nonzero()[0].tolist()) for language, mask in found.items()} == planted
    silent = {"en": (0, 1), "de": (1, 2), "th": (0, 4)}
    for language, (layer, neuron) in silent.items():
        values[language][:, layer, neuron] -= 2
    found = average_precision(values, widths=WIDTHS, n=1)
    places = {language: {tuple(place) for place in mask.nonzero().tolist()} for language, mask in found.items()}
    assert places == {language: {planted[language], silent[language]} for language in planted}


def test_equal_neurons_are_taken_in_the_order_of_the_model():
    values = {"en": torch.ones(2, 1, 4), "de": torch.zeros(2, 1, 4)}
    found = average_precision(values, widths=[4], n=2, which="top")
    assert found["en"].tolist() == found["de"].tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({"en": torch.ones(1, 1, 4)}, {}, "fewer than two languages"),
        ({"en": torch.ones(1, 1, 4), "de": torch.ones(1, 4)}, {}, r"'de': the values have shape \(1, 4\)"),
        ({"en": torch.ones(1, 1, 4), "de": torch.full((1, 1, 4), torch.nan)}, {}, "'de': a value is NaN or infinite"),
        ({"en": torch.ones(1, 1, 4), "de": torch.ones(1, 1, 4)}, {"n": 3}, "n=3, which='both': there are only 4 neur"),
        ({"en": torch.ones(1, 1, 4), "de": torch.ones(1, 1, 4)}, {"which": "most"}, "which='most' is unknown"),
    ],
)
def test_bad_input(as_users_run_it, values, options, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        average_precision(values, **{"widths": [4], "n": 1} | options)

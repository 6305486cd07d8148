"""Tables that compare methods, against counts of sets and draws at random."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns
from tl_neuronshare.maths.draws import drawn

WIDTHS = (60, 40)
IS_NEURON = torch.arange(60)[None] < torch.tensor(WIDTHS)[:, None]


def masks(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {language: (torch.rand(2, 60, generator=generator) < 0.3) & IS_NEURON for language in ("en", "de")}


MASKS = {"lape": masks(0), "mine": masks(1)}


def places(mask) -> set[tuple[int, int]]:
    return {tuple(place) for place in mask.nonzero().tolist()}


def test_sizes_are_those_of_the_sets():
    table = ns.methods.sizes(MASKS, is_neuron=IS_NEURON).set_index(["method", "language", "layer"])
    for method, of_method in MASKS.items():
        for language, mask in of_method.items():
            for layer, width in enumerate(WIDTHS):
                row, n = table.loc[method, language, layer], sum(place[0] == layer for place in places(mask))
                assert (row["neurons"], row["percent"]) == (n, pytest.approx(100 * n / width))
            row = table.loc[method, language, "all"]
            assert (row["neurons"], row["percent"]) == (len(places(mask)), pytest.approx(len(places(mask))))


def test_agreement_is_jaccard_and_chance_that_of_random_neurons():
    table = ns.methods.agreement(MASKS, is_neuron=IS_NEURON).set_index(["method", "other", "language"])
    for language in ("en", "de"):
        first, second = (places(of_method[language]) for of_method in MASKS.values())
        assert table.loc["lape", "mine", language]["jaccard"] == pytest.approx(
            len(first & second) / len(first | second)
        )
        assert table.loc["mine", "mine", language]["jaccard"] == table.loc["mine", "mine", language]["largest"] == 1
        sizes = [[sum(place[0] == layer for place in each) for layer in range(2)] for each in (first, second)]
        at_most = sum(map(min, zip(*sizes, strict=True)))
        largest = at_most / (len(first) + len(second) - at_most)
        assert table.loc["lape", "mine", language]["largest"] == pytest.approx(largest)
        of_draws = []
        for seed in range(300):
            noise = torch.rand(2, 2, 60, generator=torch.Generator().manual_seed(seed))
            one, two = (
                places(drawn(noise[number], of_method[language].sum(-1), IS_NEURON))
                for number, of_method in enumerate(MASKS.values())
            )
            of_draws.append(len(one & two) / len(one | two))
        mean = sum(of_draws) / len(of_draws)
        assert table.loc["lape", "mine", language]["chance"] == pytest.approx(mean, abs=0.01)
    both = table.loc["lape", "mine"]["jaccard"]
    assert both["all"] == pytest.approx((both["en"] + both["de"]) / 2)


def test_types_are_counted_over_examples():
    activated = torch.rand(7, 3, 2, 60, generator=torch.Generator().manual_seed(2)) < 0.4
    sharing = ns.NeuronSharing.from_activated(activated & IS_NEURON, languages=["en", "de", "fr"], widths=WIDTHS)
    table = ns.methods.types(MASKS, sharing).set_index(["method", "language", "type"]).sort_index()
    for method, of_method in MASKS.items():
        for language, mask in of_method.items():
            of_mask = [sharing.types[example][mask] for example in range(7)]
            for type in ns.NeuronType:
                row = table.loc[method, language, type.label]
                share = torch.cat(of_mask) == type
                assert row["percent"] == pytest.approx(100 * share.double().mean().item())
                by_layer = [
                    (sharing.types[:, layer, :width] == type).double().mean().item()
                    for layer, width in enumerate(WIDTHS)
                ]
                n = mask.sum(-1).tolist()
                expected = sum(a * b for a, b in zip(by_layer, n, strict=True)) / sum(n)
                assert row["chance"] == pytest.approx(100 * expected)
        assert table.loc[method, "en"]["percent"].sum() == pytest.approx(100)


def test_masks_that_do_not_fit_are_refused(as_users_run_it):
    nothing, shape = "masks lacks a method", "Method 'lape', language 'en': the mask has shape"
    for wrong, message in (({}, nothing), ({"lape": {}}, nothing), ({"lape": {"en": IS_NEURON[:1]}}, shape)):
        with pytest.raises(ns.NeuronShareError, match=message):
            ns.methods.sizes(wrong, is_neuron=IS_NEURON)
        with pytest.raises(ns.NeuronShareError, match=message):
            ns.methods.agreement(wrong, is_neuron=IS_NEURON)
    with pytest.raises(ns.NeuronShareError, match="places that are not neurons"):
        ns.methods.sizes({"lape": {"en": torch.ones_like(IS_NEURON)}}, is_neuron=torch.zeros_like(IS_NEURON))
    with pytest.raises(ns.NeuronShareError, match="A language is called 'all'"):
        ns.methods.sizes({"lape": {"all": IS_NEURON}}, is_neuron=IS_NEURON)

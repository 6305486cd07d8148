"""Results against each other, against brute force over sets; no model."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tl_neuronshare as ns

NAN = float("nan")


def random_sharing(n_examples=4, n_languages=3, n_layers=2, width=12, seed=0, share=0.4, **options) -> ns.NeuronSharing:
    generator = torch.Generator().manual_seed(seed)
    activated = torch.rand(n_examples, n_languages, n_layers, width, generator=generator) < share
    return ns.NeuronSharing.from_activated(activated, languages=["en", "de", "th"][:n_languages], **options)


def index(one: set, other: set) -> float:
    return len(one & other) / len(one | other) if one | other else NAN


def places(mask: torch.Tensor, layer: int | str) -> set:
    """The neurons of a mask [layer neuron], in one layer or in all."""
    found = {(at, n) for at, n in mask.nonzero().tolist()}
    return found if layer == "all" else {(at, n) for at, n in found if at == layer}


def test_side_by_side_is_every_summary_with_a_name_and_a_depth():
    results = {"shallow": random_sharing(), "deep": random_sharing(n_layers=5, seed=1)}
    table = ns.side_by_side(results, name="model", seed=3)
    assert list(table.columns)[:4] == ["model", "layer", "depth", "type"]
    for name, sharing in results.items():
        rows = table[table["model"] == name].drop(columns=["model", "depth"]).reset_index(drop=True)
        assert rows.equals(sharing.summary(seed=3))
    assert table.query("model == 'deep' and type == 'specific'")["depth"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert (ns.side_by_side({0.1: random_sharing(n_layers=1)}, name="threshold")["depth"] == 0).all()


def test_results_of_other_languages_are_not_set_side_by_side():
    with pytest.raises(
        ns.NeuronShareError, match="task 'b' is of en, de, the first of en, de, th; types are comparable"
    ):
        ns.side_by_side({"a": random_sharing(), "b": random_sharing(n_languages=2)}, name="task")
    with pytest.raises(ns.NeuronShareError, match="results is not a mapping from names to NeuronSharing"):
        ns.side_by_side({}, name="task")
    for name in ("layer", "depth"):
        with pytest.raises(ns.NeuronShareError, match=f"name='{name}' is a column already"):
            ns.side_by_side({"a": random_sharing()}, name=name)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0.02, 0.9))
def test_language_overlap_equals_brute_force(seed, share):
    sharing = random_sharing(seed=seed, share=share)
    table = ns.language_overlap(sharing, seed=seed, n_resamples=10).set_index(["layer", "language", "other"])
    assert len(table) == 3 * 3
    activated = sharing.activated()
    for layer, (one, other) in itertools.product([0, 1, "all"], itertools.combinations(range(3), 2)):
        row = table.loc[(layer, sharing.languages[one], sharing.languages[other])]
        sets = [tuple(places(example[language], layer) for language in (one, other)) for example in activated]
        found = [index(*pair) for pair in sets]
        np.testing.assert_allclose(row["jaccard"], nanmean(found), atol=1e-12)
        chance = []
        for example in activated:
            layers = [0, 1] if layer == "all" else [layer]
            sizes = [[int(example[la, at].sum()) for at in layers] for la in (one, other)]
            common = sum(a * b / 12 for a, b in zip(*sizes, strict=True))
            either = sum(map(sum, sizes)) - common
            chance.append(common / either if either else NAN)
        np.testing.assert_allclose(row["independent"], nanmean(chance), atol=1e-12)
        draws = []
        for draw in range(12):
            moved = sharing.mismatched(seed=seed + draw).activated()
            draws.append(nanmean([index(places(e[one], layer), places(e[other], layer)) for e in moved]))
        np.testing.assert_allclose(row["mismatched"], np.mean(draws), atol=1e-12)


def nanmean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else NAN


def test_the_excess_of_overlap_is_beside_its_interval():
    """Two languages share a set of neurons for each example, a third nothing of it; all have a noise of their own."""
    generator = torch.Generator().manual_seed(0)
    own = torch.rand(30, 1, 2, 200, generator=generator) < 0.2
    activated = torch.rand(30, 3, 2, 200, generator=generator) < 0.2
    activated[:, :2] |= own
    sharing = ns.NeuronSharing.from_activated(activated, languages=["en", "de", "th"])
    table = ns.language_overlap(sharing).set_index(["language", "other"])
    np.testing.assert_allclose(table["excess"], table["jaccard"] - table["mismatched"], atol=1e-12)
    assert (table.loc[("en", "de"), "excess_low"] > 0.1).all()
    for pair in (("en", "th"), ("de", "th")):
        assert (table.loc[pair, "excess"].abs() < 0.02).all()
        assert (table.loc[pair, "excess_low"] < 0.01).all()
    assert (table["excess_low"] < table["excess"]).all()
    assert (table["excess"] < table["excess_high"]).all()
    assert ns.language_overlap(sharing, mismatches=0)["excess"].isna().all()


def test_overlap_has_an_interval_for_ten_examples_and_the_square_table_is_the_same():
    sharing = random_sharing(n_examples=12)
    table = ns.language_overlap(sharing)
    assert ((table["low"] < table["jaccard"]) & (table["jaccard"] < table["high"])).all()
    assert ns.language_overlap(sharing[:9])["low"].isna().all()
    overall = table[table["layer"] == "all"].set_index(["language", "other"])["jaccard"]
    for (one, other), value in overall.items():
        assert sharing.overlap().loc[one, other] == pytest.approx(value)
    assert ns.language_overlap(sharing[:2])["mismatched"].isna().all()  # two examples, three languages


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_input_overlap_equals_brute_force(seed):
    results = {"a": random_sharing(seed=seed, share=0.6), "b": random_sharing(n_examples=3, seed=seed + 1, share=0.7)}
    for type in ("all-shared", "specific"):
        table = ns.input_overlap(results, type=type).set_index(["layer", "task", "other"])
        assert len(table) == 3 * 3
        for layer, (one, other) in itertools.product([0, 1, "all"], [("a", "a"), ("a", "b"), ("b", "b")]):
            sets = [[places(mask, layer) for mask in results[task].mask(type)] for task in (one, other)]
            pairs = list(itertools.combinations(sets[0], 2) if one == other else itertools.product(*sets))
            row = table.loc[(layer, one, other)]
            found = [index(*pair) for pair in pairs]
            np.testing.assert_allclose(row["jaccard"], nanmean(found), atol=1e-12)
            assert row["pairs"] == sum(not math.isnan(value) for value in found)
            chance = []
            for pair in pairs:
                counts = [[len({n for at, n in chosen if at == layer_}) for layer_ in (0, 1)] for chosen in pair]
                common = sum(a * b / 12 for a, b in zip(*counts, strict=True))
                either = sum(map(sum, counts)) - common
                chance.append(common / either if either else NAN)
            np.testing.assert_allclose(row["independent"], nanmean(chance), atol=1e-12)


def test_inputs_are_compared_in_blocks_as_at_once(monkeypatch):
    results = {"a": random_sharing(n_examples=7), "b": random_sharing(n_examples=5, seed=1)}
    at_once = ns.input_overlap(results)
    monkeypatch.setattr(ns.results.comparison, "_MASK_BYTES", 3 * 2 * 12)  # three inputs at a time
    pd.testing.assert_frame_equal(ns.input_overlap(results), at_once, rtol=1e-12)


def test_inputs_of_other_models_are_not_compared():
    ours = random_sharing(metadata={"fingerprint": "0123-4567", "threshold": 0.0})
    theirs = random_sharing(metadata={"fingerprint": "89ab-4567", "threshold": 0.0})
    with pytest.raises(ns.NeuronShareError, match="Task 'b' has fingerprint of the weights '89ab', the first '0123'"):
        ns.input_overlap({"a": ours, "b": theirs})
    with pytest.raises(ns.NeuronShareError, match="Task 'b' has languages"):
        ns.input_overlap({"a": random_sharing(), "b": random_sharing(n_languages=2)})

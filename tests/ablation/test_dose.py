"""Dose and response: masks that grow, whose order is that of impacts read through Hugging Face."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import tl_neuronshare as ns
from support import reference
from tl_neuronshare.ablation import dose
from tl_neuronshare.ablation.controls import Magnitude

SHARES = [0.25, 0.5, 1.0]


@pytest.fixture
def ready(animals, backend):
    prompts = ns.demo.prompts()[:4].select(["en", "de"])
    model = animals.lens("demo", backend)
    return model, prompts, ns.categorise(model, prompts)


def test_a_larger_share_includes_a_smaller_one_and_begins_with_the_largest_impact(animals, ready, monkeypatch):
    """The masks that the study gets, against the impacts of single neurons in Hugging Face."""
    model, prompts, sharing = ready
    given = []
    study = dose.ablation_study

    def seen(model, prompts, masks, **options):
        given.append(masks)
        return study(model, prompts, masks, **options)

    monkeypatch.setattr(dose, "ablation_study", seen)
    ns.dose_response(model, prompts, sharing, type="all-shared", shares=SHARES, controls=[], seeds=[0])
    scores = reference.literal_scores(*animals.hugging_face("demo"), animals.kind("demo"), prompts)
    whole = sharing.mask("all-shared")
    for masks, order in zip(given, ("impact", "random"), strict=True):
        assert list(masks) == [f"{order} {share}" for share in SHARES]
        quarter, half, all_of_them = masks.values()
        assert torch.equal(all_of_them, whole)
        assert not (quarter & ~half).any()
        assert not (half & ~whole).any()
        expected = (whole.sum(-1) * 0.25 + 0.5).floor()
        assert torch.equal(quarter.sum(-1).double(), expected.double())
    for example, layer in np.ndindex(4, 4):
        impact = np.mean([scores[example, language, layer][0] for language in ("en", "de")], axis=0)
        chosen, others = (
            impact[mask[example, layer].numpy()] for mask in (given[0]["impact 0.5"], whole & ~given[0]["impact 0.5"])
        )
        assert not len(others) or chosen.min() >= others.max() * (1 - 1e-4)
    assert not torch.equal(given[0]["impact 0.5"], given[1]["random 0.5"])


def test_the_whole_dose_is_the_study_of_the_type(ready):
    model, prompts, sharing = ready
    table = ns.dose_response(
        model, prompts, sharing, shares=[0.5, 1.0], controls=["random"], seeds=[0], scoring="exact"
    )
    options = {"types": ["all-shared"], "controls": ["random"], "seeds": [0], "scoring": "exact"}
    study = ns.ablation_study(model, prompts, sharing, **options)
    columns = ["language", "metric", "value", "difference", "low", "high"]
    whole = table[table["share"] == 1].reset_index(drop=True)
    for order in ("by impact", "at random"):
        expected = study[study["ablated"] == "type"][columns].reset_index(drop=True)
        found = whole[whole["ablated"] == order][columns].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, expected)
    none = table[table["ablated"] == "none"]
    assert (none["share"] == 0).all()
    assert len(none) == len(study[study["ablated"] == "none"])
    assert set(table["ablated"]) == {"none", "by impact", "at random", "random"}


def test_matches_are_of_a_different_type(ready, monkeypatch):
    """Also those of a small dose, whose mask leaves most of the type out."""
    model, prompts, sharing = ready
    drawn, draw = [], Magnitude.draw

    def seen(self, request):
        drawn.append((request.examples, draw(self, request)))
        return drawn[-1][1]

    monkeypatch.setattr(Magnitude, "draw", seen)
    ns.dose_response(model, prompts, sharing, shares=[0.1, 0.5], controls=["magnitude"], seeds=[0])
    of_type = sharing.mask("all-shared")
    assert sum(int(each.mask.sum()) for _, each in drawn) > 100
    for examples, each in drawn:
        assert not (each.mask & of_type[examples]).any()


def test_a_run_that_is_kept_goes_on(ready, tmp_path):
    model, prompts, sharing = ready
    options = {"shares": [0.5], "controls": ["random"], "seeds": [0]}
    first = ns.dose_response(model, prompts, sharing, **options, out=tmp_path / "kept")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["impact", "random"]
    again = ns.dose_response(model, prompts, sharing, **options, out=tmp_path / "kept")
    pd.testing.assert_frame_equal(first, again)
    pd.testing.assert_frame_equal(first, ns.dose_response(model, prompts, sharing, **options))


def test_bad_input(ready, as_users_run_it):
    model, prompts, sharing = ready
    for shares, message in ([0.0], "shares=0.0; give a share"), ([0.5, 0.5], "shares="), ([], "shares="):
        with pytest.raises(ns.NeuronShareError, match=message):
            ns.dose_response(model, prompts, sharing, shares=shares)
    with pytest.raises(ns.NeuronShareError):
        ns.dose_response(model, prompts, sharing, type="shared")
    with pytest.raises(ns.NeuronShareError, match="sharing is a dict; give the NeuronSharing"):
        ns.dose_response(model, prompts, {"a": sharing.mask("specific")})
    with pytest.raises(ns.NeuronShareError, match="prompts"):
        ns.dose_response(model, None, sharing)
    with pytest.raises(ns.NeuronShareError, match="spared= is for masks"):
        ns.ablation_study(model, prompts, sharing, spared=sharing.mask("specific"))

"""Every method's masks go through the study and through cross-ablation, with every control that is defined for them."""

from __future__ import annotations

from typing import Any

import pytest

import tl_neuronshare as ns
from tl_neuronshare.ablation.controls import CONTROLS

LANGUAGES = ["en", "de", "th"]


def found(model: Any, texts: dict[str, list[str]], widths: Any) -> dict[str, dict[str, Any]]:
    """The masks of each method, by its name."""
    rates = ns.activation_rates(model, texts)
    values = ns.reference_values(model, texts, each=True, position="all")
    means = {language: of_texts.mean(0) for language, of_texts in values.items()}
    return {
        "lape": ns.methods.lape(rates, share=0.05),
        "specific_related_general": ns.methods.specific_related_general(rates, share=0.05),
        "average_precision": ns.methods.average_precision(values, widths=widths, n=20),
        "bipartition": ns.methods.bipartition(ns.value_histograms(model, texts, n_bins=20), share=0.05),
        "parallel_detection": ns.methods.parallel_detection(model, texts, share=0.2),
        "transfer_neurons, to shared": ns.methods.transfer_neurons(model, texts, direction="to shared", n=20),
        "transfer_neurons, from shared": ns.methods.transfer_neurons(model, texts, direction="from shared", n=20),
        "steered": {name: kinds["specific"] for name, kinds in ns.methods.steered(means).items()},
    }


@pytest.fixture(scope="module")
def studied():
    model, prompts = ns.demo.load_model(device="cpu"), ns.demo.prompts()[:12].select(LANGUAGES)
    sharing = ns.categorise(model, prompts)
    return model, prompts, sharing, found(model, dict(prompts.prompts), sharing.widths)


def test_no_method_is_left_out(studied):
    *_, masks = studied
    methods = {name.split(",")[0] for name in masks}
    helpers = {"agreement", "sizes", "types", "largest_weight", "by_number_of_languages", "steering_hooks"}
    assert methods == set(ns.methods.__all__) - helpers


@pytest.mark.slow
def test_every_method_goes_through_the_study_with_every_control(studied):
    model, prompts, sharing, masks = studied
    for method, of_method in masks.items():
        table = ns.ablation_study(
            model, prompts, of_method, active=sharing, controls=list(CONTROLS), seeds=[0], progress=False
        )
        rows = table[(table["language"] == "all") & (table["metric"] == "log_prob") & (table["type"] != "none")]
        assert set(rows["ablated"]) == {"type", *CONTROLS}
        for row in rows.to_dict("records"):
            of_other_example = row["ablated"] == "other-example"
            if of_other_example or not of_method[row["type"]].any():
                assert row["note"] in (
                    "all examples have one mask",
                    f"'{row['type']}' has no neuron",
                    "no neuron is left",
                )
            elif row["ablated"] in ("type", "random", "magnitude"):
                assert row["difference"] == row["difference"], (method, row)
            else:  # fewer neurons may be active than the mask has
                assert row["difference"] == row["difference"] or row["note"], (method, row)


@pytest.mark.slow
def test_every_method_goes_through_cross_ablation_with_every_control(studied):
    model, prompts, _, masks = studied
    texts = {language: list(of_language) for language, of_language in prompts.prompts.items()}
    for method, of_method in masks.items():
        table = ns.cross_ablation(model, texts, of_method, controls=list(CONTROLS), seeds=[0], progress=False)
        rows = table[table["ablated"] != "none"]
        assert set(rows["control"]) == {"none", *CONTROLS}
        for row in rows.to_dict("records"):
            is_defined = row["control"] in ("none", "random", "magnitude") and of_method[row["ablated"]].any()
            assert (row["difference"] == row["difference"]) == is_defined, (method, row)
            assert bool(row["note"]) or is_defined

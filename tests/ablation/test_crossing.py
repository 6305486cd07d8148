"""Cross-ablation against perplexities through Hugging Face's modules with the neurons zeroed by torch hooks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import tl_neuronshare as ns

TEXTS = {
    "en": ["The sky is blue today", "Cats and dogs run home", "One two three four five six", "My house is big"],
    "th": ["ท้องฟ้าเป็นสีฟ้า", "แมว สุนัข บ้าน", "หนึ่ง สอง สาม", "บ้านของฉัน"],
}
COLUMNS = [
    *("ablated", "measured", "control", "perplexity", "log_prob", "difference", "low", "high"),
    *("vs_control", "vs_low", "vs_high", "neurons", "overlap", "tokens", "texts", "note"),
]


def masks_of(model, seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (model.cfg.n_layers, model.cfg.d_mlp)
    return {language: torch.rand(shape, generator=generator) < 0.1 for language in TEXTS}


def log_probs(hugging_face, tokenizer, texts, mask=None) -> list[tuple[float, int]]:
    """The log-probability of each text and its number of predicted tokens, one text at a time."""
    hooks = []
    for layer, module in enumerate(hugging_face.model.layers):
        if mask is not None:
            zeroed = mask[layer]
            hooks.append(
                module.mlp.down_proj.register_forward_pre_hook(
                    lambda _, given, zeroed=zeroed: (given[0].masked_fill(zeroed, 0.0),)
                )
            )
    found = []
    for text in texts:
        tokens = torch.tensor([tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids])
        with torch.no_grad():
            logits = hugging_face(tokens[None]).logits[0].double().log_softmax(-1)
        found.append((logits[:-1].gather(1, tokens[1:, None]).sum().item(), len(tokens) - 1))
    for hook in hooks:
        hook.remove()
    return found


def test_it_equals_brute_force(animals, backend):
    model = animals.lens("llama", backend)
    masks = masks_of(model)
    table = ns.cross_ablation(model, TEXTS, masks, controls=[], prepend_bos=True)
    assert list(table.columns) == COLUMNS
    of_model = animals.hugging_face("llama")
    for row in table.itertuples():
        mask = masks.get(row.ablated)
        scored = log_probs(*of_model, TEXTS[row.measured], mask)
        total, n_tokens = (sum(column) for column in zip(*scored, strict=True))
        assert (row.tokens, row.texts, row.control) == (n_tokens, 4, "none")
        assert row.log_prob == pytest.approx(total / n_tokens, abs=1e-4)
        assert row.perplexity == pytest.approx(np.exp(-total / n_tokens), rel=1e-3)
        plain = sum(each for each, _ in log_probs(*of_model, TEXTS[row.measured])) / n_tokens
        assert row.difference == pytest.approx(total / n_tokens - plain, abs=1e-4)
        assert row.neurons == (0 if mask is None else int(mask.sum()))
    assert table[["ablated", "measured"]].to_numpy().tolist() == [
        *(["none", "en"], ["none", "th"], ["en", "en"], ["en", "th"], ["th", "en"], ["th", "th"])
    ]


def test_controls_have_the_masks_size_and_are_compared_with_it(animals, monkeypatch):
    model = animals.lens("llama", "bridge")
    masks = masks_of(model)
    how = {"controls": ["random", "magnitude"], "seeds": [3, 4]}
    table = ns.cross_ablation(model, TEXTS, masks, **how)
    rows = table.set_index(["ablated", "control", "measured"]).sort_index()
    for name, mask in masks.items():
        for control in how["controls"]:
            for language in TEXTS:
                row, own = rows.loc[name, control, language], rows.loc[name, "none", language]
                assert row["neurons"] == own["neurons"] == int(mask.sum())
                assert row["vs_control"] == pytest.approx(own["log_prob"] - row["log_prob"])
                assert row["difference"] == pytest.approx(
                    row["log_prob"] - rows.loc["none", "none", language]["log_prob"]
                )
        assert (rows.loc[name, "magnitude"]["overlap"] == 0).all()  # matches are outside the mask
        assert (rows.loc[name, "random"]["overlap"] > 0).any()
    pd.testing.assert_frame_equal(table, ns.cross_ablation(model, TEXTS, masks, **how))
    other = ns.cross_ablation(model, TEXTS, masks, **how | {"seeds": [5, 6]})
    assert (other["log_prob"] != table["log_prob"]).any()
    alone = ns.cross_ablation(model, TEXTS, {"th": masks["th"]}, **how)
    both = table[table["ablated"].isin(["none", "th"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, both)  # what else is ablated does not matter


def test_magnitude_is_matched_by_the_mean_impact_in_the_language(animals, monkeypatch):
    model = animals.lens("llama", "bridge")
    hugging_face, tokenizer = animals.hugging_face("llama")
    seen = []
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0][0].abs().double()))
        for layer in hugging_face.model.layers
    ]
    totals, n_tokens = 0.0, 0
    for text in TEXTS["th"]:
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        seen.clear()
        with torch.no_grad():
            hugging_face(torch.tensor([tokens]))
        totals, n_tokens = totals + torch.stack([each.sum(0) for each in seen]), n_tokens + len(tokens)
    for hook in hooks:
        hook.remove()
    weights = torch.stack([layer.mlp.down_proj.weight.norm(dim=0).double() for layer in hugging_face.model.layers])
    expected = (totals / n_tokens * weights).detach()
    from tl_neuronshare.ablation import controls

    given = []

    class Seen(controls.Control):
        name = "seen"

        def draw(self, draw):
            given.append(draw.impact()[0])
            return controls.Drawn(draw.mask)

    monkeypatch.setitem(controls.CONTROLS, "seen", Seen())
    mask = masks_of(model)["th"]
    ns.cross_ablation(model, TEXTS, {"th": mask}, controls=["seen"], seeds=[0], prepend_bos=False)
    torch.testing.assert_close(given[0].double(), expected, atol=1e-5, rtol=1e-4)


def test_controls_that_free_text_does_not_have_say_why_and_so_does_a_language_without_neurons(bloom):
    shape = (bloom.cfg.n_layers, bloom.cfg.d_mlp)
    masks = {"en": torch.ones(shape, dtype=torch.bool), "th": torch.zeros(shape, dtype=torch.bool)}
    table = ns.cross_ablation(
        bloom, TEXTS, masks, controls=["random", "random-active", "magnitude", "other-example"], seeds=[0]
    )
    notes = table.groupby(["ablated", "control"])["note"].unique().map(lambda values: values.item())
    assert notes["en", "random-active"] == "activity is not known: the texts were not categorised"
    assert notes["en", "other-example"] == "all examples have one mask"
    assert notes["en", "magnitude"].startswith("fewer neurons are outside the mask than are ablated")
    assert (notes["th"] == "'th' has no neuron").all()
    missing = table[table["note"] != ""]
    assert missing[["perplexity", "log_prob", "difference", "vs_control"]].isna().all(axis=None)
    assert table[table["note"] == ""][["perplexity", "difference"]].notna().all(axis=None)


def test_the_interval_is_over_texts(bloom):
    texts = {language: [*of_language, *of_language[::-1], *of_language] for language, of_language in TEXTS.items()}
    table = ns.cross_ablation(bloom, texts, masks_of(bloom), controls=["random"], seeds=[0])
    assert (table["low"].dropna() <= table["difference"][table["low"].notna()]).all()
    assert (table["high"].dropna() >= table["difference"][table["high"].notna()]).all()
    controls = table[table["control"] == "random"]
    assert ((controls["vs_low"] <= controls["vs_control"]) & (controls["vs_control"] <= controls["vs_high"])).all()
    few = ns.cross_ablation(bloom, TEXTS, masks_of(bloom), controls=["random"], seeds=[0])
    assert few[["low", "high", "vs_low", "vs_high"]].isna().all(axis=None)  # four texts are too few


def test_mean_and_scale(bloom):
    masks = masks_of(bloom)
    means = ns.reference_values(bloom, TEXTS, position="all")
    by_mean = ns.cross_ablation(bloom, TEXTS, masks, controls=[], mode="mean", values=means)
    same = ns.cross_ablation(bloom, TEXTS, masks, controls=[], mode="scale", values=1.0)
    assert (same["difference"].abs() < 1e-6).all()
    assert (by_mean["difference"].iloc[2:].abs() > 1e-6).all()


def test_it_goes_on_where_it_was(animals, tmp_path):
    model = animals.lens("bloom", "bridge")
    how = {"controls": ["random"], "seeds": [0], "batch_size": 2}
    masks = masks_of(model)
    whole = ns.cross_ablation(model, TEXTS, masks, **how)
    with pytest.raises(ns.NeuronShareError, match="Part 1 of 2 is done"):
        ns.cross_ablation(model, TEXTS, masks, out=tmp_path, shard="1/2", **how)
    joined = ns.cross_ablation(model, TEXTS, masks, out=tmp_path, shard="2/2", **how)
    pd.testing.assert_frame_equal(joined, whole)
    with pytest.raises(ns.NeuronShareError, match="masks"):
        ns.cross_ablation(model, TEXTS, masks_of(model, seed=1), out=tmp_path, **how)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": torch.ones(2, 4, dtype=torch.bool)}, "masks is a Tensor; give {language: mask}"),
        ({"masks": {}}, "There are no masks"),
        ({"masks": {"en": torch.ones(2, 3, dtype=torch.bool)}}, r"The mask 'en' has shape \(2, 3\)"),
        ({"masks": {"en": torch.ones(1, 2, 3, dtype=torch.bool)}}, "free text needs one mask for all texts"),
        ({"texts": {"en": ["one"]}}, None),
        ({"controls": ["none"]}, "controls="),
        ({"mode": "resample"}, "mode='resample' takes the values of other examples"),
        ({"mode": "mean"}, "values has none for en, th"),
        ({"mode": "scale"}, "mode='scale' needs a number"),
        ({"layers": [99]}, r"layers=\[99\]; give some of 0 to"),
        ({"seeds": []}, "seeds="),
    ],
)
def test_bad_input(as_users_run_it, animals, changes, message):
    model = animals.lens("bloom", "bridge")
    given = {"texts": TEXTS, "masks": masks_of(model), "seeds": [0], **changes}
    if message is None:  # a single text is enough
        ns.cross_ablation(model, given.pop("texts"), given.pop("masks"), **given)
        return
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.cross_ablation(model, given.pop("texts"), given.pop("masks"), **given)

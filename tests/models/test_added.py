"""What models do to their MLPs' output before they add it to the residual stream."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns
from support import zoo
from tl_neuronshare import models
from tl_neuronshare.models import added

BEFORE, AROUND = "before it adds it to the residual stream", "before or after it is added"
# The configuration, what is said, and whether a formula describes it.
CHANGED = {
    "gemma2": (zoo.KINDS["gemma2"].config, BEFORE, True),
    "gemma3_text": (zoo.MORE_KINDS["gemma3"].config, BEFORE, True),
    "olmo2": (zoo._LLAMA, BEFORE, True),
    "olmo3": (zoo._LLAMA, BEFORE, True),
    "granite": ({**zoo._LLAMA, "residual_multiplier": 0.2}, "multiplies what its MLPs write (layer 0: by 0.2)", True),
    "openai-gpt": ({"vocab_size": 400, "n_embd": 32, "n_layer": 2, "n_head": 4}, AROUND, False),
    "bert": ({**zoo._SIZES, "num_hidden_layers": 2, "is_decoder": True}, AROUND, False),
    "olmo_hybrid": (
        {
            **zoo._LLAMA,
            "num_hidden_layers": 4,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        "(layer 3) before it adds it",  # the layers before it have linear attention, and another norm
        True,
    ),
    "gpt2": (zoo.KINDS["gpt2"].config, None, True),
    "mpt": ({"vocab_size": 400, "d_model": 32, "n_layers": 2, "n_heads": 4}, None, True),
    "phi": (zoo._LLAMA, None, True),  # attention and MLP in parallel
    "llama": (zoo._LLAMA, None, True),
}


@pytest.mark.parametrize(
    ("model_type", "config", "what", "is_known"), [(k, *v) for k, v in CHANGED.items()], ids=CHANGED
)
def test_models_that_change_what_their_mlps_write_are_known(model_type, config, what, is_known, tmp_path):
    model = ns.load_model(zoo.save_model(model_type, config, tmp_path), backend="bridge", device="cpu")
    found = models.added_through(model)
    assert found.change is None if what is None else what in found.change
    assert found.is_known == is_known
    assert found.unknown == (None if is_known else found.change)
    assert [formula.is_identity for formula in found.formulas] == [
        what is None or not is_known or (model_type == "olmo_hybrid" and layer < 3)
        for layer in range(len(found.formulas))
    ]


def test_a_multiplier_that_no_configuration_names_is_not_known(monkeypatch, tmp_path):
    """It may be one that also multiplies the residual stream after later layers."""
    monkeypatch.setattr(added, "_MULTIPLIERS", ())
    zoo.save_model("granite", {**zoo._LLAMA, "residual_multiplier": 3.0}, tmp_path)
    found = models.added_through(ns.load_model(tmp_path, backend="bridge", device="cpu"))
    assert found.unknown == "multiplies what its MLPs write (layer 0: by 3)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_multiplier_is_that_of_the_configuration(dtype, tmp_path):
    """Measured in half precision, it would be a little off."""
    zoo.save_model("granite", {**zoo._LLAMA, "residual_multiplier": 0.2357}, tmp_path)
    model = ns.load_model(tmp_path, backend="bridge", device="cpu", dtype=dtype)
    assert [formula.weight for formula in models.added_through(model).formulas] == 3 * [0.2357]


@pytest.mark.skipif(not models.has_hooked_transformer(), reason="there is no HookedTransformer")
def test_a_hooked_transformer_with_norms_after_its_mlps(tmp_path):
    directory = zoo.save_model("olmo3", zoo._LLAMA, tmp_path)
    model = ns.load_model(directory, backend="hooked", device="cpu")
    assert models.added_through(model).change.startswith("normalises what its MLPs write (layer 0)")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "changed"), [("gemma2", True), ("bloom", False), ("llama", False)])
def test_in_half_precision_too(animals, name, backend, changed, dtype):
    if backend == "hooked" and animals.kind(name).hooked != "directory":
        backend = "bridge"
    model = ns.load_model(animals.directory(name), backend=backend, device="cpu", dtype=dtype)
    found = models.added_through(model)
    assert (found.change is not None) == changed
    assert found.is_known


@pytest.mark.parametrize("name", ["gemma2", "bloom", "opt"])
def test_both_classes_have_the_same_formulas(animals, name, backend):
    hugging_face, _ = animals.hugging_face(name)
    found = models.added_through(animals.lens(name, backend))
    if name != "gemma2":
        assert found.change is None
        return
    for layer, formula in enumerate(found.formulas):
        module = hugging_face.get_submodule(f"model.layers.{layer}.post_feedforward_layernorm")
        assert not formula.centres
        torch.testing.assert_close(formula.weight, 1 + module.weight)

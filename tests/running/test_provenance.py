"""What a result records about its model and prompts."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

import tl_neuronshare as ns
from support import zoo
from tl_neuronshare import models
from tl_neuronshare.running import provenance


def test_processed_weights_are_recorded(animals, prompts):
    bridge = ns.load_model(animals.directory("gpt2"), backend="bridge", device="cpu")
    bridge.enable_compatibility_mode()
    assert ns.categorise(bridge, prompts).metadata["weights"] == "folded"


def test_slices_and_concatenations_have_the_fingerprint_of_their_prompts(bloom, tmp_path):
    prompts = ns.ParallelPrompts(zoo.LONGER)
    whole = ns.categorise(bloom, prompts)
    assert whole[1:].metadata["fingerprint"] == ns.categorise(bloom, prompts[1:]).metadata["fingerprint"]
    again = ns.NeuronSharing.concatenate([whole[:1], ns.categorise(bloom, prompts[1:])])
    assert again == whole
    assert again.metadata["fingerprint"] == whole.metadata["fingerprint"]
    whole.save(tmp_path / "whole")
    assert ns.NeuronSharing.load(tmp_path / "whole")[1:].metadata == whole[1:].metadata


PROCESSING = {
    "not folded": {},
    "folded": {"fold_ln": True},
    "centred": {"center_writing_weights": True},
    "also centred": {"center_unembed": True},
}


@pytest.mark.skipif(not models.has_hooked_transformer(), reason="a bridge is processed as a whole")
@pytest.mark.parametrize(("expected", "options"), PROCESSING.items(), ids=PROCESSING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_processed_weights_are_known(animals, expected, options, dtype):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2, d_model=32, n_ctx=64, d_head=8, d_mlp=64, act_fn="gelu", d_vocab=400, device="cpu", seed=1,
        normalization_type="LN",
    )  # fmt: skip
    model = HookedTransformer(config, AutoTokenizer.from_pretrained(animals.directory("bloom")))
    processing = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
    model.load_and_process_state_dict(model.state_dict(), **(processing | options))
    assert provenance.describe(model.to(dtype))["weights"] == expected.removeprefix("also ")


def test_a_processed_bridge_is_known(animals):
    model = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu")
    assert provenance.describe(model)["weights"] == "not folded"
    model.enable_compatibility_mode(disable_warnings=True)
    assert provenance.describe(model)["weights"] == "folded"


def test_compatibility_mode_without_processing_keeps_raw_weights(animals, prompts):
    model = ns.load_model(animals.directory("llama"), backend="bridge", device="cpu")
    expected = ns.categorise(model, prompts)
    model.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    found = ns.categorise(model, prompts)
    assert found.metadata["weights"] == "not folded"
    assert found.metadata["fingerprint"] == expected.metadata["fingerprint"]
    assert found == expected

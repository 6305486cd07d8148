"""Which values are accepted as a model, and which are refused."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns
from tl_neuronshare.models.lens import has_hooked_transformer


@pytest.mark.usefixtures("as_users_run_it")
def test_not_a_model(animals, prompts):
    for thing in (torch.nn.Linear(2, 2), animals.hugging_face("bloom")[0], "bloom"):
        with pytest.raises(ns.NeuronShareError, match=r"is not a TransformerLens model; load one with .*load_model"):
            ns.categorise(thing, prompts)


@pytest.mark.skipif(not has_hooked_transformer(), reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.usefixtures("as_users_run_it")
def test_an_encoder_is_read_as_a_bridge_only(animals, prompts):
    model = animals.lens("llama", "hooked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.cfg, "attention_dir", "bidirectional")
        with pytest.raises(ns.NeuronShareError, match="is an encoder, which is read as a TransformerBridge only"):
            ns.categorise(model, prompts)

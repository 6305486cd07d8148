"""Which values are accepted as a model, and which are refused."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForMaskedLM

import tl_neuronshare as ns
from support import zoo


@pytest.mark.usefixtures("as_users_run_it")
def test_not_a_model(animals, prompts):
    for thing in (torch.nn.Linear(2, 2), animals.hugging_face("bloom")[0], "bloom"):
        with pytest.raises(ns.NeuronShareError, match=r"is not a TransformerLens model; load one with .*load_model"):
            ns.categorise(thing, prompts)


@pytest.mark.usefixtures("as_users_run_it")
def test_an_encoder_is_refused(tmp_path, prompts):
    config = {
        "vocab_size": 400,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    model = ns.load_model(
        zoo.save_model("bert", config, tmp_path, auto=AutoModelForMaskedLM), backend="bridge", device="cpu"
    )
    with pytest.raises(ns.NeuronShareError, match="is not a decoder-only language model"):
        ns.categorise(model, prompts)

"""Quantised models: types, edits and scores are those of the quantised model, by whatever package it was made."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import tl_neuronshare as ns
from support import reference, zoo
from support.prompts import QUIZ
from tl_neuronshare import models
from tl_neuronshare.models.fingerprint import fingerprint_of_weights
from tl_neuronshare.running import provenance

WIDE = {**zoo._LLAMA, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # bitsandbytes has blocks of 64
DOWN = "model.layers.{}.mlp.down_proj"


def _settings(kind: str) -> dict[str, Any]:
    """What Transformers needs to quantise a model while it loads it."""
    package = {"quanto": "optimum.quanto", "torchao": "torchao", "bnb": "bitsandbytes"}[kind.rstrip("48")]
    try:
        found = importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        pytest.skip(f"{package} is not installed")
    if kind.startswith("quanto"):
        return {"quantization_config": transformers.QuantoConfig(weights=f"int{kind[-1]}")}
    if kind.startswith("bnb"):
        bits = {f"load_in_{kind[-1]}bit": True, "bnb_4bit_compute_dtype": torch.float32}
        return {"quantization_config": transformers.BitsAndBytesConfig(**bits), "device_map": {"": "cpu"}}
    from torchao import quantization

    if kind == "torchao8":
        return {"quantization_config": transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig())}
    four = quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=quantization.granularity.PerGroup(32))
    return {"quantization_config": transformers.TorchAoConfig(four)}


@pytest.fixture(params=["quanto8", "quanto4", "torchao8", "torchao4", "bnb8", "bnb4"])
def quantised(request, tmp_path):
    """A quantised Llama as a bridge, and without TransformerLens."""
    settings = _settings(request.param)
    directory = zoo.save_model("llama", WIDE, tmp_path)

    def load() -> Any:
        how = {"attn_implementation": "eager", "dtype": torch.float32, **settings}
        return AutoModelForCausalLM.from_pretrained(directory, **how).eval()

    tokenizer = AutoTokenizer.from_pretrained(directory)
    bridge = TransformerBridge.boot_transformers(str(directory), hf_model=load(), tokenizer=tokenizer, device="cpu")
    return request.param, bridge, load()


def test_everything_is_that_of_the_quantised_model(quantised):
    kind, bridge, alone = quantised
    before = fingerprint_of_weights(bridge)
    prompts = {language: list(texts) for language, texts in QUIZ.prompts.items()}
    active = reference.active_neurons(alone, bridge.tokenizer, prompts, module=DOWN, n_layers=3, bos=True)
    sharing = ns.categorise(bridge, QUIZ)
    for (example, language, layer), neurons in active.items():
        ours = sharing.activated()[example, QUIZ.languages.index(language), layer]
        assert set(ours.nonzero().flatten().tolist()) == neurons
    mask, tokens = sharing.mask("all-shared")[0], torch.arange(1, 9)[None]
    with torch.no_grad(), reference.zeroed(alone, module=DOWN, mask=mask):
        expected = alone(tokens).logits
    with torch.no_grad():
        ours = bridge.run_with_hooks(tokens, fwd_hooks=ns.ablation_hooks(bridge, mask))
        assert (ours - bridge(tokens)).abs().max() > 0.1
    assert (ours - expected).abs().max() < 1e-4
    for number, layer in enumerate(models.neuron_layers(bridge, "post")):
        linear = alone.get_submodule(DOWN.format(number))
        with torch.no_grad():
            by_neuron = linear(torch.eye(layer.width)) - linear(torch.zeros(1, layer.width))
        assert layer.W_out().shape == by_neuron.shape
        assert (layer.W_out() - by_neuron).abs().max() < 1e-4
    table = ns.attribute(bridge, QUIZ, sharing, n_resamples=10, progress=False)
    assert table["value"].notna().any()
    package = {"quanto": "optimum", "torchao": "torchao", "bnb": "bitsandbytes"}[kind.rstrip("48")]
    assert sharing.metadata["quantised"].startswith(package)
    assert fingerprint_of_weights(bridge) == before == sharing.metadata["fingerprint"].split("-")[0]


def test_weights_that_nobody_can_dequantise_still_have_types(animals, prompts, monkeypatch):
    model = ns.load_model(animals.directory("llama"), backend="bridge", device="cpu")
    expected = ns.categorise(model, prompts)
    monkeypatch.setattr("tl_neuronshare.models.dense._readable", lambda mlp: None)
    monkeypatch.setattr(provenance, "_is_centred", lambda model: False)
    monkeypatch.setattr("tl_neuronshare.models.dense.dequantised", lambda linear: None)
    assert ns.categorise(model, prompts) == expected
    with pytest.raises(ns.NeuronShareError, match=r"no W_out with one row.*not quantised or can be dequantised"):
        ns.attribute(model, QUIZ, ns.categorise(model, QUIZ))


def test_the_fingerprint_sees_a_quantised_weight(tmp_path):
    settings = _settings("torchao8")
    found = []
    for seed in (0, 1):
        directory = zoo.save_model("llama", WIDE, tmp_path / str(seed), seed=seed)
        alone = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", **settings)
        embedding = alone.model.embed_tokens.weight
        with torch.no_grad():  # only quantised weights differ
            for name, parameter in alone.named_parameters():
                if "proj" not in name:
                    parameter.fill_(0.5)
        assert embedding.std() == 0
        tokenizer = AutoTokenizer.from_pretrained(directory)
        found.append(
            fingerprint_of_weights(
                TransformerBridge.boot_transformers(str(directory), hf_model=alone, tokenizer=tokenizer, device="cpu")
            )
        )
    assert found[0] != found[1]

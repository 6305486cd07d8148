"""Models of which accelerate keeps a part on disk: everything is that of the whole model, and the part stays there."""

from __future__ import annotations

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import tl_neuronshare as ns
from support.prompts import QUIZ
from tl_neuronshare import models

MAPS = {
    "bloom": {
        "transformer.word_embeddings": "cpu",
        "transformer.word_embeddings_layernorm": "cpu",
        "lm_head": "cpu",
        "transformer.h.0": "cpu",
        "transformer.h.1": "disk",
        "transformer.h.2": "disk",
        "transformer.ln_f": "disk",
    },
    "llama": {
        "model.embed_tokens": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.layers.2": "disk",
        "model.norm": "disk",
    },
}


@pytest.mark.skipif(models.has_hooked_transformer(), reason="TransformerLens 3 refuses a part on disk")
@pytest.mark.parametrize("name", MAPS)
def test_a_part_on_disk(animals, name, tmp_path):
    directory = animals.directory(name)
    how = {"device_map": MAPS[name], "offload_folder": tmp_path, "dtype": torch.float32}
    split = TransformerBridge.boot_transformers(
        str(directory),
        hf_model=AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", **how),
        tokenizer=AutoTokenizer.from_pretrained(directory),
    )
    whole = animals.lens(name, "bridge")
    before = {name: parameter.device for name, parameter in split.named_parameters()}
    assert {device.type for device in before.values()} == {"cpu", "meta"}
    types = [ns.categorise(model, QUIZ, progress=False) for model in (split, whole)]
    assert torch.equal(types[0].types, types[1].types)
    assert types[0].metadata["fingerprint"] == types[1].metadata["fingerprint"]
    for norm in ("none", "full"):
        scores = [
            ns.attribute(model, QUIZ, sharing, norm=norm, n_resamples=10, progress=False)["value"]
            for model, sharing in zip((split, whole), types, strict=True)
        ]
        assert (scores[0] - scores[1]).abs().max() < 1e-6
    for scoring in ("choice", "exact"):
        one, other = (ns.evaluate(model, QUIZ, scoring=scoring, progress=False) for model in (split, whole))
        assert (one["log_prob"] - other["log_prob"]).abs().max() < 1e-6
        assert list(one["prediction"]) == list(other["prediction"])
    mask, tokens = types[0].mask("all-shared")[0], torch.arange(1, 9)[None]
    with torch.no_grad():
        logits = [model.run_with_hooks(tokens, fwd_hooks=ns.ablation_hooks(model, mask)) for model in (split, whole)]
    assert (logits[0] - logits[1]).abs().max() < 1e-6
    assert before == {name: parameter.device for name, parameter in split.named_parameters()}

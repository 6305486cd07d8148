"""The layers' neurons: where they are read, and which models have none that can be read."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns
from support import zoo
from tl_neuronshare import models


@pytest.mark.parametrize("name", zoo.DENSE)
def test_layers_are_in_numerical_order(animals, name, backend):
    layers = models.neuron_layers(animals.lens(name, backend), "post")
    assert [layer.name for layer in layers] == [f"blocks.{i}.mlp.hook_post" for i in range(len(layers))]
    assert len(layers) == animals.kind(name).n_layers


@pytest.mark.parametrize("name", zoo.KINDS)
def test_output_weights_and_unembedding_are_those_of_hugging_face(animals, name, backend):
    model, (reference, _) = animals.lens(name, backend), animals.hugging_face(name)
    down = reference.get_submodule(zoo.KINDS[name].down.format(1))
    rows = down.weight if name == "gpt2" else down.weight.T  # GPT-2's Conv1D keeps [in, out]
    assert torch.equal(models.neuron_layers(model, "post")[1].W_out(), rows)
    tokens = torch.tensor([7, 3, 399])
    ours, theirs = models.unembedding(model, tokens), reference.get_output_embeddings().weight[tokens].T
    assert torch.equal(ours, theirs)


@pytest.mark.usefixtures("as_users_run_it")
def test_a_model_without_mlps(tmp_path, prompts):
    config = {"vocab_size": 400, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}
    model = ns.load_model(zoo.save_model("mamba", config, tmp_path), device="cpu")
    with pytest.raises(ns.NeuronShareError, match="has no MLP: none of its .* hooks"):
        ns.categorise(model, prompts)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.skipif(not models.has_hooked_transformer(), reason="only HookedTransformer can be attention-only")
def test_an_attention_only_model(prompts):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2, d_model=32, n_ctx=64, d_head=8, attn_only=True, d_vocab=400, device="cpu"
    )
    model = HookedTransformer(config)
    model.tokenizer = zoo.make_tokenizer()
    with pytest.raises(ns.NeuronShareError, match="has no MLP"):
        ns.categorise(model, prompts)

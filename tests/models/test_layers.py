"""The layers' neurons: where they are read, and which models have none that can be read."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns
from support import zoo
from tl_neuronshare import models
from tl_neuronshare.models import dense


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


@pytest.mark.usefixtures("as_users_run_it")
def test_a_mixture_of_experts_is_refused_by_name(tmp_path, prompts):
    config = {
        **{name: size for name, size in zoo.KINDS["llama"].config.items() if name != "head_dim"},
        "num_local_experts": 4,
    }
    model = ns.load_model(zoo.save_model("mixtral", config, tmp_path), backend="bridge", device="cpu")
    with pytest.raises(ns.NeuronShareError, match=r"blocks\.0\.mlp is a mixture of experts.*dense model"):
        ns.categorise(model, prompts)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.skipif(not models.has_hooked_transformer(), reason="TransformerLens 4 has no HookedTransformer")
def test_a_mixture_of_experts_is_refused_on_hooked_transformer_too(prompts):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2, d_model=32, n_ctx=64, d_head=8, d_mlp=64, act_fn="silu", d_vocab=400, device="cpu",
        num_experts=4, experts_per_token=2, gated_mlp=True,
    )  # fmt: skip
    model = HookedTransformer(config)
    model.tokenizer = zoo.make_tokenizer()
    with pytest.raises(ns.NeuronShareError, match=r"blocks\.0\.mlp is a mixture of experts"):
        ns.categorise(model, prompts)


def test_a_gate_of_which_only_the_largest_are_kept():
    """Gemma 3n sets most of a layer's gates to zero; its bridge needs a package for images, so the MLP stands alone."""
    from transformers.models.gemma3n.configuration_gemma3n import Gemma3nTextConfig
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextMLP

    config = Gemma3nTextConfig(
        hidden_size=16, intermediate_size=[64] * 2, num_hidden_layers=2, activation_sparsity_pattern=[0.9, 0.0]
    )
    for number in range(2):
        mlp, seen = Gemma3nTextMLP(config, number), []
        mlp.act_fn.register_forward_hook(lambda _, inputs, output, seen=seen: seen.append(output))
        states = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            mlp(states)
            ours = dense.activation_of(mlp, "blocks.0.mlp")(mlp.gate_proj(states))
        assert torch.equal(ours, seen[0])
        assert ((ours > 0).float().mean() < 0.2) == (number == 0)

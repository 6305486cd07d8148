"""The fingerprint of weights: the same in both classes and versions, and different where one weight differs."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns
from support import zoo
from tl_neuronshare import models
from tl_neuronshare.models import fingerprint
from tl_neuronshare.models.fingerprint import fingerprint_of_weights
from tl_neuronshare.prompts import hashes_of


def of_weights(model) -> str:
    return fingerprint_of_weights(model)


@pytest.mark.skipif(not models.has_hooked_transformer(), reason="TransformerLens 4 has one model class only")
@pytest.mark.parametrize("name", [*zoo.KINDS, "demo"])
def test_both_model_classes_have_the_same_fingerprint(animals, name):
    hooked = animals.lens(name, "hooked")
    assert of_weights(hooked) == of_weights(animals.lens(name, "bridge"))


# The fingerprint of the built-in model's weights on TransformerLens 3.9 and 4.3.
SEEN = "ef664ba53cfbd5e7"


def test_it_is_the_same_on_both_versions_of_transformer_lens(animals, backend):
    assert of_weights(animals.lens("demo", backend)) == SEEN


def one_of_each(hugging_face):
    """Iterate over the parameters of the second layer and those outside the layers."""
    for name, parameter in hugging_face.named_parameters():
        if ".1." in name or not any(f".{layer}." in name for layer in range(12)):
            yield name, parameter


@pytest.mark.parametrize("name", ["bloom", "qwen2", "llama", "opt", "gemma2"])
def test_it_differs_when_one_weight_does(animals, name, tmp_path):
    """One element of each tensor of a layer, the embeddings and the final norm is changed in turn."""
    hugging_face, tokenizer = animals.hugging_face(name)
    found = {of_weights(animals.lens(name, "bridge"))}
    names = [parameter for parameter, _ in one_of_each(hugging_face)]
    for parameter_name, parameter in one_of_each(hugging_face):
        last = (-1,) * parameter.ndim
        before = parameter.data[last].item()
        parameter.data[last] = before + 1e-3
        hugging_face.save_pretrained(tmp_path / parameter_name)
        tokenizer.save_pretrained(tmp_path / parameter_name)
        parameter.data[last] = before
        found.add(of_weights(ns.load_model(tmp_path / parameter_name, backend="bridge", device="cpu")))
    assert len(names) > 8
    assert len(found) == 1 + len(names)


def test_it_differs_when_two_neurons_change_places(animals, tmp_path):
    """The model computes the same, but neuron 0 is not what it was."""
    hugging_face, tokenizer = animals.hugging_face("llama")
    order = [1, 0, *range(2, 96)]
    with torch.no_grad():
        mlp = hugging_face.model.layers[1].mlp
        mlp.gate_proj.weight[:], mlp.up_proj.weight[:] = mlp.gate_proj.weight[order], mlp.up_proj.weight[order]
        mlp.down_proj.weight[:] = mlp.down_proj.weight[:, order]
    hugging_face.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    swapped = ns.load_model(tmp_path, backend="bridge", device="cpu")
    original = animals.lens("llama", "bridge")
    tokens = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(swapped(tokens), original(tokens), atol=1e-4, rtol=1e-4)
    assert of_weights(swapped) != of_weights(original)


@pytest.mark.parametrize("change", ["tokens", "columns", "rows", "opposite"])
def test_it_differs_when_weights_of_one_tensor_change_places(animals, backend, change):
    """Two embeddings, or two columns or rows of W_in, change places; or two weights change by opposite amounts."""
    model = animals.lens("llama", backend)
    before = of_weights(model)
    W_E, W_in = model.embed.W_E, model.blocks[1].mlp.W_in  # noqa: N806
    tensor = W_E if change == "tokens" else W_in
    kept = tensor.data.clone()
    with torch.no_grad():
        if change == "columns":
            W_in[:, [3, 5]] = W_in[:, [5, 3]].clone()
        elif change == "opposite":
            W_in.data.view(torch.int32)[2, 2] += 1
            W_in.data.view(torch.int32)[3, 7] -= 1
        else:
            tensor[[3, 5]] = tensor[[5, 3]].clone()
        assert not torch.equal(tensor, kept)
        assert of_weights(model) != before
        tensor.copy_(kept)
    assert of_weights(model) == before


def test_reading_it_leaves_the_weights_alone(animals):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu", dtype=dtype)
        before = [parameter.clone() for parameter in model.parameters()]
        assert of_weights(model) == of_weights(model)
        assert all(torch.equal(kept, now) for kept, now in zip(before, model.parameters(), strict=True))


def test_the_chunks_are_as_many_as_they_are(animals, monkeypatch):
    """Places are counted through the whole tensor, however it is cut: a swap of distant rows is seen."""
    tensor = torch.arange(60.0).reshape(20, 3)
    swapped = tensor[[17, *range(1, 17), 0, 18, 19]]
    for chunk in (3, 7, 1000):
        monkeypatch.setattr(fingerprint, "_CHUNK", chunk)
        assert fingerprint._checksum(tensor) != fingerprint._checksum(swapped)
        assert fingerprint._checksum(tensor.T.contiguous().T) == fingerprint._checksum(tensor)
    square = tensor[:3]
    assert fingerprint._checksum(square) != fingerprint._checksum(square.T)
    by_hand = sum(
        int(bits) * (2 * row + 1) * (4 * column + 3) * fingerprint._GOLDEN
        for row, numbers in enumerate(square.view(torch.int32).tolist())
        for column, bits in enumerate(numbers)
    )
    assert (fingerprint._checksum(square) - by_hand) % 2**64 == 0


def test_it_is_read_in_half_precision_too(animals, backend):
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    loaded = [ns.load_model(animals.directory("bloom"), backend=backend, device="cpu", dtype=dtype) for dtype in dtypes]
    assert len({of_weights(model) for model in loaded}) == 3
    bridges = [ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu", dtype=d) for d in dtypes]
    assert [of_weights(model) for model in loaded] == [of_weights(model) for model in bridges]


def test_it_differs_when_one_prompt_does_and_not_with_the_order_of_languages(bloom):
    prompts = ns.ParallelPrompts(zoo.LONGER)
    other = {language: list(texts) for language, texts in zoo.LONGER.items()}
    other["th"][1] += "."
    fingerprints = [
        ns.categorise(bloom, given).metadata["fingerprint"]
        for given in (prompts, ns.ParallelPrompts(other), prompts.select(list(zoo.LONGER)[::-1]), prompts[:2])
    ]
    assert fingerprints[0] == fingerprints[2]
    assert len(set(fingerprints)) == 3
    assert len({fingerprint.split("-")[0] for fingerprint in fingerprints}) == 1
    hashes = hashes_of(prompts)
    assert [a == b for a, b in zip(hashes, hashes_of(ns.ParallelPrompts(other)), strict=True)] == [
        True,
        False,
        True,
    ]


OF_THEIR_OWN = {
    "heads that differ between layers": (
        "gemma4_text",
        {
            **zoo._LLAMA,
            "num_hidden_layers": 4,
            "sliding_window": 64,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        "model.layers.1.self_attn.q_proj",
    ),
    "latent attention": (
        "youtu",
        {
            **zoo._SIZES,
            "num_hidden_layers": 2,
            "intermediate_size": 96,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
        },
        "model.layers.1.self_attn.kv_b_proj",
    ),
}


@pytest.mark.parametrize(("model_type", "config", "name"), OF_THEIR_OWN.values(), ids=OF_THEIR_OWN)
def test_attention_that_has_no_heads_of_one_size_is_read_too(model_type, config, name, tmp_path, prompts):
    directory = zoo.save_model(model_type, config, tmp_path)
    model, again = (ns.load_model(directory, backend="bridge", device="cpu") for _ in range(2))
    weights = fingerprint_of_weights(model)
    assert weights == fingerprint_of_weights(again)
    assert ns.categorise(model, prompts).metadata["fingerprint"].startswith(weights)
    with torch.no_grad():
        model.original_model.get_submodule(name).weight[0, 0] += 1
    assert fingerprint_of_weights(model) != weights


class LowRank(torch.nn.Module):
    """A linear map with an adapter beside it, as in LoRA."""

    def __init__(self, linear, rank=2):
        super().__init__()
        self.linear = linear
        self.down = torch.nn.Parameter(torch.randn(rank, linear.in_features))
        self.up = torch.nn.Parameter(torch.randn(linear.out_features, rank))

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("linear"), name)

    def forward(self, inputs):
        return self.linear(inputs) + inputs @ self.down.T @ self.up.T


def test_an_adapter_makes_another_model_of_it(animals, prompts):
    """An adapter changes the activations, though the weights that TransformerLens names stay the same."""
    model = ns.load_model(animals.directory("llama"), backend="bridge", device="cpu")
    before = ns.categorise(model, prompts)
    weights = fingerprint_of_weights(model)
    query = model.blocks[0].attn.q
    query.add_module("_original_component", LowRank(query.original_component))
    after = ns.categorise(model, prompts)
    assert after.activated().ne(before.activated()).any()
    assert fingerprint_of_weights(model) != weights
    with pytest.raises(ns.NeuronShareError, match="Result 1 has .*concatenate results that measured the same"):
        ns.NeuronSharing.concatenate([before, after])
    with torch.no_grad():
        query.original_component.up[0, 0] += 1
    assert fingerprint_of_weights(model) not in (weights, after.metadata["fingerprint"].split("-")[0])

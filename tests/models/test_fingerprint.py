"""The fingerprint of weights: the same in both classes and versions, and different where one weight differs."""

from __future__ import annotations

import copy
from itertools import permutations

import numpy as np
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
SEEN = "d2fbc6248cb15e8f"


def test_it_is_the_same_on_both_versions_of_transformer_lens(animals, backend):
    assert of_weights(animals.lens("demo", backend)) == SEEN


def one_of_each(model):
    """Iterate over the parameters of the second layer and those outside the layers."""
    for name, parameter in model.named_parameters():
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


def odd(n: int) -> list[int]:
    """The odd numbers that places are multiplied by, with Python's own integers."""
    found = []
    for place in range(1, n + 1):
        number = place * fingerprint._GOLDEN
        for shift in (32, 29):
            number = (number + 2**63) % 2**64 - 2**63  # as a signed number of 64 bits
            number = (number ^ (number >> shift)) * (fingerprint._GOLDEN if shift == 32 else 1)
        found.append(number | 1)
    return found


def signed(number: int, bits: int) -> int:
    return (number + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def by_hand(rows: list[list[int]], bits: int) -> int:
    """The checksum of integers, with Python's own integers."""
    total = 0
    for row, numbers in zip(odd(len(rows)), rows, strict=True):
        mixed = [number ^ ((number >> 16) & 0xFFFF) if bits == 32 else number for number in numbers]
        products = (number * column for number, column in zip(mixed, odd(len(numbers)), strict=True))
        total += row * signed(sum(products), 32)
    return signed(total, 64)


@pytest.mark.parametrize(
    ("dtype", "integers"),
    [
        (torch.float32, torch.int32),
        (torch.bfloat16, torch.int16),
        (torch.float16, torch.int16),
        (torch.float64, torch.int32),
        (torch.int8, torch.int8),
        (torch.bool, torch.int8),
    ],
)
def test_a_checksum_is_that_of_the_formula_however_the_tensor_is_laid_out_and_cut(dtype, integers, monkeypatch):
    torch.manual_seed(0)
    tensor = (100 * torch.randn(4, 6, 10)).to(dtype)
    rows = tensor.view(integers).flatten(0, 1).tolist()
    expected = by_hand(rows, 8 * torch.empty(0, dtype=integers).element_size())
    for chunk in (3, 7, 50, 1000):
        monkeypatch.setattr(fingerprint, "_CHUNK", chunk)
        for order in permutations(range(3)):  # the same numbers in the same places, elsewhere in memory
            laid_out = tensor.permute(order).contiguous().permute([order.index(axis) for axis in range(3)])
            assert torch.equal(laid_out, tensor)
            assert fingerprint._checksum(laid_out) == expected
    assert fingerprint._checksum(tensor[0, 0]) == fingerprint._checksum(tensor[0, :1])
    assert fingerprint._checksum(tensor[..., :0]) == fingerprint._checksum(torch.zeros(7, 5, dtype=dtype)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_checksum_differs_when_numbers_do(dtype):
    """Any bit of any number; signs, doubled numbers and exchanged ones, which would cancel in a simpler sum."""
    torch.manual_seed(0)
    tensor = torch.randn(64, 128).to(dtype)
    found = {fingerprint._checksum(tensor)}
    bits = tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    width = 8 * tensor.element_size()
    for bit in range(width):
        changed = bits.clone()
        changed[5, 2 * bit % 128] ^= signed(1 << bit, width)
        found.add(fingerprint._checksum(changed.view(dtype)))
    changes = [
        -tensor,
        2 * tensor,
        tensor.flip(0),
        tensor.flip(1),
        tensor.roll(1, 0),
        tensor.roll(1, 1),
        torch.cat([-tensor[:2], tensor[2:]]),
        torch.cat([2 * tensor[:2], tensor[2:]]),
        torch.cat([-tensor[:, :2], tensor[:, 2:]], 1),
        torch.cat([2 * tensor[:, :2], tensor[:, 2:]], 1),
        *(tensor.clone().index_fill_(0, torch.tensor(row), 0) for row in (0, 1, 63)),
        *(tensor.clone().index_fill_(1, torch.tensor(column), 0) for column in (0, 1, 127)),
    ]
    for row, one, other in [(0, 0, 1), (0, 0, 127), (63, 5, 9), (63, 64, 66)]:
        changed = tensor.clone()
        changed[row, [one, other]] *= -1
        changes.append(changed)
        changes.append(tensor.clone())
        changes[-1][row, [one, other]] = tensor[row, [other, one]]
    found |= {fingerprint._checksum(changed) for changed in changes}
    assert len(found) == 1 + width + len(changes)


@pytest.fixture
def computed(monkeypatch):
    """The models whose weights were read for a fingerprint."""
    models_read = []
    compute = fingerprint._computed
    monkeypatch.setattr(fingerprint, "_computed", lambda model: (models_read.append(model), compute(model))[1])
    return models_read


def afresh(model) -> str:
    with torch.no_grad():
        return fingerprint._computed(model)


def fresh(animals, backend, name):
    """A model of the zoo that no other test has."""
    if backend == "hooked":  # most of them have names that only the zoo makes
        return copy.deepcopy(animals.lens(name, backend))
    return ns.load_model(animals.directory(name), backend=backend, device="cpu")  # a bridge that has run is not copied


@pytest.mark.parametrize("name", ["bloom", "llama", "gemma2", "gpt2"])
def test_it_is_computed_once_for_a_model(animals, backend, name, prompts, computed):
    model = fresh(animals, backend, name)
    before = of_weights(model)
    ns.categorise(model, prompts)
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
        model.run_with_cache(torch.tensor([[5, 6, 7]]))
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, verbose=False)
    assert ns.categorise(model, prompts, site="post", position="any").metadata["fingerprint"].startswith(before)
    with torch.inference_mode():
        assert of_weights(model) == before
    assert len(computed) == 1


def test_a_sample_meets_all_rows_and_columns_of_large_tensors():
    for shape in ((640, 2048), (4096, 4096), (128, 768), (65_537,)):
        sampled = torch.zeros(torch.Size(shape).numel(), dtype=torch.bool)
        sampled[:: fingerprint._STRIDE] = True
        for axis in range(len(shape)):
            assert len(shape) == 1 or sampled.reshape(shape).any(axis).all()


EDITS = {
    "one number": lambda weight: weight[3, 5].add_(1),
    "one number of a view": lambda weight: weight.T[3, 5].mul_(2),
    "a token, around torch": lambda weight: weight.data[3].zero_(),
    "a column, around torch": lambda weight: weight.data[:, 3].zero_(),
    "all, around torch": lambda weight: weight.data.mul_(1.01),
    "a token's signs, through numpy": lambda weight: np.negative(weight.data.numpy()[7], out=weight.data.numpy()[7]),
    "tokens that change places, around torch": lambda weight: weight.data.copy_(weight.data.roll(1, 0)),
    "a new tensor": lambda weight: setattr(weight, "data", torch.zeros_like(weight)),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edits_are_seen(animals, backend, edit):
    """Also those that torch does not see, in tensors so large that only a sample of their numbers is compared."""
    model = ns.demo.load_model(backend=backend, device="cpu")
    before = of_weights(model)
    weight = next(parameter for parameter in model.parameters() if parameter.numel() > fingerprint._FEW)
    assert weight.shape == (4000, 128)
    with torch.no_grad():
        edit(weight)
    assert of_weights(model) == afresh(model) != before


def test_other_changes_are_seen(animals, backend):
    model = ns.load_model(animals.directory("bloom"), backend=backend, device="cpu")
    found = [of_weights(model)]
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(torch.tensor([[5, 6, 7]])).sum().backward()
    optimiser.step()
    found.append(of_weights(model))
    model.to(torch.bfloat16)
    found.append(of_weights(model))
    assert found[-1] == afresh(model)
    assert len(set(found)) == 3


@pytest.mark.parametrize("name", zoo.KINDS)
def test_torch_counts_the_edits_of_every_weight(animals, backend, name, monkeypatch):
    """After one number of one tensor has changed, what is remembered is what would be computed; without a sample."""
    monkeypatch.setattr(fingerprint, "_FEW", 0)
    monkeypatch.setattr(fingerprint, "_STRIDE", 1 << 40)
    model = fresh(animals, backend, name)
    of_weights(model)
    for _, parameter in one_of_each(model):
        with torch.no_grad():
            parameter[(-1,) * parameter.ndim].add_(0.5)
        assert of_weights(model) == afresh(model)


def test_weights_that_torch_does_not_watch_are_read_every_time(animals, computed):
    with torch.inference_mode():
        model = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu")
        before = of_weights(model)
        assert any(parameter.is_inference() for parameter in model.parameters())
        model.blocks[1].mlp.original_component.dense_h_to_4h.weight[3, 5] += 1
        assert of_weights(model) != before
    assert of_weights(model) != before
    assert len(computed) == 3


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

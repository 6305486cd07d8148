"""Greedy decoding, compared with a plain Hugging Face loop that runs each text alone and again for every token."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import tl_neuronshare as ns
from support import reference, zoo
from tl_neuronshare import models
from tl_neuronshare.models import decoding, verification

# Rows of five lengths. Token 0 is BOS, end and padding: three rows begin with it, one of which has no other token.
ROWS = [[5, 6, 7, 8, 9, 10, 11], [0, 12, 13], [0], [0, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29], [30, 31]]
N_NEW = 6
NAMES = [
    "bloom", "gpt2", "llama", "qwen2", "qwen3", "gemma2", "gemma3", "opt", "neox", "phi3", "mistral", "xglm",
]  # fmt: skip


def expected(animals, name, masks=None):
    """Return the tokens of the plain loop, with each row's masked neurons set to zero at all its tokens."""
    hugging_face, _ = animals.hugging_face(name)
    if masks is None:
        return [reference.greedy(hugging_face, row, N_NEW)[len(row) :] for row in ROWS]
    found = []
    for row, mask in zip(ROWS, masks, strict=True):
        with reference.zeroed(hugging_face, module=animals.kind(name).down, mask=mask):
            found.append(reference.greedy(hugging_face, row, N_NEW)[len(row) :])
    return found


def masks_of(model):
    """Return one mask for each row, with a random third of each layer's neurons."""
    width = models.neuron_layers(model, "post")[0].width
    generator = torch.Generator().manual_seed(3)
    return torch.rand(len(ROWS), len(model.blocks), width, generator=generator) < 1 / 3


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_are_those_of_a_plain_loop(animals, name, backend, cached):
    """The rows share a batch; without ablation, with one mask for all rows, and with one mask for each row."""
    model = animals.lens(name, backend)
    masks = masks_of(model)
    longest = max(map(len, ROWS))
    for of_rows, hooks in (
        (None, []),
        (masks[:1].expand(len(ROWS), -1, -1), ns.ablation_hooks(model, masks[0])),
        (masks, ns.ablation_hooks(model, masks, prompt_tokens=longest)),
    ):
        with models.left_as_found(model), models.all_firing(model, hooks):
            assert decoding.greedy(model, ROWS, N_NEW, cached=cached) == expected(animals, name, of_rows)


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_is_used_where_it_is_right(animals, name, backend):
    """This includes bridges whose own `generate` loses the cache without a warning (Transformers 5.24)."""
    model = animals.lens(name, backend)
    assert verification.caches(model)
    seen = []
    with (
        models.left_as_found(model),
        model.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda tensor, hook: seen.append(tuple(tensor.shape[:2])))]),
    ):
        decoding.greedy(model, ROWS, 3, cached=True)
    assert list(dict.fromkeys(seen)) == [(5, 11), (5, 1)]


def test_an_ablation_of_the_last_prompt_token_leaves_the_new_ones_alone(animals, backend):
    """Each row has its own mask at the last prompt token, which is not the last token when all tokens are run again."""
    model = animals.lens("llama", backend)
    masks = masks_of(model)
    hugging_face, _ = animals.hugging_face("llama")
    want = []
    for row, mask in zip(ROWS, masks, strict=True):
        last = len(row) - 1

        def edit(values, neurons, last=last):
            return torch.cat([values[:, :last], values[:, last : last + 1] * ~neurons, values[:, last + 1 :]], dim=1)

        edits = {layer: partial(edit, neurons=neurons) for layer, neurons in enumerate(mask)}
        with reference.edited(hugging_face, module=zoo.KINDS["llama"].down, edits=edits):
            want.append(reference.greedy(hugging_face, row, N_NEW)[len(row) :])
    for cached in (True, False):
        hooks = ns.ablation_hooks(model, masks, position="last", prompt_tokens=11)
        with models.left_as_found(model), models.all_firing(model, hooks):
            assert decoding.greedy(model, ROWS, N_NEW, cached=cached) == want


def test_rows_end_where_they_are_finished(animals):
    model = animals.lens("bloom", "bridge")
    whole = expected(animals, "bloom")
    found = decoding.greedy(model, ROWS, N_NEW, cached=True, is_finished=lambda row, new: len(new) > row)
    assert found == [new[: number + 1] for number, new in enumerate(whole)]

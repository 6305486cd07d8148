"""Forward passes without the vocabulary, and with padding."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns
from support import zoo
from support.watching import Largest
from tl_neuronshare import models
from tl_neuronshare.models.forward import _in_one_copy


def last_values(model, rows, layers):
    """Return each layer's values at the last token of each row."""
    values = {}

    def keep(number, tensors):
        values[number] = layers[number].read(tensors, (slice(None), -1))

    with torch.no_grad(), models.reading(model, layers, keep) as run_once:
        run_once(models.inputs_of(model, rows))
    return [values[layer] for layer in range(len(layers))]


@pytest.mark.parametrize("name", zoo.DENSE)
def test_values_are_those_of_each_row_alone(animals, name, backend):
    """Rows are padded on the left with the BOS and end token, with which one row also begins."""
    model = animals.lens(name, backend)
    layers = models.neuron_layers(model, "post")
    rows = [[5, 6, 7, 8, 9, 10, 11], [0, 12, 13], [14]]
    together = last_values(model, rows, layers)
    for index, row in enumerate(rows):
        for all_rows, one in zip(together, last_values(model, [row], layers), strict=True):
            torch.testing.assert_close(all_rows[index], one[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", zoo.KINDS)
def test_no_logits_are_made(animals, name, backend):
    model = animals.lens(name, backend)
    layers = models.neuron_layers(model, "post")
    with torch.no_grad():
        with Largest(400) as full:
            model(torch.tensor([[5, 6, 7, 8]]))
        with Largest(400) as ours:
            last_values(model, [[5, 6, 7, 8]], layers)
    assert (1, 4, 400) in full.shapes  # the watch sees full logits here, and must not see them below
    assert ours.shapes <= {(0, 1, 400)}


def test_hooks_of_the_user_on_the_unembedding_see_the_last_position(animals):
    model = animals.lens(zoo.DENSE[0], "bridge")
    layers = models.neuron_layers(model, "post")
    shapes = []
    with model.hooks(fwd_hooks=[("unembed.hook_out", lambda logits, hook: shapes.append(tuple(logits.shape)))]):
        hooked = last_values(model, [[5, 6, 7, 8]], layers)
    assert shapes == [(1, 1, 400)]
    for theirs, ours in zip(hooked, last_values(model, [[5, 6, 7, 8]], layers), strict=True):
        assert theirs.equal(ours)


def test_tensors_of_all_kinds_leave_a_device_in_one_copy():
    given = [
        torch.tensor([[True, False], [False, False]]).T,
        torch.arange(3, dtype=torch.uint8),
        torch.zeros(2, 0, dtype=torch.uint8),
        torch.arange(6).view(2, 3)[:, 1:],
        torch.tensor(2.5, dtype=torch.float64),
        torch.tensor([[torch.nan, -1.0]]),
        torch.tensor([1.5], dtype=torch.bfloat16),
    ]
    for copy, tensor in zip(_in_one_copy(given), given, strict=True):
        torch.testing.assert_close(copy, tensor, rtol=0, atol=0, equal_nan=True)
        assert copy.is_contiguous()


def test_what_a_batch_gives_does_not_depend_on_longer_texts_before(backend):
    """A HookedTransformer keeps the ALiBi biases of the longest text, and takes a shifted part of them."""
    model = ns.demo.load_model(backend=backend, device="cpu")
    short, long = ([list(range(5 + row, 5 + row + length)) for row in range(20)] for length in (10, 60))
    before = last_values(model, short, layers := models.neuron_layers(model, "post"))
    last_values(model, long, layers)
    again = last_values(model, short, layers)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(before, again, strict=True))

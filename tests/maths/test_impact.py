"""Both scores as pure functions, compared with values by hand and with one layer at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tl_neuronshare as ns
from tl_neuronshare import models
from tl_neuronshare.maths.impact import largest


def test_both_scores_by_hand():
    post = torch.tensor([[2.0, -3.0], [0.0, 1.0]])
    W_out = torch.tensor([[3.0, 4.0, 0.0], [1.0, 0.0, -1.0]])  # noqa: N806
    of_rows = torch.tensor([[1.0, 1.0, 5.0], [0.0, 0.0, 2.0]])
    torch.testing.assert_close(ns.generation_impact(post, W_out), torch.tensor([[10, 3 * 2**0.5], [0, 2**0.5]]))
    torch.testing.assert_close(ns.correctness_impact(post, W_out, of_rows), torch.tensor([[14.0, 12.0], [0.0, -2.0]]))
    torch.testing.assert_close(
        ns.correctness_impact(post, W_out, of_rows[0]), torch.tensor([[14.0, 12.0], [0.0, -4.0]])
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scores_are_computed_in_at_least_float32(dtype):
    numbers = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    post, W_out, unembedding = numbers[:, :8], numbers[:, 8:24].reshape(8, 6), numbers[0, 24:30]  # noqa: N806
    exact = post.double() * (W_out.double() @ unembedding.double())
    found = ns.correctness_impact(post, W_out, unembedding)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)
    exact = post.double().abs() * W_out.double().norm(dim=-1)
    torch.testing.assert_close(ns.generation_impact(post, W_out).double(), exact, rtol=1e-5, atol=1e-6)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.data())
def test_the_largest_and_of_equal_ones_the_first(numbers, data):
    k = data.draw(st.integers(1, len(numbers)))
    expected = sorted(range(len(numbers)), key=lambda place: (-numbers[place], place))[:k]
    found = largest(torch.tensor(numbers, dtype=torch.float32), k)
    assert set(found.nonzero().flatten().tolist()) == set(expected)


def test_all_layers_at_once_are_each_layer_alone(animals, backend):
    """`model.W_out` is [layer, neuron, d_model] and the values are [row, layer, neuron], as the docstrings allow."""
    model = animals.lens("bloom", backend)
    W_out = torch.stack([layer.W_out() for layer in models.neuron_layers(model, "post")])  # noqa: N806
    assert torch.equal(model.W_out, W_out)
    post, tokens = torch.randn(5, 3, 128), torch.randn(5, 32)
    for whole, of_layer in (
        (ns.generation_impact(post, W_out), lambda layer: ns.generation_impact(post[:, layer], W_out[layer])),
        (ns.generation_impact(post[0], W_out)[None], lambda layer: ns.generation_impact(post[:1, layer], W_out[layer])),
        (
            ns.correctness_impact(post, W_out, tokens[:, None]),
            lambda layer: ns.correctness_impact(post[:, layer], W_out[layer], tokens),
        ),
        (
            ns.correctness_impact(post, W_out, tokens[0]),
            lambda layer: ns.correctness_impact(post[:, layer], W_out[layer], tokens[0]),
        ),
    ):
        for layer in range(3):
            torch.testing.assert_close(whole[:, layer], of_layer(layer))

"""The pure functions from values to bits, compared with loops and the definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tl_neuronshare as ns
from support import zoo
from tl_neuronshare.maths.activation import (
    as_position,
    count_bits,
    count_borderline,
    extreme,
    nth_from_the_end,
    pack,
    pack_above,
    pack_with_torch,
    unpack,
)

EPS = torch.finfo(torch.float32).eps
finite = st.floats(-100, 100, width=32)


@st.composite
def values_and_counted(draw):
    """Draw a layer's values and which tokens count: at least one in each prompt, with padding and gaps anywhere."""
    shape = draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=6))
    values = torch.from_numpy(draw(hnp.arrays(np.float32, shape, elements=finite)))
    counted = torch.from_numpy(draw(hnp.arrays(np.bool_, shape[:2])))
    counted[:, draw(st.integers(0, shape[1] - 1))] = True
    return values, counted


@given(values_and_counted(), st.sampled_from(["any", "all"]), finite)
def test_extremes_decide_any_and_all(drawn, position, threshold):
    """The largest value is above a threshold if any value is, and the smallest if all values are."""
    values, counted = drawn
    spoilt = values.masked_fill(~counted[..., None], torch.nan)  # values in the padding must not matter
    chosen, scale = extreme(spoilt, counted, position)
    for prompt in range(len(values)):
        rows = [row for row, counts in zip(values[prompt], counted[prompt], strict=True) if counts]
        quantifier = any if position == "any" else all
        for neuron in range(values.shape[2]):
            expected = quantifier(row[neuron].item() > threshold for row in rows)
            assert (chosen[prompt, neuron] > threshold).item() is expected
        squares = [value.item() ** 2 for row in rows for value in row]
        assert scale[prompt].item() == pytest.approx((sum(squares) / len(squares)) ** 0.5, rel=1e-4, abs=1e-20)
    everything = torch.ones_like(counted)
    for ours, theirs in zip(extreme(values, None, position), extreme(values, everything, position), strict=True):
        torch.testing.assert_close(ours, theirs)


@given(values_and_counted())
def test_an_index_counts_from_the_last_counted_token(drawn):
    values, counted = drawn
    for nth in range(1, int(counted.sum(1).min()) + 1):
        chosen = values[torch.arange(len(values)), nth_from_the_end(counted, nth)].unsqueeze(1)
        for prompt in range(len(values)):
            rows = [row for row, counts in zip(values[prompt], counted[prompt], strict=True) if counts]
            assert torch.equal(chosen[prompt, 0], rows[-nth])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("position", ["any", "all"])
def test_the_scale_of_values_that_are_no_numbers_is_none_either(value, position):
    """The scale shows that such values exist; the largest value alone would hide -inf."""
    values = torch.ones(2, 3, 4)
    values[1, 1, 2] = value
    assert extreme(values, None, position)[1].isfinite().squeeze(1).tolist() == [True, False]


def test_half_precision_is_widened_and_double_kept():
    for dtype, wide in {
        torch.bfloat16: torch.float32,
        torch.float16: torch.float32,
        torch.float64: torch.float64,
    }.items():
        chosen, scale = extreme(torch.ones(1, 2, 3, dtype=dtype), None, "any")
        assert (chosen.dtype, scale.dtype) == (wide, wide)


def test_borderline_values_are_counted_by_hand():
    values = torch.tensor([[1.0, 1.0, 1.0, -1.0], [0.0, 8 * EPS, -8 * EPS, 2.0]])
    ones = torch.ones(2, 1)
    # The two small values are near 0 and near eps; exact hits of 1, and the value 0, do not count.
    assert count_borderline(values, [0.0, 1.0, EPS], ones, torch.float32).tolist() == [[0, 2], [0, 0], [0, 2]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_half_an_eps_is_near(dtype):
    eps = torch.finfo(dtype).eps
    values = torch.tensor([[0.4 * eps, -0.5 * eps, 0.6 * eps, 0.0, 1.0]])
    assert count_borderline(values, [0.0], torch.ones(1, 1), dtype).tolist() == [[2]]
    assert count_borderline(values, [0.0], torch.ones(1, 1), torch.float32).tolist() == [[0]]


@pytest.mark.parametrize(
    ("dtype", "site"), [(torch.bfloat16, "post"), (torch.bfloat16, "gate"), (torch.float16, "post")]
)
def test_about_as_many_are_borderline_as_differ_from_single_precision(animals, dtype, site):
    prompts = ns.ParallelPrompts(zoo.LONGER)
    directory = animals.directory("llama")
    single, half = (
        ns.categorise(ns.load_model(directory, backend="bridge", device="cpu", dtype=each), prompts, site=site)
        for each in (torch.float32, dtype)
    )
    differ = (single.activated() != half.activated()).float().mean().item()
    assert 0.25 * differ <= half.metadata["borderline_fraction"] <= 5 * differ


values_near_zero = st.sampled_from([0.0, EPS, -EPS, 15.9 * EPS, -16 * EPS, 16 * EPS, 17 * EPS, 1.0, 0.5, 0.5 + EPS])


@given(
    hnp.arrays(np.float32, (2, 5), elements=values_near_zero.map(np.float32)),
    st.lists(st.sampled_from([0.0, 0.5, -EPS, 8 * EPS, 1.0]), min_size=1, max_size=4),
    st.sampled_from([0.25, 1.0, 3.0]),
)
def test_borderline_values_are_those_of_the_definition(values, thresholds, scale):
    values = torch.from_numpy(values)
    counts = count_borderline(values, thresholds, torch.full((2, 1), scale), torch.float32)
    for number, threshold in enumerate(thresholds):
        for prompt in range(2):
            distances = [(abs(value - np.float32(threshold)), value) for value in values[prompt].numpy()]
            expected = sum(0 < distance <= np.float32(16 * EPS * scale) and value != 0 for distance, value in distances)
            assert counts[number, prompt] == expected


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=1, max_dims=3, max_side=20)))
def test_packing_keeps_every_bit_with_numpy_and_with_torch(activated):
    activated = torch.from_numpy(activated)
    assert torch.equal(unpack(pack(activated), activated.shape[-1]), activated)
    assert torch.equal(pack_with_torch(activated), pack(activated))


@given(hnp.arrays(np.float32, (3, 11), elements=finite), finite)
def test_above_a_threshold_is_what_torch_says_it_is(values, threshold):
    """In single and double precision, thresholds are not rounded, and values equal to them are not above them."""
    for dtype in (torch.float32, torch.float64):
        tensor = torch.from_numpy(values).to(dtype)
        for at in (threshold, 0.1, tensor[1, 1].item()):
            assert torch.equal(unpack(pack_above(tensor, at), 11), tensor > at)


@pytest.mark.parametrize("position", [0, 3, True, 1.5, "first", None, "-1"])
def test_positions_that_are_none(position):
    with pytest.raises(ns.NeuronShareError, match=r"position=.* is unknown; use one of last, any, all, or a negative"):
        as_position(position)


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=3, max_side=150)).map(torch.from_numpy))
def test_bits_are_counted_as_booleans_are(activated):
    assert torch.equal(count_bits(pack(activated)), activated.sum(-1))
    assert torch.equal(count_bits(pack(activated)[::2, ..., ::3]), count_bits(pack(activated)[::2, ..., ::3].clone()))

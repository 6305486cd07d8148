"""The definition of activation: which neurons of a layer are activated, and which values are near the threshold.

A neuron is activated for a prompt when its value at the chosen position is greater than the threshold. `any` (at
least one token) and `all` (every token) follow from the largest and the smallest value over the tokens. One reduction
thus serves all thresholds, and no tensor is larger than the values themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from tl_neuronshare.checks import finite
from tl_neuronshare.errors import NeuronShareError

Position = Literal["last", "any", "all", "mask"] | int
_N_EPS, _N_EPS_HALF = 16, 0.5  # how near a value must be to a threshold to be borderline, in half precision too
Number = float | int  # for beartype, which checks types under pytest, an integer is not a `float`
Threshold = float | str  # a number, or a quantile such as "90%"


def as_position(position: Any) -> Position:
    """Return the position after checking it; -1 becomes `last`.

    Raises:
        NeuronShareError: the position is neither one of the names nor a negative index.

    Examples:
        >>> as_position(-1), as_position(-2), as_position("any")
        ('last', -2, 'any')
    """
    if isinstance(position, str) and position in ("last", "any", "all", "mask"):
        return position  # type: ignore[return-value]  # mypy does not narrow a string to the literals
    if isinstance(position, Integral) and not isinstance(position, bool) and position < 0:
        return "last" if position == -1 else int(position)
    raise NeuronShareError(
        f"position={position!r} is unknown; use one of last, any, all, or a negative index, which counts from the "
        "prompt's end (-1 is the last token); an encoder also has mask, the token to be filled in."
    )


def tokens_needed(position: Position) -> int:
    """Return how many tokens a prompt needs for this position."""
    return -position if isinstance(position, int) else 1


def nth_from_the_end(counted: Bool[Tensor, "prompt position"], nth: int) -> Int[Tensor, " prompt"]:
    """Return the place of each prompt's nth counted token from the end; each prompt must have at least n of them.

    Examples:
        >>> nth_from_the_end(torch.tensor([[False, True, True, True], [True, True, True, False]]), 2)
        tensor([2, 1])
    """
    from_the_end = counted.flip(1).cumsum(1).flip(1)
    return ((from_the_end == nth) & counted).int().argmax(1)


def extreme(
    values: Float[Tensor, "prompt position neuron"],
    counted: Bool[Tensor, "prompt position"] | None,
    position: Literal["any", "all"],
) -> tuple[Float[Tensor, "prompt neuron"], Float[Tensor, "prompt 1"]]:
    """Return each neuron's largest (`any`) or smallest (`all`) value over a prompt's tokens, and the root mean square.

    A neuron is above a threshold at any token if its largest value is, and at all tokens if its smallest value is. The
    root mean square is over all neurons and counted tokens of a prompt.

    Args:
        values: the values of one layer.
        counted: which tokens to look at, at least one in each prompt; None is all.
        position: which of the two values to return.

    Examples:
        >>> values, counted = torch.tensor([[[9.0], [-1.0], [1.0]]]), torch.tensor([[False, True, True]])
        >>> extreme(values, counted, "any"), extreme(values, None, "any")[0]
        ((tensor([[1.]]), tensor([[1.]])), tensor([[9.]]))
    """
    squares = torch.linalg.vector_norm(values, dim=-1, dtype=_at_least_single(values.dtype)).square()
    if counted is None:
        mean_squares = squares.mean(1, keepdim=True)
    else:
        fill = -torch.inf if position == "any" else torch.inf
        values = values.masked_fill(rearrange(~counted, "prompt position -> prompt position 1"), fill)
        mean_squares = squares.masked_fill(~counted, 0).sum(1, keepdim=True) / counted.sum(1, keepdim=True)
    if values.shape[1] == 1:
        chosen = values[:, 0]
    elif position == "any":
        chosen = values.amax(1)
    else:
        chosen = values.amin(1)
    return widened(chosen), (mean_squares / values.shape[-1]).sqrt()


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def widened(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert half precision to single, so that thresholds are not rounded to it; keep double precision."""
    return values.to(_at_least_single(values.dtype))


def quantile_of(threshold: str) -> float:
    """Return the quantile that a threshold such as "90%" names, above 0 and below 1; NaN if it names none.

    Examples:
        >>> quantile_of("90%"), quantile_of("high")
        (0.9, nan)
    """
    number = threshold.removesuffix("%")
    is_number = number != threshold and number.replace(".", "", 1).isdecimal()
    quantile = float(number) / 100 if is_number else 0.0
    return quantile if 0 < quantile < 1 else float("nan")


def as_threshold(name: str, value: Any) -> Threshold:
    """Return a threshold after checking it: a finite number, or a quantile such as "90%".

    Raises:
        NeuronShareError: it is neither.

    Examples:
        >>> as_threshold("threshold", 1), as_threshold("threshold", "90%")
        (1.0, '90%')
    """
    if isinstance(value, str):
        if isnan(quantile_of(value)):
            raise NeuronShareError(
                f"{name}={value!r} is not a finite number, and not a quantile above 0 and below 100; give one such as "
                '0.0, or "90%".'
            )
        return value
    return finite(name, value, such_as="0.0, which is the paper's, or a list of numbers")


def absolute(values: Float[Tensor, "*batch neuron"], threshold: Threshold) -> Number | Float[Tensor, "*batch 1"]:
    """Return a threshold as a number or, if it is a quantile, as that quantile of each row's values.

    Examples:
        >>> absolute(torch.tensor([[0.0, 1.0, 4.0], [2.0, 0.0, 8.0]]), "75%")
        tensor([[2.5000],
                [5.0000]])
    """
    if not isinstance(threshold, str):
        return threshold
    ranked, place = widened(values).sort(dim=-1).values, quantile_of(threshold) * (values.shape[-1] - 1)
    below, above = ranked[..., [int(place)]], ranked[..., [min(int(place) + 1, values.shape[-1] - 1)]]
    return below + (place - int(place)) * (above - below)


def count_borderline(
    values: Float[Tensor, "prompt neuron"],
    thresholds: Sequence[Number | Float[Tensor, "prompt 1"]],
    root_mean_square: Float[Tensor, "prompt 1"],
    dtype: torch.dtype,
) -> Int[Tensor, "threshold prompt"]:
    """Count the values that are so near a threshold that rounding could move them across it.

    A value is near if its distance is at most a number of eps of the dtype that the model computes in, times the root
    mean square of that prompt's layer. The number is 16 in single and double precision, where so few values are near
    that it may be cautious. In half precision it is 1/2, so that about as many values are near as really have another
    sign in float32 (docs/categorise.md has the measurements). Values equal to the threshold and values of 0 do not
    count.

    Examples:
        >>> values, eps = torch.tensor([[1.0, -1.0, 3e-7, 0.0]]), torch.finfo(torch.float32).eps
        >>> count_borderline(values, [0.0, 1.0, 1.0 + eps], torch.tensor([[0.7]]), torch.float32)
        tensor([[1],
                [0],
                [1]], dtype=torch.int32)
    """
    n_eps = _N_EPS_HALF if torch.finfo(dtype).bits == 16 else _N_EPS
    reach = n_eps * torch.finfo(dtype).eps * root_mean_square
    distance = torch.empty_like(values)
    counts = []
    for threshold in thresholds:
        torch.sub(values, threshold, out=distance).abs_()
        # Usually no value is near. On a GPU, waiting for this answer would take longer than the counting.
        if values.device.type == "cpu" and not (distance.amin(-1, keepdim=True) <= reach).any():
            counts.append(torch.zeros(len(values), dtype=torch.int32, device="cpu"))
            continue
        # Here 1 is yes and 0 is no: on a CPU, arithmetic is several times faster than comparisons, which make booleans.
        beyond = torch.nextafter(reach, torch.full_like(reach, torch.inf))  # a distance below this is at most the reach
        near = torch.sub(beyond, distance).sign_().clamp_(min=0).mul_(distance.sign_())
        if isinstance(threshold, Tensor) or threshold != 0:  # at threshold 0, zeros are already left out as exact hits
            near.mul_(torch.sign(values, out=distance).abs_())
        counts.append(near.sum(-1).int())
    return torch.stack(counts)


def packed_width(width: int) -> int:
    """Return how many bytes hold one bit for each of `width` neurons."""
    return -(-width // 8)


def neurons_of(widths: Sequence[int], n_measured: int | None = None) -> Bool[Tensor, "layer neuron"]:
    """Return whether each place is a neuron; False where a layer is narrower than the widest.

    Args:
        widths: how many neurons each layer has.
        n_measured: how many of the layers count, from the first; all by default.

    Examples:
        >>> neurons_of([2, 1])
        tensor([[ True,  True],
                [ True, False]])
    """
    is_neuron = torch.arange(max(widths, default=0), device="cpu") < torch.tensor(widths, device="cpu")[:, None]
    is_neuron[len(widths) if n_measured is None else n_measured :] = False
    return is_neuron


def pack_above(
    values: Float[Tensor, "*batch neuron"], threshold: Number | Float[Tensor, "*batch 1"]
) -> UInt8[Tensor, "*batch byte"]:
    """Compare each value with the threshold, or with that of its row, and pack the answers, eight neurons to a byte.

    This is done on the values' device.

    Examples:
        >>> pack_above(torch.tensor([0.5, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.1, 2.0]), 0.0)
        tensor([129, 128], dtype=torch.uint8)
    """
    if values.device.type == "cpu":  # numpy compares several times faster than torch
        number = threshold.numpy() if isinstance(threshold, Tensor) else threshold
        return torch.from_numpy(np.packbits(values.numpy() > number, axis=-1))
    return pack_with_torch(values > threshold)


def pack(activated: Bool[Tensor, "*batch neuron"]) -> UInt8[Tensor, "*batch byte"]:
    """Pack booleans on the CPU, eight neurons to a byte.

    Examples:
        >>> pack(torch.tensor([True, False, False, False, False, False, False, True, True]))
        tensor([129, 128], dtype=torch.uint8)
    """
    return torch.from_numpy(np.packbits(activated.numpy(force=True), axis=-1))


def pack_with_torch(activated: Bool[Tensor, "*batch neuron"]) -> UInt8[Tensor, "*batch byte"]:
    """Pack booleans as `pack` does, on their own device, so that only an eighth of the bytes has to leave a GPU."""
    missing = -activated.shape[-1] % 8
    bits = torch.nn.functional.pad(activated.to(torch.uint8), (0, missing))
    weights = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    return (rearrange(bits, "... (byte bit) -> ... byte bit", bit=8) * weights).sum(-1, dtype=torch.uint8)


def count_true(mask: Bool[Tensor, "*batch neuron"]) -> Int[Tensor, "*batch"]:
    """Count the booleans that are True in each row; on a CPU, many times faster than a sum.

    Examples:
        >>> count_true(torch.tensor([[True, False, True], [False, False, False]]))
        tensor([2, 0])
    """
    return count_bits(mask.view(torch.uint8)) if mask.device.type == "cpu" else mask.sum(-1)


def unpack(packed: UInt8[Tensor, "*batch byte"], width: int) -> Bool[Tensor, "*batch {width}"]:
    """Unpack the booleans of `width` neurons: the reverse of `pack`."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1, count=width).view(np.bool_))


def count_bits(packed: UInt8[Tensor, "*batch byte"]) -> Int[Tensor, "*batch"]:
    """Count the booleans that are True in each row of packed ones, without unpacking them.

    Examples:
        >>> count_bits(pack(torch.tensor([[True, False, True], [False, False, False]])))
        tensor([2, 0])
    """
    n_bytes = packed.shape[-1]
    word = next(size for size in (8, 4, 2, 1) if n_bytes % size == 0)  # as many bytes as can be counted together
    words = np.ascontiguousarray(packed.numpy()).view(f"u{word}")
    return torch.from_numpy(np.bitwise_count(words)).sum(-1)

"""Neurons drawn by random numbers, and matched by size: tensors in, tensors out."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError

NEAR = 0.1  # impacts that differ by at most this share of the sought one are near


def drawn(
    noise: Float[Tensor, "*batch layer neuron"],
    count: Int[Tensor, "*batch layer"],
    within: Bool[Tensor, "*#batch #layer neuron"],
) -> Bool[Tensor, "*batch layer neuron"]:
    """So many neurons of each layer: of those that may be drawn, the ones with the most noise.

    Example:
        >>> noise, within = torch.tensor([[0.9, 0.5, 0.7]]), torch.tensor([[False, True, True]])
        >>> drawn(noise, torch.tensor([1]), within)
        tensor([[False, False,  True]])
    """
    within = within.expand_as(noise)
    _check_enough(count, within.sum(-1), "to draw from")
    order = noise.masked_fill(~within, -1.0).argsort(-1, descending=True)
    first = torch.arange(noise.shape[-1], device=noise.device) < rearrange(count, "... -> ... 1")
    return torch.zeros_like(within).scatter(-1, order, first)


def matched(
    noise: Float[Tensor, "*batch layer neuron"],
    mask: Bool[Tensor, "*batch layer neuron"],
    impact: Float[Tensor, "*batch layer neuron"],
) -> tuple[Bool[Tensor, "*batch layer neuron"], Bool[Tensor, "*batch layer neuron"]]:
    """The match of each neuron, those with the most noise choosing first; and which neurons found none that is near.

    All layers choose at once, one neuron after the other.

    Example:
        >>> mask, impact = torch.tensor([[True, False, False]]), torch.tensor([[1.0, 2.0, 4.0]])
        >>> matched(torch.rand(1, 3), mask, impact)
        (tensor([[False,  True, False]]), tensor([[ True, False, False]]))
    """
    count = mask.sum(-1)
    free = ~mask & impact.isfinite()
    _check_enough(count, free.sum(-1), "outside the mask")
    shape, width = mask.shape, mask.shape[-1]
    sought = impact.reshape(-1, width)
    unused = sought.masked_fill(~free.reshape(-1, width), torch.inf)
    order = noise.masked_fill(~mask, -1.0).reshape(-1, width).argsort(-1, descending=True)
    found, far = (torch.zeros(order.shape, dtype=torch.bool, device=mask.device) for _ in range(2))
    rows, count = torch.arange(len(order), device=mask.device), count.flatten()
    for turn in range(int(count.max()) if len(count) else 0):
        still = count > turn
        seeker = order[still, turn]
        value = sought[rows[still], seeker]
        distance, choice = (unused[still] - value[:, None]).abs().min(-1)
        found[rows[still], choice] = True
        unused[rows[still], choice] = torch.inf
        far[rows[still], seeker] = distance > NEAR * value.abs()
    return found.reshape(shape), far.reshape(shape)


def _check_enough(count: Int[Tensor, "*batch layer"], available: Int[Tensor, "*batch layer"], where: str) -> None:
    short = count > available
    if short.any():
        *example, layer = (int(index) for index in short.nonzero()[0])
        place = (f"example {example[-1]}, " if example else "") + f"layer {layer}"
        raise NeuronShareError(
            f"{place}: {int(count[short][0])} neurons are needed and only {int(available[short][0])} are {where}; "
            "use another control, or fewer neurons."
        )

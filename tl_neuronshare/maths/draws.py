"""Draw neurons at random, or match them to others by impact: tensors in, tensors out."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError

NEAR = 0.1  # two impacts are near if they differ by at most this share of the sought impact


def drawn(
    noise: Float[Tensor, "*batch layer neuron"],
    count: Int[Tensor, "*batch layer"],
    within: Bool[Tensor, "*#batch #layer neuron"],
) -> Bool[Tensor, "*batch layer neuron"]:
    """Draw `count` neurons of each layer: those with the most noise among the neurons in `within`.

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
    """Return matches for a mask's neurons, and which of these have no match that is near.

    In each layer the mask's neurons choose in turn, the one with the most noise first. Each takes the unused neuron
    outside the mask whose impact is nearest to its own. All layers and examples are computed together.

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
    matches, badly_matched = (torch.zeros(order.shape, dtype=torch.bool, device=mask.device) for _ in range(2))
    rows, count = torch.arange(len(order), device=mask.device), count.flatten()
    for turn in range(int(count.max()) if len(count) else 0):
        unfinished = count > turn  # the layers in which a neuron is left to choose
        seeker = order[unfinished, turn]
        value = sought[rows[unfinished], seeker]
        distance, choice = (unused[unfinished] - value[:, None]).abs().min(-1)
        matches[rows[unfinished], choice] = True
        unused[rows[unfinished], choice] = torch.inf
        badly_matched[rows[unfinished], seeker] = distance > NEAR * value.abs()
    return matches.reshape(shape), badly_matched.reshape(shape)


def _check_enough(count: Int[Tensor, "*batch layer"], available: Int[Tensor, "*batch layer"], where: str) -> None:
    """Refuse to take more neurons than there are."""
    short = count > available
    if short.any():
        *example, layer = (int(index) for index in short.nonzero()[0])
        place = (f"example {example[-1]}, " if example else "") + f"layer {layer}"
        raise NeuronShareError(
            f"{place}: {int(count[short][0])} neurons are needed, but only {int(available[short][0])} are {where}; "
            "use a different control, or fewer neurons."
        )

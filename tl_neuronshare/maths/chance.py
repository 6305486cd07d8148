"""What chance alone would give: shares of types and Jaccard indices if sets of neurons were drawn at random. Pure.

The other chance level, of examples that do not mean the same, is `NeuronSharing.mismatched`.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

_Value = TypeVar("_Value", Tensor, float)


def independent_types(activated: Float[Tensor, "*batch language layer"]) -> Float[Tensor, "type *batch layer"]:
    """The expected share of each type if every language's activated neurons were drawn at random, as many as there are.

    Args:
        activated: the share of a layer's neurons that each language activates, 0 to 1.

    Returns:
        Shares, 0 to 1, in the order of NeuronType (non-activated first): what the numbers of activated neurons alone
        give, whichever neurons these are.

    Example:
        >>> independent_types(torch.tensor([[0.5], [0.5]]))[:, 0]  # two languages that each activate half of a layer
        tensor([0.2500, 0.5000, 0.0000, 0.2500])
    """
    # The number of languages that activate a neuron, one language after the other.
    count = [torch.ones_like(activated[..., 0, :])]
    for share in activated.unbind(-2):
        stay, go = [p * (1 - share) for p in count], [p * share for p in count]
        count = [stay[0], *(a + b for a, b in zip(stay[1:], go[:-1], strict=True)), go[-1]]
    none, one, *some, every = count
    return torch.stack([none, one, torch.stack(some).sum(0) if some else torch.zeros_like(none), every])


def jaccard(intersection: _Value, first: _Value, second: _Value) -> _Value:
    """The Jaccard index |A and B| / |A or B| of two sets from their sizes; NaN where both are empty.

    Example:
        >>> jaccard(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(3.0))
        tensor(0.5000)
    """
    return intersection / (first + second - intersection)


def expected_intersection(
    first: Float[Tensor, "*#batch layer"], second: Float[Tensor, "*#batch layer"], widths: Float[Tensor, " layer"]
) -> Float[Tensor, "*batch layer"]:
    """How many neurons two sets of these sizes have in common on average, when drawn at random from each layer.

    `jaccard` of it is the index of the expected counts. The expected index is a little above it: for twice 10 of 100
    neurons .055 against .053, and for more neurons by ever less.

    Example:
        >>> expected_intersection(torch.tensor([10.0]), torch.tensor([50.0]), torch.tensor([100.0]))
        tensor([5.])
    """
    return first * second / widths

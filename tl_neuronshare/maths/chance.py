"""Chance levels: shares of types and Jaccard indices that are expected if sets of neurons are drawn at random.

The other chance level compares examples with different meanings; see `NeuronSharing.mismatched`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

_Value = TypeVar("_Value", Tensor, float)


def independent_types(activated: Float[Tensor, "*batch language layer"]) -> Float[Tensor, "type *batch layer"]:
    """Compute the expected share of each type if each language draws its number of activated neurons at random.

    Args:
        activated: the share of a layer's neurons that each language activates, 0 to 1.

    Returns:
        Shares, 0 to 1, in the order of NeuronType (non-activated first). They depend only on how many neurons are
        activated, not on which.

    Examples:
        >>> independent_types(torch.tensor([[0.5], [0.5]]))[:, 0]  # two languages that each activate half of a layer
        tensor([0.2500, 0.5000, 0.0000, 0.2500])
    """
    # shares[k] is the share of neurons that k of the languages so far activate; each language moves some up by one.
    shares = [torch.ones_like(activated[..., 0, :])]
    for share in activated.unbind(-2):
        stay, rise = [p * (1 - share) for p in shares], [p * share for p in shares]
        shares = [stay[0], *(a + b for a, b in zip(stay[1:], rise[:-1], strict=True)), rise[-1]]
    none, single, *several, every = shares
    partial = torch.stack(several).sum(0) if several else torch.zeros_like(none)
    return torch.stack([none, single, partial, every])


def jaccard(intersection: _Value, first: _Value, second: _Value) -> _Value:
    """Compute the Jaccard index |A and B| / |A or B| of two sets from their sizes; NaN where both are empty.

    Examples:
        >>> jaccard(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(3.0))
        tensor(0.5000)
    """
    return intersection / (first + second - intersection)


def expected_intersection(
    first: Float[Tensor, "*#batch layer"], second: Float[Tensor, "*#batch layer"], widths: Float[Tensor, " layer"]
) -> Float[Tensor, "*batch layer"]:
    """Compute how many neurons two sets of these sizes have in common on average, if drawn at random in each layer.

    `jaccard` of the result is the index of the expected counts. The expected index is a little larger: for two sets of
    10 out of 100 neurons, it is .055 rather than .053. The more neurons, the smaller the difference.

    Examples:
        >>> expected_intersection(torch.tensor([10.0]), torch.tensor([50.0]), torch.tensor([100.0]))
        tensor([5.])
    """
    return first * second / widths


def index_and_chance(
    common: Float[Tensor, "*batch layer"],
    sizes: Float[Tensor, "*#batch layer"],
    other_sizes: Float[Tensor, "*#batch layer"],
    widths: Sequence[int],
) -> tuple[Float[Tensor, "*batch layer_and_all"], Float[Tensor, "*batch layer_and_all"]]:
    """Return the Jaccard index from counts, and that of as many random neurons; last from the sums over layers.

    Examples:
        >>> common, sizes = torch.tensor([[2.0, 1.0]]), torch.tensor([[3.0, 1.0]])
        >>> index_and_chance(common, sizes, sizes, [6, 2])[0]
        tensor([[0.5000, 1.0000, 0.6000]])
    """
    at_random = expected_intersection(sizes, other_sizes, torch.tensor(widths, device="cpu").double())

    def index(intersection: Tensor) -> Tensor:
        return jaccard(*(torch.cat([n, n.sum(-1, keepdim=True)], dim=-1) for n in (intersection, sizes, other_sizes)))

    return index(common), index(at_random)

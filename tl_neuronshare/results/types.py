"""The types of neurons: the paper's definition.

A neuron is one coordinate of an MLP's post-activation vector. For one example, asked in K languages, it is
activated in c of them and so is all-shared (c = K), partial-shared (1 < c < K), specific (c = 1) or
non-activated (c = 0). Source: Wang et al., "Sharing Matters" (arXiv 2406.09265), section 3. A type belongs
to one example, not to the neuron for good.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from tl_neuronshare.arguments import explains
from tl_neuronshare.errors import NeuronShareError


class NeuronType(IntEnum):
    """Name the types: activated in none of the K languages, in one, in some, or in all.

    Examples:
        >>> NeuronType.ALL_SHARED.label
        'all-shared'
    """

    NON_ACTIVATED = 0
    SPECIFIC = 1
    PARTIAL_SHARED = 2
    ALL_SHARED = 3

    @property
    def label(self) -> str:
        """The type's name in tables and figures."""
        return self.name.lower().replace("_", "-")


# From the most to the least shared: the order of tables and figures.
TYPES = tuple(sorted(NeuronType, reverse=True))


@explains
def neuron_types(activated: Bool[Tensor, "*batch language layer neuron"]) -> UInt8[Tensor, "*batch layer neuron"]:
    """Give each neuron its type, from whether it is activated in each language.

    Raises:
        NeuronShareError: the tensor is not boolean, has too few axes, or has fewer than two languages.

    Examples:
        >>> in_english, in_german = [True, True, False], [True, False, False]
        >>> neuron_types(torch.tensor([[in_english], [in_german]]))
        tensor([[3, 1, 0]], dtype=torch.uint8)
    """
    if activated.dtype != torch.bool or activated.ndim < 3:
        raise NeuronShareError(
            f"activated is {activated.dtype} of shape {tuple(activated.shape)}; give booleans (such as values > 0) "
            "with axes language, layer and neuron last."
        )
    n_languages = activated.shape[-3]
    if n_languages < 2:
        raise NeuronShareError(f"activated has {n_languages} language(s); sharing needs at least two.")
    once, twice, every = _levels(activated)
    return once.to(torch.uint8) + twice + every  # with two languages, two is all


def packed_types(
    packed: UInt8[Tensor, "*batch language layer byte"], is_neuron: UInt8[Tensor, "layer byte"]
) -> UInt8[Tensor, "*batch type layer byte"]:
    """Say which neurons are of each type, from packed activations, as packed booleans in the order of NeuronType.

    Args:
        packed: whether each neuron is activated in each language, eight neurons to a byte.
        is_neuron: whether each place is a neuron, packed likewise.

    Examples:
        >>> in_english, in_german = [0b11000000], [0b10000000]
        >>> packed = torch.tensor([[in_english], [in_german]], dtype=torch.uint8)
        >>> packed_types(packed, torch.tensor([[0b11100000]], dtype=torch.uint8)).flatten().tolist()
        [32, 64, 0, 128]
    """
    once, twice, every = _levels(packed & is_neuron)
    return torch.stack([~once & is_neuron, once & ~twice, twice & ~every, every], dim=-3)


def _levels(activated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What at least one language, at least two, and every language activates: booleans, or bits of packed ones."""
    first, *others = activated.unbind(-3)
    once, twice, every = first.clone(), torch.zeros_like(first), first.clone()
    for other in others:
        twice |= once & other
        once |= other
        every &= other
    return once, twice, every


def as_type(type: NeuronType | str) -> NeuronType:
    """Give the NeuronType of this label or number.

    Raises:
        NeuronShareError: an unknown type.

    Examples:
        >>> as_type("specific")
        <NeuronType.SPECIFIC: 1>
    """
    for known in NeuronType:
        if not isinstance(type, bool) and type in (known, known.label):
            return known
    raise NeuronShareError(f"{type!r} is not a type of neuron; use one of {', '.join(known.label for known in TYPES)}.")

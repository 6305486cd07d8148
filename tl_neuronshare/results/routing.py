"""Which experts of a mixture each example is routed to, one bit each, and tables of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from einops import repeat
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import packed_width, unpack
from tl_neuronshare.results.bits import Bits

if TYPE_CHECKING:
    from tl_neuronshare.results.sharing import NeuronSharing

# How many routed experts a layer has, and how many neurons each of them; None for a layer without experts.
Experts = Sequence[tuple[int, int] | None]


class Routing:
    """Keep which experts each example is routed to, in each language and layer.

    At the positions `any` and `all`, these are the experts of at least one token and of every token.

    Args:
        packed: the bits, eight experts to a byte; 0 for layers without experts.
        experts: for each layer, how many routed experts it has and how many neurons each of them; None where it has
            none. Their neurons come first in the layer, expert by expert; those after them are of every token.

    Examples:
        >>> routing = Routing(torch.tensor([[[[0b10100000]], [[0b00100000]]]], dtype=torch.uint8), experts=[(3, 2)])
        >>> routing.routed()[0, :, 0]  # language expert
        tensor([[ True, False,  True],
                [False, False,  True]])
    """

    def __init__(self, packed: UInt8[Tensor, "example language layer byte"] | Bits, experts: Experts) -> None:
        self.bits = packed if isinstance(packed, Bits) else Bits(packed)
        self.experts = tuple(experts)
        stored, expected = self.bits.stored, (len(self.experts), packed_width(self.n_experts))
        if stored.dtype != torch.uint8 or stored.ndim != 4 or tuple(stored.shape[2:]) != expected:
            raise NeuronShareError(
                f"The routing is {stored.dtype} of shape {tuple(stored.shape)}; {expected[0]} layers of at "
                f"most {self.n_experts} experts need torch.uint8 of shape (examples, languages, {expected[0]}, "
                f"{expected[1]})."
            )

    def __eq__(self, other: object) -> bool:
        """Return whether both route the same examples to the same experts."""
        return isinstance(other, Routing) and self.experts == other.experts and self.bits == other.bits

    __hash__ = None  # type: ignore[assignment]  # compared by content, like a tensor's values

    @property
    def packed(self) -> UInt8[Tensor, "example language layer byte"]:
        """The bits, eight experts to a byte."""
        return self.bits.whole

    @property
    def n_experts(self) -> int:
        """The number of experts of the layer that has most of them."""
        return max((layer[0] for layer in self.experts if layer is not None), default=0)

    def at(self, examples: Sequence[int]) -> Routing:
        """Return the routing of other examples."""
        return Routing(self.bits.at(examples), self.experts)

    def routed(self, examples: slice = slice(None)) -> Bool[Tensor, "example language layer expert"]:
        """Unpack which experts each example is routed to; False beyond the experts of a layer."""
        return unpack(self.bits.at(range(len(self.bits))[examples]), self.n_experts)

    def pieces(self) -> Iterator[Bool[Tensor, "example language layer expert"]]:
        """Unpack all examples, some at a time."""
        for _, piece in self.bits.pieces():
            yield unpack(piece, self.n_experts)

    def neurons(
        self, widths: Sequence[int], examples: slice, *, languages: slice = slice(None)
    ) -> Bool[Tensor, "example language layer neuron"]:
        """Say which neurons are computed: those of routed experts, and all that do not belong to a routed expert."""
        routed = self.routed(examples)[:, languages]
        computed = torch.zeros(*routed.shape[:3], max(widths), dtype=torch.bool, device="cpu")
        for layer, (experts, width) in enumerate(zip(self.experts, widths, strict=True)):
            computed[:, :, layer, :width] = True
            if experts is not None:
                n_experts, size = experts
                of_experts = repeat(routed[:, :, layer, :n_experts], "... expert -> ... (expert n)", n=size)
                computed[:, :, layer, : n_experts * size] = of_experts
        return computed


def table(sharing: NeuronSharing) -> pd.DataFrame:
    """Make the table of `NeuronSharing.experts`."""
    if sharing.routing is None:
        raise NeuronShareError("The model of this result is not a mixture of experts; its layers have no experts.")
    counts = torch.stack([routed.sum(0) for routed in sharing.routing.pieces()]).sum(0)
    percent = 100 * counts.double() / sharing.n_examples
    return pd.DataFrame(
        {"layer": layer, "language": language, "expert": expert, "percent": percent[number, layer, expert].item()}
        for layer, experts in enumerate(sharing.routing.experts)
        if experts is not None
        for number, language in enumerate(sharing.languages)
        for expert in range(experts[0])
    )


def most_used(routing: Routing) -> list[list[tuple[int, ...]]]:
    """Give the experts to which most examples are routed, for each layer and language, the most used first.

    There are as many as one example is routed to at most; experts that no example is routed to are left out.

    Examples:
        >>> bits = torch.tensor([[[[0b10000000]], [[0b00100000]]], [[[0b10000000]], [[0b01000000]]]], dtype=torch.uint8)
        >>> most_used(Routing(bits, experts=[(3, 2)]))
        [[(0,), (1,)]]
    """
    pieces = [(routed.sum(-1).amax((0, 1)), routed.sum(0)) for routed in routing.pieces()]
    n_most = torch.stack([most for most, _ in pieces]).amax(0)
    counts = torch.stack([of_piece for _, of_piece in pieces]).sum(0)
    order = counts.sort(dim=-1, descending=True, stable=True).indices
    return [
        [
            tuple(expert for expert in of_language[layer, : n_most[layer]].tolist() if counts[number, layer, expert])
            for number, of_language in enumerate(order)
        ]
        for layer in range(len(routing.experts))
    ]


def named(neurons: NDArray[np.int64], experts: tuple[int, int]) -> dict[str, NDArray[np.int64]]:
    """Return the expert of each neuron of a layer, and the neuron's index in it; expert -1 is what every token uses.

    Examples:
        >>> import numpy as np
        >>> named(np.array([0, 5, 9]), (2, 4))
        {'expert': array([ 0,  1, -1]), 'index': array([0, 1, 1])}
    """
    n_experts, width = experts
    is_routed = neurons < n_experts * width
    return {
        "expert": np.where(is_routed, neurons // max(1, width), -1),
        "index": np.where(is_routed, neurons % max(1, width), neurons - n_experts * width),
    }

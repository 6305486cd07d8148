"""Which neurons a study ablates: those of a type, and controls of the same size. Pure: no model is known here.

Whatever is random is keyed by seed, type and example, so that it does not depend on batches or on what else is drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.draws import drawn
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.results.identity import first_differing
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.results.types import NeuronType

Control = Literal["random", "random-active", "magnitude", "other-example"]
CONTROLS: tuple[Control, ...] = get_args(Control)
_MAJORITY = 0.5


@dataclass(frozen=True)
class Drawable:
    """For which examples something can be ablated, and why not for the others."""

    examples: NDArray[np.bool_]
    why_not: str = ""


class Selection:
    """Which neurons a type has, after the options, and from what its controls are drawn. Knows no model."""

    def __init__(
        self,
        sharing: NeuronSharing,
        prompts: ParallelPrompts,
        types: Sequence[NeuronType],
        *,
        layers: Sequence[int] | None,
        consistent: float | None,
        one_mask: bool,
        equal_size: bool,
    ) -> None:
        self.sharing, self.prompts, self.one_mask, self.equal_size = sharing, prompts, one_mask, equal_size
        self.layers = _as_layers(layers, sharing)
        for name, value in (("one_mask", one_mask), ("equal_size", equal_size)):
            if not isinstance(value, bool):
                raise NeuronShareError(f"{name}={value!r}; give True or False.")
        if consistent is not None and not (isinstance(consistent, Real) and 0 < float(consistent) <= 1):
            raise NeuronShareError(f"consistent={consistent!r}; give a share of the examples, above 0, or None.")
        known = sharing.prompt_hashes is not None or not one_mask  # one mask may be of other prompts
        self.same_prompts = known and len(sharing) == len(prompts) and first_differing(prompts, sharing) is None
        in_layers = torch.zeros(sharing.n_layers, 1, dtype=torch.bool, device="cpu")
        in_layers[self.layers] = True
        self._types = sharing.types
        # Which neurons may count as the type at all; with one mask, which do for every example.
        self._allowed: dict[NeuronType, Bool[Tensor, "layer neuron"]] = {}
        for type in types:
            if one_mask or consistent is not None:
                share = _share_of_examples(self._types, type)
                often = share >= (_MAJORITY if consistent is None else consistent)
            else:
                often = sharing.is_neuron
            self._allowed[type] = often & in_layers
        every = range(len(prompts))
        self._sizes = {type: self._of_type(type, every).sum(-1) for type in types}
        smallest = torch.stack(list(self._sizes.values())).amin(0)
        self.counts = dict.fromkeys(types, smallest) if equal_size else self._sizes

    def _of_type(self, type: NeuronType, examples: Sequence[int]) -> Bool[Tensor, "row layer neuron"]:
        """The type's neurons, before sizes are made equal."""
        if self.one_mask:
            return self._allowed[type].expand(len(examples), -1, -1)
        return (self._types[list(examples)] == type) & self._allowed[type]

    def whole_type(self, type: NeuronType, examples: Sequence[int]) -> Bool[Tensor, "row layer neuron"]:
        """All neurons that are of the type, ablated or not; of other prompts than the types' own that is not known."""
        of_type = self._of_type(type, examples)
        return of_type | (self._types[list(examples)] == type) if self.same_prompts else of_type

    def drawable(self, type: NeuronType, ablated: str) -> Drawable:
        """For which examples this can be ablated, in every language."""
        count, n_examples = self.counts[type], len(self.prompts)
        none = np.zeros(n_examples, dtype=bool)
        empty = [one.label for one in ([*self._sizes] if self.equal_size else [type]) if not self._sizes[one].any()]
        if empty or not count.any():
            of_these = f" in layers {self.layers}" if len(self.layers) < self.sharing.n_layers else ""
            return Drawable(none, f"no neuron is {' or '.join(empty) or 'left'}{of_these}")
        widths = torch.tensor(self.sharing.widths, device="cpu")
        if ablated == "random-active":
            if not self.same_prompts:
                return Drawable(none, "the types are of other prompts: activity is not known")
            return self._where(count <= self._fewest_active, "fewer neurons are active in some language than needed")
        if ablated == "magnitude":
            others = widths - self.whole_type(type, range(n_examples)).sum(-1)
            return self._where(count <= others, "fewer neurons are outside the type than are ablated")
        if ablated == "other-example" and (self.one_mask or n_examples == 1):
            why = "all examples have one mask" if self.one_mask else "there is one example only"
            return Drawable(none, why)
        return Drawable(np.ones(n_examples, dtype=bool))

    def _where(self, enough: Bool[Tensor, "example layer"], why_not: str) -> Drawable:
        short = ~enough
        if not short.any():
            return Drawable(np.ones(len(enough), dtype=bool))
        layer = int(short.sum(0).argmax())
        why = f"{why_not} (layer {layer}: for {int(short[:, layer].sum())} of {len(enough)} examples)"
        return Drawable(enough.all(-1).numpy(), why)

    @cached_property
    def _fewest_active(self) -> Int[Tensor, "example layer"]:
        """How many neurons are active, in the language in which the fewest are."""
        fewest = [self.sharing.activated(language=language).sum(-1)[:, 0] for language in self.prompts.languages]
        return torch.stack(fewest).amin(0)

    def drawn(self, type: NeuronType, seed: int, examples: Sequence[int]) -> Bool[Tensor, "row layer neuron"]:
        """The type's neurons of some examples; with equal sizes as many of them as the smallest type has."""
        mask = self._of_type(type, examples)
        if not self.equal_size:
            return mask
        return drawn(self.noise(seed, type, "equal size", examples), self.counts[type][examples], mask)

    def noise(
        self, seed: int, type: NeuronType, purpose: str, examples: Sequence[int]
    ) -> Float[Tensor, "row layer neuron"]:
        """Random numbers for each neuron, keyed by seed, type, purpose and example; with one mask, not by example."""
        shape = (self.sharing.n_layers, self.sharing.d_mlp)
        if self.one_mask:
            one = torch.rand(
                shape,
                generator=self._generator(seed, type, purpose, "every example"),
                dtype=torch.float32,
                device="cpu",
            )
            return one.expand(len(examples), -1, -1)
        labels = [self.prompts.examples[example] for example in examples]
        return torch.stack(
            [
                torch.rand(
                    shape, generator=self._generator(seed, type, purpose, label), dtype=torch.float32, device="cpu"
                )
                for label in labels
            ]
        )

    def _generator(self, seed: int, type: NeuronType, purpose: str, label: Hashable) -> torch.Generator:
        """A random generator keyed by these."""
        key = repr((int(seed), type.label, purpose, label))
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))

    def other_example(self, seed: int, type: NeuronType, purpose: str, example: int) -> int:
        """Another example than this."""
        others = [other for other in range(len(self.prompts)) if other != example]
        generator = self._generator(seed, type, purpose, self.prompts.examples[example])
        return others[int(torch.randint(len(others), (), generator=generator, device="cpu"))]


def _share_of_examples(types: UInt8[Tensor, "example layer neuron"], type: NeuronType) -> Float[Tensor, "layer neuron"]:
    """For how many of the examples each neuron is of the type."""
    count = torch.zeros(types.shape[1:], dtype=torch.int32, device="cpu")
    for one in types:  # all at once would be eight bytes a neuron and example
        count += one == type
    return count.double() / len(types)


def _as_layers(layers: Any, sharing: NeuronSharing) -> list[int]:
    if layers is None:
        return list(range(sharing.n_layers))
    given = list(layers) if isinstance(layers, Iterable) else []
    found = [int(layer) for layer in given if isinstance(layer, Integral) and layer in range(sharing.n_layers)]
    if not found or len(set(found)) < len(given) or any(isinstance(layer, bool) for layer in given):
        raise NeuronShareError(f"layers={layers!r}; give some of 0 to {sharing.n_layers - 1}, each once.")
    return found

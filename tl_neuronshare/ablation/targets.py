"""Choose what a study ablates: a mask for each name and example. This module does not use the model.

Masks come from the four types of neurons, or the user gives them, one for each example or one for all. Random numbers
are keyed by seed, name and example, so they do not depend on the batches or on what else is drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_neuronshare.checks import Options, flag, layer_numbers, option, or_none, share
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import count_bits, count_true, neurons_of
from tl_neuronshare.maths.draws import drawn
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.results.bits import ranges
from tl_neuronshare.results.identity import first_differing
from tl_neuronshare.results.masks import check_mask
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.results.types import NeuronType, as_type

_MAJORITY = 0.5
_SOME = 32  # how many examples' masks are in memory together
Rows = Callable[[Sequence[int]], Bool[Tensor, "row layer neuron"]]  # gives the masks of some examples


@dataclass(frozen=True)
class Choice(Options):
    """Which neurons of the masks are ablated; see `ablation_study`."""

    layers: Sequence[int] | None = option(
        None, or_none(layer_numbers), help="only these layers (default: all)", type=int, nargs="+", metavar="N"
    )
    equal_size: bool = option(False, flag, help="ablate only as many neurons of each type as the smallest has")
    consistent: float | None = option(
        None,
        or_none(share),
        help="only neurons that are of the type for this share of the examples",
        type=float,
        metavar="SHARE",
    )
    one_mask: bool = option(False, flag, help="the same neurons for every example")


@dataclass(frozen=True)
class Masks:
    """The masks of one name: one for each example, which is made only when it is needed, or one for all.

    Attributes:
        rows: a function that gives the masks of a list of examples.
        n_examples: how many examples there are; None if one mask is for all.
    """

    rows: Rows
    n_examples: int | None

    def share(self) -> Float[Tensor, "layer neuron"]:
        """The share of the examples for which each neuron is in the mask."""
        n_examples = self.n_examples or 1
        first, *others = ranges(n_examples, _SOME)
        counts = self.rows(first).sum(0)
        for some in others:
            counts += self.rows(some).sum(0)
        return counts.double() / n_examples


def masks_of_types(sharing: NeuronSharing, types: Sequence[NeuronType | str]) -> dict[str, Masks]:
    """Make masks of the neurons of each type, by its label."""

    def of_type(type: NeuronType) -> Masks:
        return Masks(lambda examples: sharing.mask(type, examples=examples), len(sharing))

    return {type.label: of_type(type) for type in map(as_type, types)}


def given_masks(masks: Mapping[str, Tensor], *, n_examples: int, widths: Sequence[int]) -> dict[str, Masks]:
    """Check masks that the user gives by name: each is [layer, neuron] or [example, layer, neuron].

    Raises:
        NeuronShareError: a name or a mask cannot be used.
    """
    is_neuron = neurons_of(widths)

    def checked(name: Any, mask: Any) -> Masks:
        if not isinstance(name, str) or name in ("", "none"):
            raise NeuronShareError(
                f"A mask is called {name!r}; give it a different name ('none' means the unablated model)."
            )
        check_mask(mask)
        if mask.shape[-2:] != is_neuron.shape or (mask.ndim == 3 and len(mask) != n_examples):
            raise NeuronShareError(
                f"The mask {name!r} has shape {tuple(mask.shape)}; give {tuple(is_neuron.shape)}, or "
                f"{(n_examples, *is_neuron.shape)} for one mask for each example."
            )
        mask = mask.cpu()
        if (mask & ~is_neuron).any():
            raise NeuronShareError(f"The mask {name!r} has neurons beyond the width of their layer; leave them out.")
        if mask.ndim == 2:
            return Masks(lambda examples: mask.expand(len(examples), -1, -1), None)
        return Masks(lambda examples: mask[list(examples)], n_examples)

    if not masks:
        raise NeuronShareError("There are no masks; give {name: mask}, such as {'late': mask}.")
    return {name: checked(name, mask) for name, mask in masks.items()}


class Targets:
    """Which neurons are ablated under each name, and which their controls may be drawn from.

    Args:
        masks: the masks by name.
        examples: the labels of the examples that are evaluated.
        widths: how many neurons each layer has.
        choice: which of the masks' neurons are ablated.
        active: the activations that `random-active` draws from; None if they are not known.
        spared: neurons that are not matches of `magnitude`, beside the masks' own.
        languages: the languages that are evaluated; all of `active` by default.
        are_of_prompts: whether the masks for each example belong to exactly these examples. With `one_mask` they may
            belong to others.
        unknown: why activity is not known, if it is not.

    Attributes:
        layers: the chosen layers.
        sizes: for each name, how many neurons could be ablated, [example, layer]; this is before `equal_size`.
        counts: for each name, how many neurons are ablated, [example, layer].
    """

    def __init__(
        self,
        masks: Mapping[str, Masks],
        examples: Sequence[Hashable],
        widths: Sequence[int],
        choice: Choice,
        *,
        active: NeuronSharing | None = None,
        spared: Masks | None = None,
        languages: Sequence[str] | None = None,
        are_of_prompts: bool = True,
        unknown: str = "give active=, the NeuronSharing of these prompts",
    ) -> None:
        self.masks, self.examples, self.widths, self.choice, self.active = masks, examples, widths, choice, active
        self.languages, self.are_of_prompts, self.unknown = languages, are_of_prompts, unknown
        self._spared = spared
        self.is_neuron = neurons_of(widths)
        self.layers = list(range(len(widths))) if choice.layers is None else list(choice.layers)
        if max(self.layers) >= len(widths):
            raise NeuronShareError(f"layers={self.layers}; give some of 0 to {len(widths) - 1}, each once.")
        in_layers = torch.zeros(len(widths), 1, dtype=torch.bool, device="cpu")
        in_layers[self.layers] = True
        # The neurons that may be ablated; if one mask is for all examples, this is the mask.
        self._allowed = {name: self._frequent(mask) & in_layers for name, mask in masks.items()}
        self.sizes = {name: self._sizes(partial(self._before_equal_size, name)) for name in masks}
        smallest = torch.stack(list(self.sizes.values())).amin(0)
        self.counts = dict.fromkeys(masks, smallest) if choice.equal_size else self.sizes

    def _frequent(self, mask: Masks) -> Bool[Tensor, "layer neuron"]:
        """The neurons that are in the mask for enough of the examples; all neurons if no share is required."""
        if not (self.choice.one_mask or mask.n_examples is None or self.choice.consistent is not None):
            return self.is_neuron
        return mask.share() >= (_MAJORITY if self.choice.consistent is None else self.choice.consistent)

    def is_one_mask(self, name: str) -> bool:
        """Whether the same neurons are ablated for every example."""
        return self.choice.one_mask or self.masks[name].n_examples is None

    def _sizes(self, rows: Rows) -> Int[Tensor, "example layer"]:
        """How many neurons are in the masks of every example."""
        return torch.cat([count_true(rows(some)) for some in ranges(len(self.examples), _SOME)])

    def sizes_of_whole(self, name: str) -> Int[Tensor, "example layer"]:
        """How many neurons are in the `whole` mask of every example."""
        return self._sizes(partial(self.whole, name))

    def _before_equal_size(self, name: str, examples: Sequence[int]) -> Bool[Tensor, "row layer neuron"]:
        if self.is_one_mask(name):
            return self._allowed[name].expand(len(examples), -1, -1)
        return self.masks[name].rows(examples) & self._allowed[name]

    def whole(self, name: str, examples: Sequence[int]) -> Bool[Tensor, "row layer neuron"]:
        """All neurons of the mask, ablated or not, and those that are spared.

        If the masks are of other prompts, only the ablated are known.
        """
        whole = self._before_equal_size(name, examples)
        if self.are_of_prompts:
            whole = whole | self.masks[name].rows(examples)
        return whole if self._spared is None else whole | self._spared.rows(examples)

    def ablated(self, name: str, seed: int, examples: Sequence[int]) -> Bool[Tensor, "row layer neuron"]:
        """The neurons that are ablated for these examples; with equal sizes, as many as the smallest mask has."""
        mask = self._before_equal_size(name, examples)
        if not self.choice.equal_size:
            return mask
        return drawn(self.noise(seed, name, "equal size", examples), self.counts[name][examples], mask)

    @cached_property
    def fewest_active(self) -> Int[Tensor, "example layer"]:
        """How many neurons are active in the language with the fewest; 0 if activity is not known."""
        if self.active is None:
            return torch.zeros(len(self.examples), len(self.widths), dtype=torch.long, device="cpu")
        columns = [self.active.languages.index(language) for language in self.languages or self.active.languages]
        fewest = [
            count_bits(self.active.bits.at(some)[:, columns] & self.active.packed_is_neuron).amin(1)
            for some in ranges(len(self.active), _SOME)
        ]
        return torch.cat(fewest)

    def noise(self, seed: int, name: str, purpose: str, examples: Sequence[int]) -> Float[Tensor, "row layer neuron"]:
        """Random numbers for each neuron, keyed by seed, name, purpose and, unless one mask is for all, example."""
        shape = tuple(self.is_neuron.shape)

        def noise_for(label: Hashable) -> Float[Tensor, "layer neuron"]:
            generator = generator_of(seed, name, purpose, label)
            return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")

        if self.is_one_mask(name):
            return noise_for("every example").expand(len(examples), -1, -1)
        return torch.stack([noise_for(self.examples[example]) for example in examples])

    def other_example(self, seed: int, name: str, purpose: str, example: int) -> int:
        """Draw a different example."""
        others = [other for other in range(len(self.examples)) if other != example]
        generator = generator_of(seed, name, purpose, self.examples[example])
        return others[int(torch.randint(len(others), (), generator=generator, device="cpu"))]


def knows_activity(sharing: NeuronSharing, prompts: ParallelPrompts, *, assume: bool) -> bool:
    """Whether a result has these prompts' activations; if it does not know its prompts, the answer is `assume`."""
    known = sharing.prompt_hashes is not None or assume
    return known and len(sharing) == len(prompts) and first_differing(prompts, sharing) is None


def generator_of(seed: int, name: str, purpose: str, label: Hashable) -> torch.Generator:
    """Make a random generator whose seed is a hash of the arguments."""
    key = repr((int(seed), name, purpose, label))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))

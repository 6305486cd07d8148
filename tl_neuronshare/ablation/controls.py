"""Controls: neurons that are ablated in a mask's place, each kind drawn to answer one objection.

A kind is a class with `drawable` and `draw`; `register` makes its name known to `ablation_study`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from tl_neuronshare.ablation.targets import Targets
from tl_neuronshare.checks import distinct
from tl_neuronshare.maths.draws import NEAR, drawn, matched


@dataclass(frozen=True)
class Drawable:
    """For which examples something can be ablated, in every language, and why not for the others."""

    examples: NDArray[np.bool_]
    why_not: str = ""


@dataclass(frozen=True)
class Draw:
    """What neurons are drawn for: some examples in one language, with one seed.

    Attributes:
        targets: what is ablated.
        target: the name of the mask.
        control: the name of the control.
        mask: the neurons of the mask itself, for each of the examples.
        impact: gives each neuron's generation impact at the last prompt token of the unablated model, for each of the
            examples; NaN where there is no neuron.
    """

    targets: Targets
    target: str
    control: str
    seed: int
    language: str
    examples: list[int]
    mask: Bool[Tensor, "row layer neuron"]
    impact: Callable[[], Float[Tensor, "row layer neuron"]]

    def noise(self) -> Float[Tensor, "row layer neuron"]:
        """Random numbers for each neuron."""
        return self.targets.noise(self.seed, self.target, self.control, self.examples)


@dataclass(frozen=True)
class Drawn:
    """Neurons that were drawn, and what else is to be summed up over them for the note of the control."""

    mask: Bool[Tensor, "row layer neuron"]
    measures: Mapping[str, Tensor] = field(default_factory=dict)


class Control(ABC):
    """A kind of neurons that are ablated in a mask's place."""

    name: ClassVar[str]
    uses_weights: ClassVar[bool] = False  # so that folded weights change what is drawn

    def drawable(self, targets: Targets, target: str) -> Drawable:
        """For which examples it can be drawn; all by default."""
        return everywhere(targets)

    @abstractmethod
    def draw(self, draw: Draw) -> Drawn:
        """The neurons for each of the examples, for which it can be drawn."""

    def note(self, sums: Mapping[str, float]) -> str:
        """What a reader must know of what was drawn, from the sums of `neurons` and of all measures."""
        return ""


class Itself(Control):
    """The mask itself: not a control, but ablated like one."""

    name = "type"

    def draw(self, draw: Draw) -> Drawn:
        """The mask's own neurons."""
        return Drawn(draw.mask)


CONTROLS: dict[str, Control] = {}


def register(control: type[Control]) -> type[Control]:
    """Make a kind of control known to `ablation_study` by its name."""
    CONTROLS[control.name] = control()
    return control


def chosen_controls(names: object) -> list[Control]:
    """The controls of these names.

    Raises:
        NeuronShareError: an unknown name, or one that appears twice.
    """
    return [CONTROLS[name] for name in distinct("controls", names, known=CONTROLS, least=0)]


def drawable(control: Control, targets: Targets, target: str) -> Drawable:
    """For which examples a control can be drawn; for none where the mask has no neuron."""
    empty = [
        name for name in (targets.sizes if targets.choice.equal_size else [target]) if not targets.sizes[name].any()
    ]
    if empty or not targets.counts[target].any():
        where = f" in layers {targets.layers}" if len(targets.layers) < len(targets.widths) else ""
        return nowhere(targets, f"no neuron is {' or '.join(empty) or 'left'}{where}")
    return control.drawable(targets, target)


def everywhere(targets: Targets) -> Drawable:
    """Drawable for every example."""
    return Drawable(np.ones(len(targets.prompts), dtype=bool))


def nowhere(targets: Targets, why_not: str) -> Drawable:
    """Drawable for no example."""
    return Drawable(np.zeros(len(targets.prompts), dtype=bool), why_not)


def where_enough(enough: Bool[Tensor, "example layer"], why_not: str) -> Drawable:
    """Drawable for the examples that have enough neurons in every layer."""
    short = ~enough
    if not short.any():
        return Drawable(np.ones(len(enough), dtype=bool))
    layer = int(short.sum(0).argmax())
    why = f"{why_not} (layer {layer}: for {int(short[:, layer].sum())} of {len(enough)} examples)"
    return Drawable(enough.all(-1).numpy(), why)


@register
class Random(Control):
    """As many in each layer and example, from all neurons."""

    name = "random"

    def draw(self, draw: Draw) -> Drawn:
        """Any neurons."""
        return Drawn(drawn(draw.noise(), draw.mask.sum(-1), draw.targets.is_neuron))


@register
class RandomActive(Control):
    """As many, from the neurons that are active for that example in that language."""

    name = "random-active"

    def drawable(self, targets: Targets, target: str) -> Drawable:
        """Where enough neurons are active in every language."""
        if targets.active is None:
            why = (
                "the types are of other prompts: activity is not known"
                if not targets.are_of_prompts
                else ("activity is not known; give active=, the NeuronSharing of these prompts")
            )
            return nowhere(targets, why)
        enough = targets.counts[target] <= targets.fewest_active
        return where_enough(enough, "fewer neurons are active in some language than needed")

    def draw(self, draw: Draw) -> Drawn:
        """Active neurons."""
        active = draw.targets.active
        assert active is not None  # else it is not drawable
        of_examples = [active.activated(slice(each, each + 1), language=draw.language)[0] for each in draw.examples]
        return Drawn(drawn(draw.noise(), draw.mask.sum(-1), torch.cat(of_examples)))


@register
class Magnitude(Control):
    """For each neuron the nearest by generation impact at the last prompt token, outside the mask."""

    name = "magnitude"
    uses_weights = True

    def drawable(self, targets: Targets, target: str) -> Drawable:
        """Where enough neurons are outside the mask."""
        widths = torch.tensor(targets.widths, device="cpu")
        others = widths - targets.whole(target, range(len(targets.prompts))).sum(-1)
        return where_enough(targets.counts[target] <= others, "fewer neurons are outside the type than are ablated")

    def draw(self, draw: Draw) -> Drawn:
        """The matches, and how near they are."""
        impact = draw.impact()
        # The mask's neurons that are not ablated (other layers, equal sizes ...) are not matches either.
        spared = draw.targets.whole(draw.target, draw.examples) & ~draw.mask
        matches, not_near = matched(draw.noise(), draw.mask, impact.masked_fill(spared, torch.nan))
        return Drawn(
            matches,
            {
                "not near": not_near,
                "impact": impact.where(matches, 0),
                "impact of the mask": impact.where(draw.mask, 0),
            },
        )

    def note(self, sums: Mapping[str, float]) -> str:
        """How many matches are not near, and how much all of them write."""
        if not sums["not near"]:
            return ""
        written, by_mask = sums["impact"], sums["impact of the mask"]
        all_write = f"write {written / by_mask:.0%} of what the type's do" if by_mask else "write; the type's do not"
        share = sums["not near"] / sums["neurons"]
        return f"{share:.0%} of its neurons are no near match (impact within {NEAR:.0%}), and all {all_write}"


@register
class OtherExample(Control):
    """The same mask's neurons of another example; their number differs."""

    name = "other-example"

    def drawable(self, targets: Targets, target: str) -> Drawable:
        """Where examples have masks of their own, and there is another example."""
        if targets.is_one_mask(target):
            return nowhere(targets, "all examples have one mask")
        return everywhere(targets) if len(targets.prompts) > 1 else nowhere(targets, "there is one example only")

    def draw(self, draw: Draw) -> Drawn:
        """Each example's other."""
        targets = draw.targets
        others = [targets.other_example(draw.seed, draw.target, draw.control, example) for example in draw.examples]
        return Drawn(targets.ablated(draw.target, draw.seed, others))

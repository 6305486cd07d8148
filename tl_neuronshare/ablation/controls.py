"""Draw controls: neurons that are ablated in a mask's place, each kind to answer one objection.

A kind of control is a class with `draw` and maybe `drawable`. `register` makes its name known to `ablation_study`.
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
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import count_true
from tl_neuronshare.maths.draws import NEAR, drawn, matched


@dataclass(frozen=True)
class Drawable:
    """For which examples a control can be drawn in every language, and why not for the others."""

    examples: NDArray[np.bool_]
    why_not: str = ""


@dataclass(frozen=True)
class Draw:
    """What a control is drawn for: examples in one language, with one seed.

    Attributes:
        targets: which neurons are ablated under each name.
        target: the name of the mask.
        control: the name of the control.
        mask: the neurons of the mask itself, for each of the examples.
        impact: gives each neuron's generation impact in the unablated model, at the last prompt token of each of the
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
        """Make random numbers for each neuron."""
        return self.targets.noise(self.seed, self.target, self.control, self.examples)


@dataclass(frozen=True)
class Drawn:
    """The neurons that were drawn, and measures whose sums over neurons the control's note needs."""

    mask: Bool[Tensor, "row layer neuron"]
    measures: Mapping[str, Tensor] = field(default_factory=dict)


class Control(ABC):
    """A way to choose neurons that are ablated in a mask's place."""

    name: ClassVar[str]
    uses_weights: ClassVar[bool] = False  # whether folded weights change what is drawn

    def drawable(self, targets: Targets, target: str) -> Drawable:
        """Say for which examples the control can be drawn; by default for all."""
        return everywhere(targets)

    @abstractmethod
    def draw(self, draw: Draw) -> Drawn:
        """Draw the neurons for each of the examples. The control can be drawn for all of them."""

    def note(self, sums: Mapping[str, float]) -> str:
        """Say what a reader must know about the draw, from the sums of `neurons` and of all measures."""
        return ""


class Itself(Control):
    """The mask itself, which is not a control but is ablated like one."""

    name = "type"

    def draw(self, draw: Draw) -> Drawn:
        """Take the mask's own neurons."""
        return Drawn(draw.mask)


CONTROLS: dict[str, Control] = {}


def register(control: type[Control]) -> type[Control]:
    """Make a kind of control known to `ablation_study` by its name; use it as a decorator of the class."""
    name = getattr(control, "name", None)
    if not (isinstance(control, type) and issubclass(control, Control) and isinstance(name, str)):
        raise NeuronShareError(f"{control!r} cannot be registered; give a subclass of Control with a name.")
    if name in (Itself.name, "none", *CONTROLS):
        raise NeuronShareError(
            f"There is a control {name!r} already, or the name has a meaning; choose a different one."
        )
    CONTROLS[name] = control()
    return control


def chosen_controls(names: object) -> list[Control]:
    """Get the controls with these names.

    Raises:
        NeuronShareError: a name is unknown or appears twice.
    """
    return [CONTROLS[name] for name in distinct("controls", names, known=CONTROLS, least=0)]


def drawable(control: Control, targets: Targets, target: str) -> Drawable:
    """Say for which examples a control can be drawn; for none if the mask has no neurons."""
    empty = [
        name for name in (targets.sizes if targets.choice.equal_size else [target]) if not targets.sizes[name].any()
    ]
    if empty or not targets.counts[target].any():
        where = f" in layers {targets.layers}" if len(targets.layers) < len(targets.widths) else ""
        which = " and ".join(map(repr, empty)) + " has no neuron" if empty else "no neuron is left"
        return nowhere(targets, which + where)
    can_be_drawn = control.drawable(targets, target)
    examples = np.asarray(can_be_drawn.examples)
    if examples.dtype != bool or examples.shape != (len(targets.examples),):
        raise NeuronShareError(
            f"The control {control.name!r} says for which examples it can be drawn by {examples.dtype} of shape "
            f"{examples.shape}; its method drawable must give one boolean for each of {len(targets.examples)} examples."
        )
    return can_be_drawn


def checked_draw(control: Control, draw: Draw) -> Drawn:
    """Draw, and refuse a mask or a measure that a study cannot use.

    Raises:
        NeuronShareError: says what the control's method `draw` should give.
    """
    drawn = control.draw(draw)
    shape, mask = tuple(draw.mask.shape), drawn.mask
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != shape:
        is_what = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise NeuronShareError(f"The control {control.name!r} drew {is_what}; it must give booleans of shape {shape}.")
    targets = draw.targets
    not_chosen = [layer for layer in range(len(targets.widths)) if layer not in targets.layers]
    if (mask & ~targets.is_neuron).any() or mask[:, not_chosen].any():
        raise NeuronShareError(
            f"The control {control.name!r} drew in layers that were not chosen, or beyond a layer's width; it must "
            f"keep to layers {targets.layers}."
        )
    for name, measure in drawn.measures.items():
        if name in ("neurons", "shared") or tuple(measure.shape) != shape:
            raise NeuronShareError(
                f"The control {control.name!r} measures {name!r} with shape {tuple(measure.shape)}; choose a name that "
                f"is not neurons or shared, and give one number for each neuron, of shape {shape}."
            )
    return drawn


def everywhere(targets: Targets) -> Drawable:
    """Drawable for every example."""
    return Drawable(np.ones(len(targets.examples), dtype=bool))


def nowhere(targets: Targets, why_not: str) -> Drawable:
    """Drawable for no example."""
    return Drawable(np.zeros(len(targets.examples), dtype=bool), why_not)


def where_enough(enough: Bool[Tensor, "example layer"], why_not: str) -> Drawable:
    """Drawable for the examples that have enough neurons in every layer."""
    short = ~enough
    if not short.any():
        return Drawable(np.ones(len(enough), dtype=bool))
    layer = int(short.sum(0).argmax())
    how_many = f": for {int(short[:, layer].sum())} of {len(enough)} examples" if len(enough) > 1 else ""
    why = f"{why_not} (layer {layer}{how_many})"
    return Drawable(enough.all(-1).numpy(), why)


@register
class Random(Control):
    """As many neurons as the mask has in each layer and example, drawn from all neurons.

    In a mixture of experts, neurons that are not computed have no effect. So as many are drawn as the mask has among
    the neurons that are computed for the example in the language, at the token at which the types were measured, and as
    many as it has among the others. Without types the routing is not known, and all neurons are alike.
    """

    name = "random"

    def draw(self, draw: Draw) -> Drawn:
        """Draw from all neurons."""
        noise, neurons, active = draw.noise(), draw.targets.is_neuron, draw.targets.active
        if active is None or active.routing is None:
            return Drawn(drawn(noise, count_true(draw.mask), neurons))
        number = active.languages.index(draw.language)
        of_each = [
            active.routing.neurons(active.widths, slice(each, each + 1), languages=slice(number, number + 1))[0, 0]
            for each in draw.examples
        ]
        computed = torch.stack(of_each)
        parts = [drawn(noise, count_true(draw.mask & part), neurons & part) for part in (computed, ~computed)]
        return Drawn(parts[0] | parts[1])


@register
class RandomActive(Control):
    """As many neurons as the mask has, drawn from those that are active for the example in the language."""

    name = "random-active"

    def drawable(self, targets: Targets, target: str) -> Drawable:
        """The examples for which enough neurons are active in every language."""
        if targets.active is None:
            return nowhere(targets, f"activity is not known: {targets.unknown}")
        enough = targets.counts[target] <= targets.fewest_active
        return where_enough(enough, "fewer neurons are active in some language than needed")

    def draw(self, draw: Draw) -> Drawn:
        """Draw from the active neurons."""
        active = draw.targets.active
        assert active is not None  # `drawable` has checked it
        activated = active.activated(draw.examples, language=draw.language)[:, 0]
        return Drawn(drawn(draw.noise(), count_true(draw.mask), activated))


@register
class Magnitude(Control):
    """For each neuron of the mask, the one outside it whose generation impact at the last prompt token is nearest."""

    name = "magnitude"
    uses_weights = True

    def drawable(self, targets: Targets, target: str) -> Drawable:
        """The examples for which enough neurons are outside the mask."""
        widths = torch.tensor(targets.widths, device="cpu")
        others = widths - targets.sizes_of_whole(target)
        return where_enough(targets.counts[target] <= others, "fewer neurons are outside the mask than are ablated")

    def draw(self, draw: Draw) -> Drawn:
        """Match the mask's neurons, and measure how near the matches are."""
        impact = draw.impact()
        # Neurons of the mask that are not ablated (other layers, equal sizes ...) must not be matches either.
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
        """Say how many matches are not near, and how much all of them write."""
        if not sums["not near"]:
            return ""
        written, by_mask = sums["impact"], sums["impact of the mask"]
        all_write = f"write {written / by_mask:.0%} of what the mask's do" if by_mask else "write; the mask's do not"
        share = sums["not near"] / sums["neurons"]
        return f"{share:.0%} of its neurons are no near match (impact within {NEAR:.0%}), and all {all_write}"


@register
class OtherExample(Control):
    """The neurons of the same mask for a different example; their number differs."""

    name = "other-example"

    def drawable(self, targets: Targets, target: str) -> Drawable:
        """All examples, if each has its own mask and there are at least two."""
        if targets.is_one_mask(target):
            return nowhere(targets, "all examples have one mask")
        return everywhere(targets) if len(targets.examples) > 1 else nowhere(targets, "there is one example only")

    def draw(self, draw: Draw) -> Drawn:
        """Take the neurons of a different example for each example."""
        targets = draw.targets
        others = [targets.other_example(draw.seed, draw.target, draw.control, example) for example in draw.examples]
        return Drawn(targets.ablated(draw.target, draw.seed, others))

"""Choose what replaces neurons' values in a study, and make the hooks that put it there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.ablation.hooks import Edit, Mode, as_mode, check_places, hooks_at, layers_to_edit, position_index
from tl_neuronshare.ablation.reference import values_at
from tl_neuronshare.ablation.targets import Targets
from tl_neuronshare.checks import Options, flag, one_of, option
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.evaluation.evaluating import Evaluation
from tl_neuronshare.models import Hooks, LensModel, Site
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.running.loop import Loop


def _as_position(name: str, value: Any) -> str | int:
    if not isinstance(value, str | Integral):
        raise NeuronShareError(f"{name} is a {type(value).__name__}; a study takes all, last, or a negative index.")
    if value not in ("all", "last"):
        return position_index(value)
    return str(value)


@dataclass(frozen=True)
class Replacement(Options):
    """What replaces neurons' values, and at which tokens."""

    mode: Mode | Edit = option(
        "zero", as_mode, help="what replaces the neurons' values (default: zero)", choices=get_args(Mode)
    )
    values: Any = option(None, lambda name, value: value)
    position: Literal["all", "last"] | int = option("all", _as_position)
    site: Site = option("post", partial(one_of, known=get_args(Site)))
    skip_special_tokens: bool = option(False, flag, help="leave BOS and the like alone")

    def check_together(self) -> None:
        """Refuse values that the mode does not use."""
        if self.mode == "resample" and self.values is not None:
            raise NeuronShareError(
                "mode='resample' takes the values of other examples of these prompts; leave values out."
            )

    def check(self, prompts: ParallelPrompts, shape: tuple[int, int]) -> None:
        """Refuse prompts for which values are missing, and values whose shape is not [layer, neuron]."""
        if self.mode == "resample" and len(prompts) == 1:
            raise NeuronShareError("mode='resample' takes the values of another example, but there is only one.")
        if self.mode != "mean" or self.values is None:
            return
        given = self.values if isinstance(self.values, Mapping) else {}
        missing = [language for language in prompts.languages if language not in given]
        if missing:
            raise NeuronShareError(
                f"mode='mean': values has none for {', '.join(missing)}; give {{language: tensor}}, such as "
                "reference_values makes, or leave values out to use the means over these prompts."
            )
        for language, values in given.items():
            if not isinstance(values, Tensor) or values.shape != shape or not values.is_floating_point():
                raise NeuronShareError(
                    f"Language {language!r}: values is not a float tensor of shape {shape}; give one number for each "
                    "neuron."
                )


class Replacing:
    """Makes the hooks that replace the values of the masks' neurons, batch by batch."""

    def __init__(self, model: LensModel, evaluation: Evaluation, targets: Targets, replacement: Replacement) -> None:
        self.model, self.evaluation, self.targets, self.replacement = model, evaluation, targets, replacement
        self.edited = layers_to_edit(model, replacement.site, replacement.mode)
        given = replacement.values
        self._references: dict[str, Tensor] = dict(given) if isinstance(given, Mapping) else {}
        self._check()

    def _check(self) -> None:
        """Refuse a replacement that is not possible, before anything is run."""
        how, prompts = self.replacement, self.evaluation.prompts
        check_places(self.model, how.position, how.skip_special_tokens)
        shape = (len(self.targets.widths), max(self.targets.widths))
        how.check(prompts, shape)
        needed = -int(how.position) if isinstance(how.position, int) else 1
        for language, scorer in self.evaluation.scorers.items():
            shortest = min(scorer.continuations, key=lambda continuation: len(continuation.before))
            if len(shortest.before) < needed:
                raise NeuronShareError(
                    f"Language {language!r}, example {prompts.examples[shortest.example]!r}: the prompt has "
                    f"{len(shortest.before)} token(s), too few for position={how.position}."
                )
        needs_values = how.mode in ("mean", "resample")
        values = torch.zeros(1, *shape, dtype=torch.float32, device="cpu") if needs_values else how.values
        nothing = torch.zeros(1, *shape, dtype=torch.bool, device="cpu")
        self.hooks(nothing, values, needed, torch.zeros(1, needed, dtype=torch.long, device="cpu"))

    def hooks(
        self,
        mask: Bool[Tensor, "row layer neuron"],
        values: Any,
        prompt_tokens: int,
        tokens: Int[Tensor, "row position"],
    ) -> Hooks:
        """Make the hooks for one batch."""
        how = self.replacement
        return hooks_at(
            self.edited,
            mask,
            mode=how.mode,
            values=values,
            position=how.position,
            prompt_tokens=None if how.position == "all" else prompt_tokens,
            text=models.is_text(self.model, tokens) if how.skip_special_tokens else None,
        )

    def values_for(self, language: str, examples: Sequence[int], target: str, seed: int) -> Any:
        """What replaces the values for these examples of a language: a number, means, or a row for each example."""
        if self.replacement.mode == "mean":
            return self._reference(language)
        if self.replacement.mode == "resample":
            others = [self.targets.other_example(seed, target, "resample", example) for example in examples]
            return self._reference(language)[others]
        return self.replacement.values

    def _reference(self, language: str) -> Tensor:
        """The means, given or measured; for `resample` each prompt's values, kept for one language at a time."""
        each = self.replacement.mode == "resample"
        if language not in self._references:
            if each:
                self._references.clear()
            position = "last" if each else self.replacement.position
            values = values_at(
                self.model,
                models.neuron_layers(self.model, "up" if self.replacement.site == "up" else "post"),
                self.evaluation.prompts.prompts[language],
                language,
                index=None if position == "all" else position_index(position),
                how=self.evaluation.how,
                # Each process measures them for itself, since this runs within a batch that no other process runs.
                loop=Loop(),
            )
            self._references[language] = values if each else values.mean(0)
        return self._references[language]

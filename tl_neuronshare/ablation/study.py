"""What breaks when neurons are switched off, and what would have broken anyway.

Each mask (the neurons of a type, or one of the user's own) is ablated for each example, and beside it controls, mostly
of the same size: each answers another objection. Differences are paired by example, and so are their intervals. The
paper (arXiv 2406.09265v2, deactivation) reports types without controls; its all-shared neurons are a large class, so
that their number alone may do the damage.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.ablation.controls import CONTROLS, Control, Draw, Itself, chosen_controls, drawable
from tl_neuronshare.ablation.hooks import Edit, Mode
from tl_neuronshare.ablation.outcomes import Outcome, Sums, scores_of, table_of
from tl_neuronshare.ablation.replacing import Replacement, Replacing
from tl_neuronshare.ablation.targets import Choice, Targets, given_masks, knows_activity, masks_of_types
from tl_neuronshare.checks import distinct, whole
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.evaluation.evaluating import Evaluation, Scoring, ScoringName
from tl_neuronshare.maths.activation import Number
from tl_neuronshare.maths.bootstrap import Bootstrap
from tl_neuronshare.maths.impact import generation_impact
from tl_neuronshare.models import Hooks, LensModel, Site
from tl_neuronshare.prompts import ParallelPrompts, require_prompts
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.results.types import TYPES, NeuronType, as_type
from tl_neuronshare.running import provenance
from tl_neuronshare.running.plan import Batch, BatchSize, Loop, Plan, Running, running

# After each run: the mask's name, what was ablated, the seed, and the run's table of `evaluate`.
OnRun = Callable[[str, str, int | None, pd.DataFrame], None]


def ablation_study(
    model: LensModel,
    prompts: ParallelPrompts,
    sharing_or_masks: NeuronSharing | Mapping[str, Bool[Tensor, "*example layer neuron"]],
    *,
    types: Sequence[NeuronType | str] | None = None,
    controls: Sequence[str] = tuple(CONTROLS),
    active: NeuronSharing | None = None,
    mode: Mode | Edit = "zero",
    values: Number | Mapping[str, Float[Tensor, "layer neuron"]] | None = None,
    seeds: Sequence[int] = range(5),
    scoring: ScoringName = "choice",
    length_normalised: bool = False,
    max_new_tokens: int | None = None,
    stop: Sequence[str] = ("\n",),
    position: Literal["all", "last"] | int = "all",
    skip_special_tokens: bool = False,
    site: Site = "post",
    layers: Sequence[int] | None = None,
    equal_size: bool = False,
    consistent: float | None = None,
    one_mask: bool = False,
    n_resamples: int = 5000,
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    on_run: Callable[[str, str, int | None, pd.DataFrame], None] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Ablate each type of neuron, and controls beside it, and compare with the unablated model and each other.

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompts: those that the types are of, with answers (and choices); or some of their languages.
        sharing_or_masks: the types, from `categorise`; or masks by name, [layer, neuron] for all examples or [example,
            layer, neuron] for one each.
        types: which types or masks to ablate; all by default.
        controls: `random`: as many in each layer and example, from all neurons. `random-active`: from those that are
            active for that example in that language. `magnitude`: for each neuron the nearest by generation impact at
            the last prompt token, outside the type. `other-example`: the same type's neurons of a different example;
            its size differs. `tl_neuronshare.ablation.controls.register` makes others known.
        active: for masks, the NeuronSharing of these prompts that `random-active` draws from.
        mode: as in `ablation_hooks`.
        values: for `scale` a number; for `mean` a tensor for each language, by default of these prompts' own means.
            `resample` takes for each example the values of another, at the last prompt token.
        seeds: one draw of each control a seed; their results are averaged before anything else.
        scoring: as in `evaluate`.
        length_normalised: as in `evaluate`.
        max_new_tokens: as in `evaluate`.
        stop: as in `evaluate`.
        position: as in `ablation_hooks`, by name or index.
        skip_special_tokens: leave special tokens of the prompt (BOS ...) alone, with position `all`.
        site: as in `ablation_hooks`.
        layers: only these; all by default.
        equal_size: of every type only as many neurons, in each layer and example, as the smallest of `types` has,
            drawn anew for each seed.
        consistent: only neurons that are of the type for at least this share of the examples.
        one_mask: the same neurons for every example: those of the type for at least the share `consistent` (0.5 by
            default). The types may then be of other prompts in these languages.
        n_resamples: of the bootstrap.
        batch_size: as in `evaluate`.
        prepend_bos: as in `categorise`.
        on_run: called after each run with type, what was ablated, seed (None for the unablated model, whose type is
            `none`), and its table of `evaluate`: every answer that the results are made of.
        progress: whether to show a progress bar where it takes more than two seconds.

    Returns:
        A table with a row for each type, what was ablated, language and metric. Columns: type; ablated (`type` or the
        control); language (`all` is the mean); metric (accuracy as a share of 1, or log_prob of the right answer in
        nats); value; difference from the unablated model, low and high (its 95 % interval); vs_control, vs_low and
        vs_high, on the rows of controls (type minus control, and its interval); neurons (mean over the chosen layers);
        overlap (share of the control's neurons that are in the type); examples (for how many it could be drawn); note.
        The unablated model is the row of type `none`. Intervals are paired percentile bootstraps over examples, of at
        least ten. A control that cannot be drawn has NaN, and why in `note`. `table.attrs` says how it was made.

    Raises:
        NeuronShareError: an unknown type, control or option; types of other prompts, languages or layers; or masks of
            another shape.

    Warns:
        UserWarning: the types were measured on other weights, or weights are folded and `magnitude` is wanted.

    Source: arXiv 2406.09265v2, deactivation; the controls are ours.

    Example:
        >>> prompts = ns.demo.prompts()[:3].select(["en", "de"])
        >>> table = ablation_study(model, prompts, ns.categorise(model, prompts), types=["all-shared"], seeds=[0])
        >>> table.query("language == 'all' and metric == 'accuracy'")[["type", "ablated"]].to_numpy().tolist()[:3]
        [['none', 'none'], ['all-shared', 'type'], ['all-shared', 'random']]
    """
    how, choice = Running(batch_size, prepend_bos).on(model), Choice(layers, equal_size, consistent, one_mask)
    replacement = Replacement(mode, values, position, site, skip_special_tokens)
    kinds, seeds = (
        chosen_controls(controls),
        [whole("seeds", seed) for seed in distinct("seeds", seeds, what="whole numbers")],
    )
    bootstrap = Bootstrap(n_resamples)
    targets = _targets(model, prompts, sharing_or_masks, types=types, active=active, choice=choice, how=how)
    evaluation = Evaluation(model, prompts, Scoring(scoring, length_normalised, max_new_tokens, stop), how)
    for warning in _warnings(model, sharing_or_masks, kinds):
        warnings.warn(warning, stacklevel=2)
    study = _Study(model, evaluation, targets, Replacing(model, evaluation, targets, replacement))
    unablated, outcomes = study.run([Itself(), *kinds], seeds, on_run, progress=progress)
    table = table_of(prompts, unablated, outcomes, len(targets.layers), bootstrap)
    table.attrs.update(
        provenance.of_run(model, prompts, sharing_or_masks)
        | {"types": list(targets.masks), "controls": [kind.name for kind in kinds], "seeds": seeds}
        | {"n_resamples": bootstrap.n_resamples, **choice.record, "layers": targets.layers}
        | {**replacement.record, **evaluation.record}
    )
    return table


def _targets(
    model: LensModel,
    prompts: ParallelPrompts,
    sharing_or_masks: Any,
    *,
    types: Any,
    active: NeuronSharing | None,
    choice: Choice,
    how: Running,
) -> Targets:
    """What is to be ablated, matched with the model and the prompts."""
    require_prompts(prompts)
    require_match = partial(
        provenance.require_match,
        prepend_bos=how.prepend_bos,
        advice="or one_mask=True for neurons that were found on others",
    )
    widths = [layer.width for layer in models.neuron_layers(model, "post")]
    if isinstance(sharing_or_masks, NeuronSharing):
        if active is not None:
            raise NeuronShareError("active= is for masks; types know which neurons are active. Leave it out.")
        sharing = sharing_or_masks
        chosen = [types] if isinstance(types, str | NeuronType) else TYPES if types is None else types
        masks = masks_of_types(sharing, distinct("types", [as_type(each) for each in chosen], what="types"))
        require_match(model, prompts, sharing, same_prompts=not choice.one_mask)
        fits = knows_activity(sharing, prompts, assume=not choice.one_mask)
        return Targets(masks, prompts, widths, choice, active=sharing if fits else None, are_of_prompts=fits)
    if not isinstance(sharing_or_masks, Mapping):
        raise NeuronShareError(
            f"sharing_or_masks is a {type(sharing_or_masks).__name__}; give the NeuronSharing that categorise found "
            "for these prompts, or {name: mask}."
        )
    names = list(sharing_or_masks) if types is None else distinct("types", types, known=sharing_or_masks)
    masks = given_masks({name: sharing_or_masks[name] for name in names}, n_examples=len(prompts), widths=widths)
    if active is not None:
        require_match(model, prompts, active)
    return Targets(masks, prompts, widths, choice, active=active)


def _warnings(model: LensModel, sharing_or_masks: Any, kinds: Sequence[Control]) -> list[str]:
    """What a user should know of the weights."""
    found = []
    if isinstance(sharing_or_masks, NeuronSharing) and not provenance.of_same_weights(model, sharing_or_masks):
        found.append("The types were measured on other weights than this model's; its own may be of other types.")
    for kind in kinds:
        weights = provenance.describe(model)["weights"] if kind.uses_weights else "not folded"
        if (warning := provenance.processed_weights(weights, f"what is matched by {kind.name}")) is not None:
            found.append(warning)
    return found


class _Study:
    """Runs masks and controls, each with every seed."""

    def __init__(self, model: LensModel, evaluation: Evaluation, targets: Targets, replacing: Replacing) -> None:
        self.model, self.evaluation, self.targets, self.replacing = model, evaluation, targets, replacing
        self.layers = models.neuron_layers(model, "post")

    def run(
        self, kinds: Sequence[Control], seeds: Sequence[int], on_run: OnRun | None, *, progress: bool
    ) -> tuple[dict[str, Any], dict[tuple[str, str], Outcome]]:
        """The scores of the unablated model, and what came of each mask and control."""
        outcomes = {
            (target, kind.name): Outcome(kind, drawable(kind, self.targets, target))
            for target in self.targets.masks
            for kind in kinds
        }
        # Without a draw in it, the mask itself is the same with every seed.
        is_drawn = self.targets.choice.equal_size or self.replacing.replacement.mode == "resample"
        planned = [
            (target, outcome, seed)
            for (target, ablated), outcome in outcomes.items()
            if outcome.drawable.examples.any()
            for seed in (seeds if is_drawn or ablated != "type" else seeds[:1])
        ]

        def evaluated(target: str, ablated: str, seed: int | None, hooks: Any, loop: Loop) -> dict[str, Any]:
            table = self.evaluation.run(hooks, loop)
            if on_run is not None:
                on_run(target, ablated, seed, table)
            return scores_of(table, self.evaluation.prompts)

        n_rows = (1 + len(planned)) * self.evaluation.n_rows
        with running(self.model, "ablation study", n_rows=n_rows, progress=progress) as loop:
            unablated = evaluated("none", "none", None, None, loop)
            for target, outcome, seed in planned:
                ablated = _Ablated(self, target, outcome, seed)
                outcome.runs.append(evaluated(target, outcome.control.name, seed, ablated.hooks, loop))
                outcome.sums.append(ablated.sums)
        return unablated, outcomes

    def impact(self, language: str, examples: Sequence[int]) -> Float[Tensor, "row layer neuron"]:
        """Each neuron's generation impact at the last prompt token, of the unablated model; NaN where there is none."""
        rows = [self.evaluation.prompt_tokens[language][example] for example in examples]
        impact = torch.full((len(rows), *self.targets.is_neuron.shape), torch.nan, dtype=torch.float32, device="cpu")

        def measure(batch: Batch) -> None:
            read = models.values_of(self.model, self.layers, batch.tokens, batch.mask, -1)
            for number, (layer, values) in enumerate(zip(self.layers, read, strict=True)):
                weights = layer.W_out().to(values.device)
                impact[batch.rows, number, : layer.width] = generation_impact(values, weights).cpu()

        Loop()(Plan(self.model, rows, batch_size=len(rows)), measure)
        return impact


class _Ablated:
    """One mask or control with one seed: its hooks batch by batch, and sums over what was drawn."""

    def __init__(self, study: _Study, target: str, outcome: Outcome, seed: int) -> None:
        self.study, self.target, self.outcome, self.seed = study, target, outcome, seed
        self.sums = Sums(study.evaluation.prompts)

    def hooks(self, language: str, examples: Tensor, prompt_tokens: int, tokens: Tensor) -> Hooks:
        """The hooks for one batch, in which an example may have several rows."""
        distinct_examples = sorted(set(examples.tolist()))
        row = torch.tensor([distinct_examples.index(example) for example in examples.tolist()], device="cpu")
        mask = self._masks(language, distinct_examples)
        replacing = self.study.replacing
        values = replacing.values_for(language, distinct_examples, self.target, self.seed)
        values = values[row] if isinstance(values, Tensor) and values.ndim == 3 else values
        return replacing.hooks(mask[row], values, prompt_tokens, tokens)

    def _masks(self, language: str, examples: list[int]) -> Bool[Tensor, "row layer neuron"]:
        """What is ablated for each example: nothing where it cannot be drawn."""
        targets, control = self.study.targets, self.outcome.control
        of_mask = targets.ablated(self.target, self.seed, examples)
        masks = torch.zeros_like(of_mask)
        can_be_drawn = [row for row, example in enumerate(examples) if self.outcome.drawable.examples[example]]
        if can_be_drawn:
            drawn_for = [examples[row] for row in can_be_drawn]
            drawn = control.draw(
                Draw(
                    targets,
                    self.target,
                    control.name,
                    self.seed,
                    language,
                    drawn_for,
                    of_mask[can_be_drawn],
                    lambda: self.study.impact(language, drawn_for),
                )
            )
            masks[can_be_drawn] = drawn.mask
            for name, measure in drawn.measures.items():
                self.sums.add(name, language, drawn_for, measure)
        self.sums.add("neurons", language, examples, masks)
        self.sums.add("shared", language, examples, masks & targets.whole(self.target, examples))
        return masks

"""Ablate neurons in a study, and compare with controls that show what other neurons would have broken.

Each mask (the neurons of a type, or a mask of the user) is ablated for each example, and so are its controls. Most
controls have the same size, and each answers a different objection. Differences and their intervals are paired by
example. The paper (arXiv 2406.09265v2, deactivation) reports types without controls; but its all-shared neurons are
many, so their number alone may do the damage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.ablation.controls import CONTROLS, Control, Draw, Itself, checked_draw, chosen_controls, drawable
from tl_neuronshare.ablation.hooks import Edit, Mode
from tl_neuronshare.ablation.outcomes import Outcome, Sums, scores_of, table_of
from tl_neuronshare.ablation.replacing import Replacement, Replacing
from tl_neuronshare.ablation.targets import Choice, Targets, given_masks, knows_activity, masks_of_types
from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import distinct, whole
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.evaluation.evaluating import Evaluation, Scoring, ScoringName
from tl_neuronshare.launch import warn
from tl_neuronshare.maths.activation import Number, count_true
from tl_neuronshare.maths.bootstrap import Bootstrap
from tl_neuronshare.models import Hooks, LensModel, Site, verification
from tl_neuronshare.prompts import ParallelPrompts, require_prompts
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.results.types import TYPES, NeuronType, as_type
from tl_neuronshare.running import provenance
from tl_neuronshare.running.loop import Keeping, Loop, running
from tl_neuronshare.running.plan import BatchSize, Plan, Running
from tl_neuronshare.running.shards import Record

_KEPT_IMPACTS = 1 << 28  # bytes that the neurons' impacts may take
_SUM = "sum of "  # begins the names of sums over neurons in a batch's record
# Called after each run with the mask's name, what was ablated, the seed, and the run's table of `evaluate`.
OnRun = Callable[[str, str, int | None, pd.DataFrame], None]


@explains
def ablation_study(
    model: LensModel,
    prompts: ParallelPrompts,
    sharing_or_masks: NeuronSharing | Mapping[str, Bool[Tensor, "*example layer neuron"]],
    *,
    types: Sequence[NeuronType | str] | None = None,
    controls: Sequence[str] = tuple(CONTROLS),
    active: NeuronSharing | None = None,
    spared: Bool[Tensor, "*example layer neuron"] | None = None,
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
    out: str | Path | None = None,
    shard: tuple[int, int] | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Ablate each type of neuron and its controls, and compare them with the unablated model and with each other.

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompts: the prompts that were categorised, or some of their languages. They need answers, and choices if
            `scoring` is `choice`.
        sharing_or_masks: the types, from `categorise`; or a dictionary of masks by name. A mask is [layer, neuron], the
            same for all examples, or [example, layer, neuron].
        types: which types, or which of the masks, to ablate; all by default.
        controls: which other neurons to ablate for comparison with each type.
            `random`: as many neurons in each layer and example, drawn from all neurons.
            `random-active`: as many, drawn from the neurons that are active for the example in the language.
            `magnitude`: for each neuron of the type, the neuron outside it with the nearest generation impact at the
                last prompt token.
            `other-example`: the neurons of the same type for a different example; their number differs.
            `tl_neuronshare.ablation.controls.register` adds controls of your own.
        active: only for masks: the NeuronSharing of these prompts, which `random-active` needs.
        spared: only for masks: neurons that `magnitude` does not take in a mask's place, beside the mask's own.
        mode: as in `ablation_hooks`.
        values: for `scale`, a number. For `mean`, a tensor for each language; by default these are the means over
            these prompts. `resample` takes no values: for each example it uses those of a different example, at the
            last prompt token.
        seeds: each control is drawn once for each seed. The results are averaged over seeds before anything else.
        scoring: as in `evaluate`.
        length_normalised: as in `evaluate`.
        max_new_tokens: as in `evaluate`.
        stop: as in `evaluate`.
        position: at which tokens neurons are edited, as in `ablation_hooks`: `all` (every token, also those that are
            generated), `last`, or a negative index.
        skip_special_tokens: whether special tokens of the prompt (BOS ...) are not edited; for position `all`.
        site: as in `ablation_hooks`.
        layers: the numbers of the layers in which neurons are ablated; all by default.
        equal_size: whether to ablate equally many neurons of every type: in each layer and example, as many as the
            smallest of `types` has. They are drawn again for each seed.
        consistent: ablate only neurons that are of the type for at least this share of the examples.
        one_mask: whether to ablate the same neurons for every example: those that are of the type for at least the
            share `consistent` of the examples (0.5 by default). The types may then be of other prompts in these
            languages.
        n_resamples: how many resamples the bootstrap draws.
        batch_size: as in `evaluate`.
        prepend_bos: as in `categorise`.
        on_run: a function that is called after each run, with the type, what was ablated, the seed, and the run's table
            of `evaluate`, which has every single answer. For the unablated model the type is `none` and the seed None.
        out: as in `categorise`; not together with a function as mode or a control of your own, which a folder cannot
            identify.
        shard: as in `categorise`. The parts are languages of runs.
        progress: whether to show a progress bar, if the run takes more than two seconds.

    Returns:
        A table with a row for each type, what was ablated, language and metric. The unablated model has the type
        `none`. Columns: type; ablated (`type` or the name of the control); language (`all` is the mean over languages);
        metric (accuracy, from 0 to 1; known_accuracy, the same over what the unablated model answers rightly in the
        language; or log_prob of the right answer, in nats); value; difference (from the unablated model), with its 95 %
        interval low and high; vs_control (type minus control, only in rows of controls), with its
        95 % interval vs_low and vs_high; neurons (how many were ablated, mean over the chosen layers); overlap (the
        share of the control's neurons that are in the type); examples (for how many the row could be computed); note.

        Intervals are percentile bootstraps over examples, paired by example. They need at least ten examples. If a
        control cannot be drawn, its numbers are NaN and `note` says why. `table.attrs` says how the table was made.

    Raises:
        NeuronShareError: a type, control or option is unknown; the types are of other prompts, languages or layers; or
            a mask has the wrong shape.

    Warns:
        UserWarning: the types were measured on different weights; or the weights are folded or centred, and
            `magnitude` is among the controls.

    Source: arXiv 2406.09265v2, deactivation; the controls are ours.

    Examples:
        >>> prompts = ns.demo.prompts()[:3].select(["en", "de"])
        >>> table = ablation_study(model, prompts, ns.categorise(model, prompts), types=["all-shared"], seeds=[0])
        >>> table.query("language == 'all' and metric == 'accuracy'")[["type", "ablated"]].to_numpy().tolist()[:3]
        [['none', 'none'], ['all-shared', 'type'], ['all-shared', 'random']]
    """
    how, choice = Running(batch_size, prepend_bos).on(model), Choice(layers, equal_size, consistent, one_mask)
    replacement = Replacement(mode, values, position, site, skip_special_tokens)
    kinds, bootstrap, keeping = chosen_controls(controls), Bootstrap(n_resamples), Keeping(out, shard)
    own_functions_refused(keeping, mode, kinds)
    seeds = [whole("seeds", seed) for seed in distinct("seeds", seeds, what="whole numbers")]
    if not (on_run is None or callable(on_run)):
        raise NeuronShareError(f"on_run={on_run!r} is not a function; give one, or None.")
    targets = _targets(
        model, prompts, sharing_or_masks, types=types, active=active, spared=spared, choice=choice, how=how
    )
    evaluation = Evaluation(model, prompts, Scoring(scoring, length_normalised, max_new_tokens, stop), how)
    record = provenance.of_run(model, prompts, _source(sharing_or_masks, targets))
    record |= {} if active is None else {"active": dict(active.metadata)}
    measured = sharing_or_masks if active is None else active
    for warning in _of_types(model, measured) + checked_weights(model, kinds, record["weights"]):
        warn(warning)
    record |= {"types": list(targets.masks), "controls": [kind.name for kind in kinds], "seeds": seeds}
    record |= {**choice.record, "layers": targets.layers, **replacement.record, **evaluation.record}

    def about() -> dict[str, Any]:
        return {
            "call": "ablation_study",
            **evaluation.about(),
            **record,
            "neurons": provenance.hash_of_bits(sharing_or_masks),
            "active neurons": None if active is None else provenance.hash_of_bits(active),
            "spared": None if spared is None else provenance.hash_of_bits({"spared": spared}),
            "values": provenance.hash_of_values(values),
        }

    study = _Study(model, evaluation, targets, Replacing(model, evaluation, targets, replacement))
    with running(model, "ablation study", progress=progress, keeping=keeping, about=about) as loop:
        unablated, outcomes = study.run([Itself(), *kinds], seeds, on_run, loop)
    table = table_of(prompts, unablated, outcomes, len(targets.layers), bootstrap)
    table.attrs.update({**record, "n_resamples": bootstrap.n_resamples})
    return table


def own_functions_refused(keeping: Keeping, mode: Any, kinds: Sequence[Control]) -> None:
    """Refuse to keep records of functions of the user, which a folder could not tell from others.

    Raises:
        NeuronShareError: there is a folder, and a control or the mode is the user's own.
    """
    own = [kind.name for kind in kinds if type(kind).__module__ != Control.__module__]
    if keeping.folder is not None and own:
        raise NeuronShareError(
            f"out={str(keeping.out)!r}: the control {own[0]!r} is your own, and a later call could not know whether it "
            "is the same; leave the control or out= out."
        )
    if keeping.folder is not None and callable(mode):
        raise NeuronShareError(
            f"out={str(keeping.out)!r}: a later call could not know whether mode is the same function; use one of the "
            "modes that have a name, or leave out= out."
        )


def _source(sharing_or_masks: Any, targets: Targets) -> Any:
    """The types, or the masks that are ablated."""
    if isinstance(sharing_or_masks, NeuronSharing):
        return sharing_or_masks
    return {name: sharing_or_masks[name] for name in targets.masks}


def _targets(
    model: LensModel,
    prompts: ParallelPrompts,
    sharing_or_masks: Any,
    *,
    types: Any,
    active: NeuronSharing | None,
    spared: Any,
    choice: Choice,
    how: Running,
) -> Targets:
    """Choose what to ablate, after checking that it fits the model and the prompts."""
    require_prompts(prompts)
    widths = [layer.width for layer in models.neuron_layers(model, "post")]
    if isinstance(sharing_or_masks, NeuronSharing):
        if active is not None or spared is not None:
            name = "spared" if active is None else "active"
            raise NeuronShareError(f"{name}= is for masks; types know which neurons these are. Leave it out.")
        sharing = sharing_or_masks
        chosen = TYPES if types is None else [types] if isinstance(types, str | NeuronType) else types
        labels = [as_type(type).label for type in chosen]
        masks = masks_of_types(sharing, distinct("types", labels, what="types"))
        provenance.require_match(
            model,
            prompts,
            sharing,
            prepend_bos=how.prepend_bos,
            same_prompts=not choice.one_mask,
            advice="or one_mask=True for neurons that were found on others",
        )
        fits = knows_activity(sharing, prompts, assume=not choice.one_mask)
        return Targets(
            masks,
            prompts.examples,
            widths,
            choice,
            active=sharing if fits else None,
            languages=prompts.languages,
            are_of_prompts=fits,
            unknown="the types are of other prompts",
        )
    if not isinstance(sharing_or_masks, Mapping):
        raise NeuronShareError(
            f"sharing_or_masks is a {type(sharing_or_masks).__name__}; give the NeuronSharing that categorise found "
            "for these prompts, or {name: mask}."
        )
    chosen = list(sharing_or_masks) if types is None else [types] if isinstance(types, str) else types
    names = distinct("types", chosen, known=sharing_or_masks, least=0)
    checked = partial(given_masks, n_examples=len(prompts), widths=widths)
    masks = checked({name: sharing_or_masks[name] for name in names})
    others = None if spared is None else checked({"spared": spared})["spared"]
    if not (active is None or isinstance(active, NeuronSharing)):
        raise NeuronShareError(
            f"active is a {type(active).__name__}; give the NeuronSharing of these prompts, or None."
        )
    if active is not None:
        try:
            provenance.require_match(model, prompts, active, prepend_bos=how.prepend_bos)
        except NeuronShareError as error:
            raise NeuronShareError(f"active does not fit: {error}") from error
    return Targets(masks, prompts.examples, widths, choice, active=active, spared=others, languages=prompts.languages)


def _of_types(model: LensModel, measured: Any) -> list[str]:
    """What a user should know about what was measured, if that is a NeuronSharing."""
    if not isinstance(measured, NeuronSharing) or provenance.of_same_weights(model, measured):
        return []
    return ["The types were measured on different weights from this model's; its neurons may differ."]


def checked_weights(model: LensModel, kinds: Sequence[Control], weights: str) -> list[str]:
    """Return what a user should know about weights that controls use, after checking that these can be used.

    Raises:
        NeuronShareError: a control uses weights, and the model does not write its neurons' values times W_out.
    """
    using = [kind for kind in kinds if kind.uses_weights]
    if using:
        verification.require(model, "output")
    of_kinds = (provenance.processed_weights(weights, f"what is matched by {kind.name}") for kind in using)
    return [warning for warning in of_kinds if warning is not None]


class _Study:
    """Runs masks and controls, each with every seed."""

    def __init__(self, model: LensModel, evaluation: Evaluation, targets: Targets, replacing: Replacing) -> None:
        self.model, self.evaluation, self.targets, self.replacing = model, evaluation, targets, replacing
        self.layers = [layer.weighted() for layer in models.neuron_layers(model, "post")]
        self._impacts: dict[tuple[str, tuple[int, ...]], Float[Tensor, "row layer neuron"]] = {}

    def run(
        self, kinds: Sequence[Control], seeds: Sequence[int], on_run: OnRun | None, loop: Loop
    ) -> tuple[dict[str, Any], dict[tuple[str, str], Outcome]]:
        """Run the unablated model and every mask and control, and return their scores.

        Runs that other processes have not done yet are left out; the loop then refuses the result.
        """
        outcomes = {
            (target, kind.name): Outcome(kind, drawable(kind, self.targets, target))
            for target in self.targets.masks
            for kind in kinds
        }
        # If nothing is drawn, the mask itself gives the same with every seed.
        is_drawn = self.targets.choice.equal_size or self.replacing.replacement.mode == "resample"
        planned = [
            (target, outcome, seed)
            for (target, ablated), outcome in outcomes.items()
            if outcome.drawable.examples.any()
            for seed in (seeds if is_drawn or ablated != "type" else seeds[:1])
        ]

        def evaluated(target: str, ablated: str, seed: int | None, run: _Ablated | None) -> dict[str, Any] | None:
            hooks = None if run is None else run.hooks
            table = self.evaluation.run(hooks, loop, stage=f"{target}/{ablated}/{seed}", beside=run)
            if table is None:
                return None
            if on_run is not None:
                on_run(target, ablated, seed, table)
            return scores_of(table, self.evaluation.prompts)

        loop.expect((1 + len(planned)) * self.evaluation.n_rows)
        unablated = evaluated("none", "none", None, None) or {}
        for target, outcome, seed in planned:
            ablated = _Ablated(self, target, outcome, seed)
            scores = evaluated(target, outcome.control.name, seed, ablated)
            if scores is not None:
                outcome.runs.append(scores)
                outcome.sums.append(ablated.sums)
        return unablated, outcomes

    def impact(self, language: str, examples: Sequence[int]) -> Float[Tensor, "row layer neuron"]:
        """Each neuron's generation impact in the unablated model, at the last prompt token; NaN beyond the neurons.

        It is the same for all seeds and masks, so that as much as fits is kept.
        """
        key = (language, tuple(examples))
        impact = self._impacts.get(key)
        if impact is None:
            impact = self._measured_impact(language, examples)
            if sum(kept.nbytes for kept in self._impacts.values()) + impact.nbytes <= _KEPT_IMPACTS:
                self._impacts[key] = impact
        return impact.clone()  # a control may change what it gets

    def _measured_impact(self, language: str, examples: Sequence[int]) -> Float[Tensor, "row layer neuron"]:
        rows = [self.evaluation.prompt_tokens[language][example] for example in examples]
        impact = torch.full((len(rows), *self.targets.is_neuron.shape), torch.nan, dtype=torch.float32, device="cpu")

        for batch in Plan(self.model, rows, batch_size=len(rows)):
            read = models.values_of(self.model, self.layers, batch, -1)
            of_layers = [
                values.abs() * layer.lengths.to(values.device) for layer, values in zip(self.layers, read, strict=True)
            ]
            for number, of_layer in enumerate(models.on_cpu(of_layers)):
                impact[batch.rows, number, : of_layer.shape[-1]] = of_layer
        return impact


class _Ablated:
    """One mask or control with one seed: its hooks, batch by batch, and beside them sums over the neurons drawn."""

    def __init__(self, study: _Study, target: str, outcome: Outcome, seed: int) -> None:
        self.study, self.target, self.outcome, self.seed = study, target, outcome, seed
        self.sums = Sums(study.evaluation.prompts)
        self._sums: dict[str, Float[Tensor, " example"]] = {}  # of the distinct examples of the latest batch

    def hooks(self, language: str, examples: Tensor, prompt_tokens: int, tokens: Tensor) -> Hooks:
        """Make the hooks for one batch, in which an example may have several rows."""
        distinct_examples = sorted(set(examples.tolist()))
        row = torch.tensor([distinct_examples.index(example) for example in examples.tolist()], device="cpu")
        # All rows of an example have one mask, which is moved to the model once.
        mask = self._masks(language, distinct_examples).to(models.device_of(self.study.model))
        replacing = self.study.replacing
        values = replacing.values_for(language, distinct_examples, self.target, self.seed)
        values = values[row] if isinstance(values, Tensor) and values.ndim == 3 else values
        return replacing.hooks(mask[row], values, prompt_tokens, tokens)

    def _masks(self, language: str, examples: list[int]) -> Bool[Tensor, "row layer neuron"]:
        """Choose the neurons to ablate for each example; none if the control cannot be drawn for it."""
        targets, control = self.study.targets, self.outcome.control
        of_mask = targets.ablated(self.target, self.seed, examples)
        masks = torch.zeros_like(of_mask)
        self._sums = {}
        can_be_drawn = [row for row, example in enumerate(examples) if self.outcome.drawable.examples[example]]
        if can_be_drawn:
            drawn_for = [examples[row] for row in can_be_drawn]
            drawn = checked_draw(
                control,
                Draw(
                    targets,
                    self.target,
                    control.name,
                    self.seed,
                    language,
                    drawn_for,
                    of_mask[can_be_drawn],
                    lambda: self.study.impact(language, drawn_for),
                ),
            )
            masks[can_be_drawn] = drawn.mask
            for name, measure in drawn.measures.items():
                self._sums[name] = torch.zeros(len(examples), dtype=torch.float64, device="cpu")
                self._sums[name][can_be_drawn] = measure.double().sum((1, 2))
        self._sums["neurons"] = count_true(masks).sum(-1).double()
        self._sums["shared"] = count_true(masks & targets.whole(self.target, examples)).sum(-1).double()
        return masks

    def measured(self, examples: Sequence[int]) -> Record:
        """Return the sums over neurons for the rows of the batch whose hooks were made last."""
        distinct_examples = sorted(set(examples))
        rows = [distinct_examples.index(example) for example in examples]
        return {_SUM + name: sums[rows] for name, sums in self._sums.items()}

    def keep(self, language: str, examples: Sequence[int], record: Record) -> None:
        """Add the sums of a batch to those of the run."""
        for name, sums in record.items():
            if name.startswith(_SUM):
                self.sums.add(name.removeprefix(_SUM), language, examples, sums)

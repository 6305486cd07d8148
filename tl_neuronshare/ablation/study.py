"""What breaks when the neurons of one type are switched off, and what would have broken anyway.

Each type is ablated for each example by its own mask, and beside it controls, mostly of the same size: each answers
another objection. Differences are paired by example, and so are their intervals. The paper (arXiv 2406.09265v2,
deactivation) reports types without controls; its all-shared neurons are a large class, so that their number alone may
do the damage.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from tl_neuronshare import models
from tl_neuronshare.ablation.controls import CONTROLS, Control, Selection
from tl_neuronshare.ablation.hooks import Edit, Mode, hooks_at, layers_to_edit
from tl_neuronshare.ablation.reference import reference_values
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.evaluation.evaluating import Evaluation, Scoring
from tl_neuronshare.evaluation.scoring import HookMaker
from tl_neuronshare.maths.activation import Number
from tl_neuronshare.maths.bootstrap import FEWEST, Bootstrap
from tl_neuronshare.maths.draws import NEAR, drawn, matched
from tl_neuronshare.maths.impact import generation_impact
from tl_neuronshare.models import verification
from tl_neuronshare.models.hooks import Hooks
from tl_neuronshare.models.layers import Site
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.models.tokens import left_padded
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.results.types import TYPES, NeuronType, as_type
from tl_neuronshare.running import provenance
from tl_neuronshare.running.plan import BatchSize, plan_batches

METRICS = ("accuracy", "log_prob")
_HARDLY_ANY = 0.2  # of the unablated model's answers right: little to lose


def ablation_study(
    model: LensModel,
    prompts: ParallelPrompts,
    sharing: NeuronSharing,
    *,
    types: Sequence[NeuronType | str] = TYPES,
    controls: Sequence[Control] = CONTROLS,
    mode: Mode | Edit = "zero",
    values: Number | Mapping[str, Float[Tensor, "layer neuron"]] | None = None,
    seeds: Sequence[int] = range(5),
    scoring: Scoring = "choice",
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
        prompts: those that `sharing` is of, with answers (and choices); or some of their languages.
        sharing: the types, from `categorise`.
        types: which to ablate.
        controls: `random`: as many in each layer and example, from all neurons. `random-active`: from those that are
            active for that example in that language. `magnitude`: for each neuron the nearest by generation impact at
            the last prompt token, outside the type. `other-example`: the same type's neurons of another example; its
            size differs.
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
            default). `sharing` may then be of other prompts in these languages.
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
        NeuronShareError: an unknown type, control or option, or a `sharing` of other prompts, languages or layers.

    Warns:
        UserWarning: the types were measured on other weights, or weights are folded and `magnitude` is wanted.

    Source: arXiv 2406.09265v2, deactivation; the controls are ours.

    Example:
        >>> prompts = ns.demo.prompts()[:3].select(["en", "de"])
        >>> table = ablation_study(model, prompts, ns.categorise(model, prompts), types=["all-shared"], seeds=[0])
        >>> table.query("language == 'all' and metric == 'accuracy'")[["type", "ablated"]].to_numpy().tolist()[:3]
        [['none', 'none'], ['all-shared', 'type'], ['all-shared', 'random']]
    """
    chosen_types = _as_types(types)
    _check(prompts, sharing, controls, seeds)
    bootstrap = Bootstrap(n_resamples)
    provenance.check_languages(prompts, sharing)
    if not one_mask:
        provenance.check_prompts(prompts, sharing, "or one_mask=True for neurons that were found on others")
        provenance.check_bos(model, sharing, prepend_bos)
    provenance.check_layers(model, sharing)
    if not provenance.of_same_weights(model, sharing):
        warnings.warn(
            "The types were measured on other weights than this model's; its own may be of other types.", stacklevel=2
        )
    evaluation = Evaluation(
        model,
        prompts,
        scoring=scoring,
        length_normalised=length_normalised,
        max_new_tokens=max_new_tokens,
        stop=stop,
        batch_size=batch_size,
        prepend_bos=prepend_bos,
    )
    selection = Selection(
        sharing,
        prompts,
        chosen_types,
        layers=layers,
        consistent=consistent,
        one_mask=one_mask,
        equal_size=equal_size,
    )
    _check_protocol(prompts, mode, values, position)
    if "magnitude" in controls:
        weights = provenance.describe(model)["weights"]
        provenance.warn_of_processed_weights(weights, "what is matched by magnitude", stacklevel=3)
    protocol = _Protocol(mode, values, position, site, skip_special_tokens)
    ablation = _Ablating(model, evaluation, selection, protocol)
    ablation.check()
    kinds = ("type", *controls)
    type_is_drawn = equal_size or mode == "resample"
    drawable = {(type, ablated): selection.drawable(type, ablated) for type in chosen_types for ablated in kinds}
    planned = [
        (type, ablated, seed)
        for (type, ablated), able in drawable.items()
        if able.examples.any()
        for seed in (seeds if type_is_drawn or ablated != "type" else seeds[:1])
    ]
    outcomes = {of: _Outcome(able.examples, able.why_not) for of, able in drawable.items()}
    n_batches = (1 + len(planned)) * evaluation.n_batches
    with tqdm(total=n_batches, desc="ablation study", disable=not progress, delay=2) as bar:

        def run(type: str, ablated: str, seed: int | None, hooks: HookMaker | None) -> dict[str, NDArray[np.float64]]:
            found = evaluation.run(hooks, after_batch=bar.update)
            if on_run is not None:
                on_run(type, ablated, seed, found)
            return _scores(found, prompts)

        unablated = run("none", "none", None, None)
        for type, ablated, seed in planned:
            draws = _Draws(ablation, type, ablated, seed, drawable[type, ablated].examples)
            outcomes[type, ablated].add(run(type.label, ablated, seed, draws.hooks), draws)
    table = pd.DataFrame(_rows(prompts, unablated, outcomes, len(selection.layers), bootstrap))
    table.attrs.update(
        provenance.of_run(model, prompts, sharing)
        | {
            "types": [type.label for type in chosen_types],
            "controls": list(controls),
            "n_resamples": bootstrap.n_resamples,
            "seeds": [int(seed) for seed in seeds],
            "layers": selection.layers,
            "equal_size": equal_size,
            "consistent": consistent,
            "one_mask": one_mask,
        }
        | protocol.record
        | evaluation.record
    )
    return table


@dataclass(frozen=True)
class _Protocol:
    """How masks are ablated."""

    mode: Mode | Edit
    values: Any
    position: Literal["all", "last"] | int
    site: Site
    skip_special_tokens: bool

    @property
    def record(self) -> dict[str, Any]:
        """For a result's metadata."""
        values = self.values
        return {
            "mode": getattr(self.mode, "__name__", str(self.mode)),
            "values": values if isinstance(values, int | float) else ("given" if values is not None else None),
            "position": self.position if isinstance(self.position, str) else int(self.position),
            "site": self.site,
            "skip_special_tokens": self.skip_special_tokens,
        }


class _Ablating:
    """Makes the hooks of each draw."""

    def __init__(self, model: LensModel, evaluation: Evaluation, selection: Selection, protocol: _Protocol) -> None:
        self.model, self.evaluation, self.selection, self.protocol = model, evaluation, selection, protocol
        self.layers = models.neuron_layers(model, "post")
        self.edited = layers_to_edit(model, protocol.site, protocol.mode)
        self.special = torch.tensor(models.special_tokens(model), dtype=torch.long, device="cpu")
        self._references: dict[str, Tensor] = dict(protocol.values) if isinstance(protocol.values, Mapping) else {}

    def check(self) -> None:
        """Refuse a protocol that cannot be followed, before anything is run."""
        how, prompts = self.protocol, self.evaluation.prompts
        shape = (self.selection.sharing.n_layers, self.selection.sharing.d_mlp)
        for language, given in how.values.items() if isinstance(how.values, Mapping) else ():
            if not isinstance(given, Tensor) or given.shape != shape or not given.is_floating_point():
                raise NeuronShareError(
                    f"Language {language!r}: values is no float tensor of shape {shape}, one a neuron."
                )
        needed = -int(how.position) if isinstance(how.position, Integral) else 1
        for language, scorer in self.evaluation.scorers.items():
            shortest = min(scorer.continuations, key=lambda one: len(one.before))
            if len(shortest.before) < needed:
                raise NeuronShareError(
                    f"Language {language!r}, example {prompts.examples[shortest.example]!r}: the prompt has "
                    f"{len(shortest.before)} token(s), too few for position={how.position}."
                )
        values = (
            torch.zeros(1, *shape, dtype=torch.float32, device="cpu")
            if how.mode in ("mean", "resample")
            else how.values
        )
        enough = max(1, needed)
        self.hooks(
            torch.zeros(1, *shape, dtype=torch.bool, device="cpu"),
            values,
            enough,
            torch.zeros(1, enough, dtype=torch.long, device="cpu"),
        )

    def hooks(
        self,
        mask: Bool[Tensor, "row layer neuron"],
        values: Any,
        prompt_tokens: int,
        tokens: Int[Tensor, "row position"],
    ) -> Hooks:
        """Those of one batch."""
        how = self.protocol
        return hooks_at(
            self.edited,
            mask,
            mode=how.mode,
            values=values,
            position=how.position,
            prompt_tokens=None if how.position == "all" else prompt_tokens,
            text=~torch.isin(tokens, self.special) if how.skip_special_tokens else None,
        )

    def impact(self, language: str, examples: Sequence[int]) -> Float[Tensor, "row layer neuron"]:
        """Each neuron's generation impact at the last prompt token, of the unablated model; NaN where there is none."""
        rows = [self.evaluation.prompt_tokens[language][example] for example in examples]
        impact = torch.full(
            (len(rows), self.selection.sharing.n_layers, self.selection.sharing.d_mlp),
            torch.nan,
            dtype=torch.float32,
            device="cpu",
        )
        packing = verification.packing(self.model)
        for some in plan_batches([(len(row),) for row in rows], len(rows), packing=packing):
            read = models.values_of(self.model, self.layers, *left_padded([rows[number] for number in some]), -1)
            for number, (layer, values) in enumerate(zip(self.layers, read, strict=True)):
                weights = models.output_weights(self.model, layer.hook).to(values.device)
                impact[some, number, : layer.width] = generation_impact(values, weights).cpu()
        return impact

    def values_for(self, language: str, examples: Sequence[int], type: NeuronType, seed: int) -> Any:
        """What `mean` and `resample` put in place, for some examples of a language."""
        if self.protocol.mode == "mean":
            return self._reference(language)
        if self.protocol.mode == "resample":
            others = [self.selection.other_example(seed, type, "resample", example) for example in examples]
            return self._reference(language)[others]
        return self.protocol.values

    def _reference(self, language: str) -> Tensor:
        """Means that were given, or these prompts' own; or each prompt's values, kept for one language at a time."""
        each = self.protocol.mode == "resample"
        if language not in self._references:
            if each:
                self._references.clear()
            self._references |= reference_values(
                self.model,
                {language: self.evaluation.prompts.prompts[language]},
                each=each,
                position="last" if each else self.protocol.position,
                site="up" if self.protocol.site == "up" else "post",
                batch_size=self.evaluation.batch_size,
                prepend_bos=self.evaluation.prepend_bos,
                progress=False,
            )
        return self._references[language]


class _Draws:
    """One type or control with one seed: its hooks batch by batch, and sums over what was drawn."""

    def __init__(
        self, ablating: _Ablating, type: NeuronType, ablated: str, seed: int, drawable: NDArray[np.bool_]
    ) -> None:
        self.ablating, self.type, self.ablated, self.seed, self.drawable = ablating, type, ablated, seed, drawable
        prompts = ablating.selection.prompts
        # Of each example and language: how many neurons are ablated and how many of these are in the type; by magnitude
        # also how many have no near match, what all write, and what the type's own do.
        names = ("neurons", "shared", "far", "impact", "impact_of_type")
        self.sums = {name: np.zeros((len(prompts), len(prompts.languages))) for name in names}

    def hooks(self, language: str, examples: Tensor, prompt_tokens: int, tokens: Tensor) -> Hooks:
        """For one batch."""
        unique = sorted(set(examples.tolist()))
        row = torch.tensor([unique.index(example) for example in examples.tolist()], device="cpu")
        mask = self._draw(language, unique)
        values = self.ablating.values_for(language, unique, self.type, self.seed)
        values = values[row] if isinstance(values, Tensor) and values.ndim == 3 else values
        return self.ablating.hooks(mask[row], values, prompt_tokens, tokens)

    def _draw(self, language: str, examples: list[int]) -> Bool[Tensor, "row layer neuron"]:
        """The mask of each example; empty where it cannot be drawn."""
        selection = self.ablating.selection
        of_type = selection.drawn(self.type, self.seed, examples)
        mask = torch.zeros_like(of_type)
        able = [number for number, example in enumerate(examples) if self.drawable[example]]
        if able:
            drawn_for = [examples[number] for number in able]
            mask[able] = self._drawn(language, drawn_for, of_type[able])
        self._add("neurons", language, examples, mask)
        self._add("shared", language, examples, mask & selection.whole_type(self.type, examples))
        return mask

    def _drawn(self, language: str, examples: list[int], of_type: Tensor) -> Tensor:
        """The masks, where they can be drawn."""
        selection = self.ablating.selection
        if self.ablated == "type":
            return of_type
        if self.ablated == "other-example":
            others = [selection.other_example(self.seed, self.type, self.ablated, example) for example in examples]
            return selection.drawn(self.type, self.seed, others)
        noise = selection.noise(self.seed, self.type, self.ablated, examples)
        if self.ablated == "magnitude":
            impact = self.ablating.impact(language, examples)
            # Of the type's neurons that are not ablated (other layers or sizes are equal ...) none is a match.
            spared = selection.whole_type(self.type, examples) & ~of_type
            found, far = matched(noise, of_type, impact.masked_fill(spared, torch.nan))
            self._add("far", language, examples, far)
            self._add("impact", language, examples, impact.where(found, 0))
            self._add("impact_of_type", language, examples, impact.where(of_type, 0))
            return found
        within = selection.sharing.is_neuron
        if self.ablated == "random-active":
            within = torch.cat(
                [selection.sharing.activated(slice(one, one + 1), language=language)[0] for one in examples]
            )
        return drawn(noise, of_type.sum(-1), within)

    def _add(self, name: str, language: str, examples: list[int], numbers: Tensor) -> None:
        column = self.ablating.selection.prompts.languages.index(language)
        self.sums[name][examples, column] = numbers.double().sum((1, 2))


@dataclass
class _Outcome:
    """What came of one type or control, for the examples that could be drawn: means over seeds."""

    examples: NDArray[np.bool_]
    why_not: str
    runs: list[dict[str, NDArray[np.float64]]] = field(default_factory=list)
    draws: list[_Draws] = field(default_factory=list)

    def add(self, scores: dict[str, NDArray[np.float64]], draws: _Draws) -> None:
        """One seed's."""
        self.runs.append(scores)
        self.draws.append(draws)

    def scores(self, metric: str) -> NDArray[np.float64]:
        """Example x language."""
        mean: NDArray[np.float64] = np.mean([run[metric] for run in self.runs], axis=0)
        return mean

    def sums(self, name: str) -> NDArray[np.float64]:
        """Example x language, of what was drawn."""
        mean: NDArray[np.float64] = np.mean([draws.sums[name] for draws in self.draws], axis=0)
        return mean[self.examples]

    @property
    def note(self) -> str:
        """What a reader of the row must know."""
        notes = []
        n_drawn, n_examples = int(self.examples.sum()), len(self.examples)
        if n_drawn == 0:
            notes.append(self.why_not)
        elif n_drawn < n_examples:
            notes.append(f"only {n_drawn} of {n_examples} examples: {self.why_not}")
        if 0 < n_drawn < FEWEST:
            notes.append(f"no intervals for fewer than {FEWEST} examples")
        if self.draws and self.sums("far").any():
            far = self.sums("far").sum() / self.sums("neurons").sum()
            written, by_type = self.sums("impact").sum(), self.sums("impact_of_type").sum()
            all_write = (
                f"write {written / by_type:.0%} of what the type's do" if by_type else "write; the type's do not"
            )
            notes.append(f"{far:.0%} of its neurons are no near match (impact within {NEAR:.0%}), and all {all_write}")
        return "; ".join(notes)


def _scores(table: pd.DataFrame, prompts: ParallelPrompts) -> dict[str, NDArray[np.float64]]:
    """Each metric as example x language."""
    columns = {"accuracy": "correct", "log_prob": "log_prob"}
    return {
        metric: table[column].to_numpy(dtype=float).reshape(len(prompts.languages), len(prompts)).T
        for metric, column in columns.items()
    }


def _rows(
    prompts: ParallelPrompts,
    unablated: dict[str, NDArray[np.float64]],
    outcomes: Mapping[tuple[NeuronType, str], _Outcome],
    n_layers: int,
    bootstrap: Bootstrap,
) -> Iterable[dict[str, Any]]:
    """The table's rows."""
    for metric in METRICS:
        for language, scores in _by_language(unablated[metric], prompts).items():
            few_right = metric == "accuracy" and scores.mean() < _HARDLY_ANY
            note = "few answers are right to begin with: little can be lost" if few_right else ""
            yield _row(
                "none",
                "none",
                language,
                metric,
                value=scores.mean(),
                difference=0.0,
                neurons=0.0,
                note=note,
                examples=len(scores),
            )
    for (type, ablated), outcome in outcomes.items():
        for metric in METRICS:
            if not outcome.runs:
                for language in ("all", *prompts.languages):
                    yield _row(type.label, ablated, language, metric, note=outcome.note)
                continue
            all_scores = (outcome.scores(metric), unablated[metric], outcomes[type, "type"].scores(metric))
            values, before, of_type = (_by_language(of_one[outcome.examples], prompts) for of_one in all_scores)
            neurons, shared = (_by_language(outcome.sums(name), prompts) for name in ("neurons", "shared"))
            for language in values:
                difference = values[language] - before[language]
                low, high = map(float, bootstrap.intervals(difference))
                known = {"value": values[language].mean(), "difference": difference.mean(), "low": low, "high": high}
                known["neurons"] = neurons[language].mean() / n_layers
                known["examples"] = int(outcome.examples.sum())
                if ablated != "type":
                    against = of_type[language] - values[language]
                    low, high = map(float, bootstrap.intervals(against))
                    known |= {"vs_control": against.mean(), "vs_low": low, "vs_high": high}
                    total = neurons[language].sum()
                    known["overlap"] = shared[language].sum() / total if total else np.nan
                yield _row(type.label, ablated, language, metric, **known, note=outcome.note)


def _row(type: str, ablated: str, language: str, metric: str, **known: Any) -> dict[str, Any]:
    """A row in which everything else is missing."""
    numbers = ("value", "difference", "low", "high", "vs_control", "vs_low", "vs_high", "neurons", "overlap")
    labels = {"type": type, "ablated": ablated, "language": language, "metric": metric}
    return {**labels, **dict.fromkeys(numbers, np.nan), "examples": 0, "note": "", **known}


def _by_language(scores: NDArray[np.float64], prompts: ParallelPrompts) -> dict[str, NDArray[np.float64]]:
    """Numbers by example: the mean over languages as "all", then each language."""
    return {"all": scores.mean(1), **dict(zip(prompts.languages, scores.T, strict=True))}


def _as_types(types: Any) -> list[NeuronType]:
    given = [types] if isinstance(types, str | NeuronType) else list(types)
    found = [as_type(type) for type in given]
    if not found or len(set(found)) < len(found):
        raise NeuronShareError(f"types={types!r}; give at least one type, each once.")
    return found


def _check(prompts: Any, sharing: Any, controls: Any, seeds: Any) -> None:
    if not isinstance(prompts, ParallelPrompts) or not isinstance(sharing, NeuronSharing):
        raise NeuronShareError(
            f"prompts is a {type(prompts).__name__} and sharing a {type(sharing).__name__}; give ParallelPrompts and "
            "the NeuronSharing that categorise found for them."
        )
    unknown = isinstance(controls, str) or [control for control in controls if control not in CONTROLS]
    if unknown or len(set(controls)) < len(controls):
        raise NeuronShareError(f"controls={controls!r}; give a list of {', '.join(CONTROLS)}, each once.")
    if (
        not isinstance(seeds, Sequence)
        or not seeds
        or not all(isinstance(seed, Integral) for seed in seeds)
        or len(set(seeds)) < len(seeds)
    ):
        raise NeuronShareError(f"seeds={seeds!r}; give a list of integers, all different, such as range(5).")


def _check_protocol(prompts: ParallelPrompts, mode: Any, values: Any, position: Any) -> None:
    if mode == "resample" and len(prompts) == 1:
        raise NeuronShareError("mode='resample' takes the values of another example, and there is one only.")
    if not isinstance(position, str | Integral):
        raise NeuronShareError(
            f"position is a {type(position).__name__}; a study takes all, last, or a negative index."
        )
    if mode == "resample" and values is not None:
        raise NeuronShareError("mode='resample' takes the values of other examples of these prompts; leave values out.")
    if mode == "mean" and values is not None:
        missing = [
            language for language in prompts.languages if not isinstance(values, Mapping) or language not in values
        ]
        if missing:
            raise NeuronShareError(
                f"mode='mean': values has none for {', '.join(missing)}; give {{language: tensor}}, such as "
                "reference_values makes, or leave them out for these prompts' own means."
            )

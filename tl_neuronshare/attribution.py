"""What each type of neuron contributes to the answer: the paper's two scores, by language, layer and type.

The scores (impact.py) are of single neurons, at the token from which the answer is predicted. Each forward pass gives
those of all layers; they are reduced at once to some numbers for each example and type, or counted for each neuron.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import floor
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from tl_neuronshare import models, provenance, verification
from tl_neuronshare.activation import Number
from tl_neuronshare.answers import Continuation, continuations
from tl_neuronshare.batching import BatchSize, check_options, padded_apart, plan_batches
from tl_neuronshare.bootstrap import Bootstrap
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.impact import FinalNorm, generation_impact, largest, projected
from tl_neuronshare.models import LensModel
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.sharing import TYPES, NeuronSharing

Answer = Literal["first", "all"]
Norm = Literal["none", "frozen", "full"]
Score = Literal["generation", "correctness"]
TOP_K = 800 / 16384  # the paper's: 800 of 16,384
# What is kept of each example, language, layer and type.
_PUSHED = ("sum", "max", "min", "positive", "absolute")
_KEPT = ("count", "top", "sum", "max", "min", *(f"{of}_{name}" for of in ("push", "other") for name in _PUSHED))


def attribute(
    model: LensModel,
    prompts: ParallelPrompts,
    sharing: NeuronSharing,
    *,
    top_k: Number = TOP_K,
    answer: Answer = "first",
    norm: Norm = "none",
    n_resamples: int = 5000,
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """How much each type of neuron writes, and how much it pushes the right answer, by language and layer.

    Args:
        model: a HookedTransformer or TransformerBridge, with raw weights.
        prompts: those that `sharing` is of, or some of their languages, with answers.
        sharing: the types, from `categorise` with this model.
        top_k: how many neurons of a layer count as the top by generation impact: a number of them, or (a float) a
            share of the layer's width, rounded half up, at least one. Of equal neurons those with the lower number.
        answer: of the answer the `first` token only, or `all`: each at its own position, given those before it; a
            neuron's score is the mean over them.
        norm: how the correctness impact sees the final norm. `none`: not at all, as the paper. `frozen`: with its
            weight, at the scale that it has: the part of the logit that is the neuron's own. `full`: the logit's
            gradient, so that of the scale too.
        n_resamples: of the bootstrap.
        batch_size: prompts in one forward pass.
        prepend_bos: as in `categorise`.
        progress: whether to show a progress bar where it takes more than two seconds.

    Returns:
        A table with a row for each language (`all` is their mean, and pools them where a statistic is pooled), layer
        (`all` is the whole model), type, score and statistic. Every statistic is one of an example's neurons of the
        type, and its `value` the mean over examples, those left out that have none, but for `pooled_...`, the ratio of
        two sums over examples.

        Of score `generation`: `top_share` (percent of the layer's top K that are of the type), `mean`, `sum`, `max`,
        `min`. Of score `correctness`: `mean`, `sum`, `max`, `min`, and the type's percent of what all neurons push,
        `mean_positive_share`, `pooled_positive_share` (of the positive impacts only), `mean_absolute_share`,
        `pooled_absolute_share`.

        Columns `low` and `high` are the 95 % interval (percentile bootstrap over examples, of at least ten), `examples`
        over how many the value is. Two controls: `chance` is what a share would be for as many neurons drawn at random
        (percent of the layer's neurons that are of the type); `other_answer` is the value for a wrong answer in place
        of the right one, the next example's that begins otherwise (NaN where there is none).
        `table.attrs` says how it was made.

    Raises:
        NeuronShareError: no answers, one that adds no token, an unknown option, more top neurons than a layer has, a
            `sharing` of other prompts, another model or another choice of BOS, a final norm that is not known, or
            values that are not finite.

    Warns:
        UserWarning: the weights are folded or centred; or the MLPs' output is changed before or when it is added.

    Source: arXiv 2406.09265v1, contribution score and effective score; the intervals and controls are ours.

    Example:
        >>> prompts = ns.demo.prompts()[:3]
        >>> table = attribute(model, prompts, ns.categorise(model, prompts))
        >>> shares = table.query("language == 'en' and layer == 3 and statistic == 'top_share'")
        >>> shares.set_index("type")["value"].sum().round(6)
        np.float64(100.0)
    """
    impacts = Impacts(
        model, prompts, sharing, top_k=top_k, answer=answer, norm=norm, batch_size=batch_size, prepend_bos=prepend_bos
    )
    bootstrap = Bootstrap(n_resamples)
    shape = (len(prompts), len(prompts.languages), sharing.n_layers, len(TYPES))
    kept = {name: np.zeros(shape) for name in _KEPT}
    for one in impacts.each(desc="attribute", progress=progress):
        of_types = _by_type(one, impacts.top_k[one.layer])
        place = (one.examples, prompts.languages.index(one.language), one.layer)
        for name, numbers in zip(_KEPT, of_types.double().cpu().numpy(), strict=True):
            kept[name][place] = numbers.T
    table = _table(kept, prompts.languages, bootstrap)
    table.attrs.update(impacts.record | {"n_resamples": bootstrap.n_resamples})
    return table


def top_neurons(
    model: LensModel,
    prompts: ParallelPrompts,
    sharing: NeuronSharing,
    *,
    score: Score = "generation",
    n: int | None = 100,
    top_k: Number = TOP_K,
    answer: Answer = "first",
    norm: Norm = "none",
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The neurons that are among the top of their layer for the most prompts: examples and languages.

    Args:
        model: as in `attribute`.
        prompts: as in `attribute`.
        sharing: as in `attribute`.
        score: by which neurons are among the top: `generation`, or `correctness`, of which the positive ones count.
        n: how many to return; None is all that ever were among the top.
        top_k: as in `attribute`.
        answer: as in `attribute`.
        norm: as in `attribute`.
        batch_size: as in `attribute`.
        prepend_bos: as in `categorise`.
        progress: whether to show a progress bar where it takes more than two seconds.

    Returns:
        A table with a row for each neuron, those that are among the top most often first: layer, neuron, prompts
        (percent of the prompts for which it is), score (mean over all prompts), languages (in which it is for at least
        half of the examples), and for each type the number of examples for which it is of that type.
        `mask_from_frame(table, n_layers=..., d_mlp=...)` makes it a mask.

    Raises:
        NeuronShareError: as `attribute`; an unknown score, or no number of neurons.

    Warns:
        UserWarning: as `attribute`.

    Example:
        >>> prompts = ns.demo.prompts()[:3]
        >>> table = top_neurons(model, prompts, ns.categorise(model, prompts), n=5)
        >>> list(table.columns)[:5]
        ['layer', 'neuron', 'prompts', 'score', 'languages']
        >>> int(ns.mask_from_frame(table, n_layers=4, d_mlp=512).sum())
        5
    """
    if score not in get_args(Score):
        raise NeuronShareError(f"score={score!r} is unknown; use one of {', '.join(get_args(Score))}.")
    if n is not None and (isinstance(n, bool) or not isinstance(n, Integral) or n < 1):
        raise NeuronShareError(f"n={n!r}; give a number of neurons, or None for all.")
    impacts = Impacts(
        model, prompts, sharing, top_k=top_k, answer=answer, norm=norm, batch_size=batch_size, prepend_bos=prepend_bos
    )
    times = torch.zeros(len(prompts.languages), sharing.n_layers, sharing.d_mlp, dtype=torch.int32, device="cpu")
    total = torch.zeros(sharing.n_layers, sharing.d_mlp, dtype=torch.float64, device="cpu")
    for one in impacts.each(desc="top neurons", progress=progress):
        scores = one.generation if score == "generation" else one.correctness
        counted = largest(scores, impacts.top_k[one.layer]) & (scores > 0)
        width = scores.shape[-1]
        times[prompts.languages.index(one.language), one.layer, :width] += counted.sum(0).cpu()
        total[one.layer, :width] += scores.double().sum(0).cpu()
    layers, neurons = times.sum(0).nonzero().T
    often = len(prompts) <= 2 * times[:, layers, neurons].T
    of_prompts = len(prompts) * len(prompts.languages)
    of_types = {type.label: (impacts.types == type).sum(0)[layers, neurons] for type in TYPES}
    table = pd.DataFrame(
        {
            "layer": layers.numpy(),
            "neuron": neurons.numpy(),
            "prompts": 100 * times.sum(0)[layers, neurons].double().numpy() / of_prompts,
            "score": total[layers, neurons].numpy() / of_prompts,
            "languages": [
                " ".join(language for language, yes in zip(prompts.languages, row, strict=True) if yes)
                for row in often.tolist()
            ],
            **{label: count.numpy() for label, count in of_types.items()},
        }
    )
    order = ["prompts", "score", "layer", "neuron"]
    table = table.sort_values(order, ascending=[False, False, True, True], ignore_index=True)[:n]
    table.attrs.update(impacts.record | {"score": score})
    return table


@dataclass(frozen=True)
class LayerImpacts:
    """Both scores of a layer's neurons, and their types, for some examples in one language.

    `other_answer` is the correctness impact for a wrong answer in place of the right one.
    """

    language: str
    examples: list[int]
    layer: int
    generation: Float[Tensor, "row neuron"]
    correctness: Float[Tensor, "row neuron"]
    other_answer: Float[Tensor, "row neuron"]
    types: UInt8[Tensor, "row neuron"]


class Impacts:
    """The scores of all neurons for all prompts, in batches that are planned once; options as in `attribute`.

    Attributes:
        places: for each language what is run, and which tokens are scored after it, for every example.
        widths: how many neurons each layer has.
        top_k: how many of them count as its top.
        record: for a result's metadata.

    Example:
        >>> prompts = ns.demo.prompts()[:3].select(["en", "de"])
        >>> impacts = Impacts(model, prompts, ns.categorise(model, prompts))
        >>> one = next(impacts.each(desc="scores"))
        >>> one.language, sorted(one.examples), one.layer, one.correctness.shape
        ('en', [0, 1, 2], 0, torch.Size([3, 512]))
    """

    def __init__(
        self,
        model: LensModel,
        prompts: ParallelPrompts,
        sharing: NeuronSharing,
        *,
        top_k: Any = TOP_K,
        answer: Answer = "first",
        norm: Norm = "none",
        batch_size: BatchSize = "auto",
        prepend_bos: bool | None = None,
    ) -> None:
        check_options(prompts, batch_size, prepend_bos)
        _check_options(prompts, sharing, answer, norm)
        self.model, self.prompts = model, prompts
        self.layers = models.neuron_layers(model, "post")
        self.widths = sharing.widths
        models.check_unembedding(model)
        verification.require(model, "logits", "post", "unembedding")
        provenance.check_languages(prompts, sharing)
        provenance.check_prompts(prompts, sharing)
        provenance.check_layers(model, sharing)
        provenance.check_bos(model, sharing, prepend_bos)
        if not provenance.of_same_weights(model, sharing):
            raise NeuronShareError(
                f"The types were measured on other weights than those of {models.name_of(model)}; categorise with "
                "this model, loaded in the same way and dtype."
            )
        self.top_k = _top_counts(top_k, self.widths)
        self.types = sharing.types
        self.norm: Norm = norm
        self.final_norm = models.final_norm(model) if norm != "none" else None
        # For each language what is run before each token that is scored.
        self.places: dict[str, list[Continuation]] = {}
        self._others: dict[str, list[tuple[int, ...]]] = {}
        self._batches: dict[str, list[list[int]]] = {}
        merged: list[bool] = []
        for language, answers in (prompts.answers or {}).items():
            found = continuations(model, prompts, language, [[text] for text in answers], prepend_bos=prepend_bos)
            merged += found.merged
            self.places[language] = [
                Continuation(one.example, one.before, one.scored if answer == "all" else one.scored[:1])
                for one in found.each
            ]
            self._others[language] = _other_answers([one.scored for one in self.places[language]])
            self._batches[language] = plan_batches(
                [(len(one.before), len(one.scored)) for one in self.places[language]],
                batch_size,
                packing=verification.packing(model).counting_one_more(),
                n_ctx=model.cfg.n_ctx + 1,  # the last token of the answer is not run
                per_token=sum(self.widths),
            )
        self.record = provenance.of_run(model, prompts, sharing) | {
            "top_k": int(top_k) if isinstance(top_k, Integral) else float(top_k),
            "top_k_of_layers": self.top_k,
            "answer": answer,
            "norm": norm,
            "batch_size": batch_size if batch_size == "auto" else int(batch_size),
            "prepend_bos": models.resolve_prepend_bos(model, prepend_bos),
            "merged": sum(merged) / len(merged),
        }
        provenance.warn_of_processed_weights(self.record["weights"], "the scores", stacklevel=4)
        if (what := models.changes_mlp_output(model)) is not None:
            warnings.warn(
                f"{models.name_of(model)} {what}; the scores are of what the MLPs write, and not of what is added.",
                stacklevel=3,
            )

    @torch.no_grad()
    def each(self, *, desc: str, progress: bool = True) -> Iterator[LayerImpacts]:
        """Language by language, batch by batch, layer by layer."""
        n_batches = sum(map(len, self._batches.values()))
        with tqdm(total=n_batches, desc=desc, disable=not progress, delay=2) as bar:
            for language, batches in self._batches.items():
                tokens = sorted({token for one in self.places[language] for token in one.scored})
                pushes = _Pushes(self.model, tokens, self.norm, self.final_norm)
                for batch in batches:
                    yield from self._of_batch(language, batch, pushes)
                    bar.update()

    def _of_batch(self, language: str, batch: list[int], pushes: _Pushes) -> Iterator[LayerImpacts]:
        of_rows = [self.places[language][number] for number in batch]
        tokens, mask = padded_apart([one.before for one in of_rows], [one.scored[:-1] for one in of_rows])
        end = max(len(one.before) for one in of_rows)
        # Where each token that is scored is predicted: the row, the position, and the token.
        row, position, token = torch.tensor(
            [(row, end - 1 + k, token) for row, one in enumerate(of_rows) for k, token in enumerate(one.scored)],
            device="cpu",
        ).T
        others = [
            self._others[language][number] or of_one.scored for number, of_one in zip(batch, of_rows, strict=True)
        ]
        other_token = torch.tensor(
            [others[row][k % len(others[row])] for row, one in enumerate(of_rows) for k in range(len(one.scored))],
            device="cpu",
        )
        has_other = torch.tensor([[bool(self._others[language][number])] for number in batch], device="cpu")
        read = [*self.layers, models.final_residual(self.model)] if self.final_norm else self.layers
        values = models.values_of(self.model, read, tokens, mask, (row, position))
        residual = values.pop() if self.final_norm else None
        examples = [one.example for one in of_rows]
        n_tokens = torch.tensor([[len(one.scored)] for one in of_rows], device="cpu")
        for number, (layer, post) in enumerate(zip(self.layers, values, strict=True)):
            weights = models.output_weights(self.model, layer.hook).to(post.device)

            def mean(scores: Tensor, number: int = number) -> Tensor:
                """Over the tokens of each answer."""
                sums = scores.new_zeros(len(batch), scores.shape[-1]).index_add_(0, row.to(scores.device), scores)
                self._check_finite(sums, language, examples, number)
                return sums / n_tokens.to(sums.device)

            yield LayerImpacts(
                language,
                examples,
                number,
                generation=mean(generation_impact(post, weights)),
                correctness=mean(post * pushes.of(number, weights, token, residual)),
                other_answer=mean(post * pushes.of(number, weights, other_token, residual)).masked_fill(
                    ~has_other.to(post.device), torch.nan
                ),
                types=self.types[examples, number, : layer.width].to(post.device),
            )

    def _check_finite(self, scores: Tensor, language: str, examples: list[int], layer: int) -> None:
        finite = scores.isfinite().all(-1)
        if not finite.all():
            example = self.prompts.examples[examples[int(finite.int().argmin())]]
            raise NeuronShareError(
                f"Language {language!r}, example {example!r}, layer {layer}: a score is NaN or infinite; load the "
                "model in float32 or bfloat16, and check your hooks."
            )


class _Pushes:
    """How far each neuron's output goes in the direction of a token: v . E[y], seen through the final norm or not.

    Of each distinct token of a language's answers it is computed once for each layer, and kept for that language.
    """

    def __init__(self, model: LensModel, tokens: Sequence[int], norm: Norm, final_norm: FinalNorm | None) -> None:
        self.norm = norm
        self._number = {token: number for number, token in enumerate(tokens)}
        columns = models.unembedding(model, torch.tensor(tokens, device="cpu")).T
        self._unembedding = columns.to(torch.promote_types(columns.dtype, torch.float32))
        self.final_norm = final_norm and final_norm.to(self._unembedding)
        self._projected: dict[int, Tensor] = {}

    def of(
        self,
        layer: int,
        weights: Float[Tensor, "neuron d_model"],
        tokens: Tensor,
        residual: Float[Tensor, "place d_model"] | None,
    ) -> Float[Tensor, "place neuron"]:
        """For each place, which has a token to predict and a residual stream to predict it from."""
        numbers = torch.tensor([self._number[token] for token in tokens.tolist()], device="cpu")
        if self.final_norm is None or residual is None:
            return self._of_distinct(layer, weights, self._unembedding)[numbers]
        residual = residual.to(self._unembedding)
        if self.norm == "full":
            directions = self.final_norm.full(self._unembedding[numbers], residual)
            return projected(weights, directions.to(weights.device))
        pushes = self._of_distinct(layer, weights, self.final_norm.unscaled(self._unembedding))[numbers]
        return pushes / self.final_norm.scale(residual).to(pushes)

    def _of_distinct(self, layer: int, weights: Tensor, directions: Tensor) -> Float[Tensor, "token neuron"]:
        if layer not in self._projected:
            self._projected[layer] = projected(weights, directions.to(weights.device))
        return self._projected[layer]


def _by_type(one: LayerImpacts, top_k: int) -> Float[Tensor, "kept type row"]:
    """What is kept of a layer, in the order of `_KEPT`; the largest and smallest of no neuron are infinite."""
    of_type = one.types == torch.tensor(TYPES, device=one.types.device).reshape(-1, 1, 1)  # type row neuron
    of_top = largest(one.generation, top_k) & of_type
    return torch.stack(
        [
            of_type.sum(-1),
            of_top.sum(-1),
            *_sum_max_min(one.generation, of_type),
            *_pushed(one.correctness, of_type),
            *_pushed(one.other_answer, of_type),
        ]
    )


def _pushed(scores: Float[Tensor, "row neuron"], of_type: Bool[Tensor, "type row neuron"]) -> tuple[Tensor, ...]:
    positive, absolute = (part.where(of_type, 0).sum(-1) for part in (scores.clamp(min=0), scores.abs()))
    return *_sum_max_min(scores, of_type), positive, absolute


def _sum_max_min(scores: Float[Tensor, "row neuron"], of_type: Bool[Tensor, "type row neuron"]) -> tuple[Tensor, ...]:
    return (
        scores.where(of_type, 0).sum(-1),
        scores.where(of_type, -torch.inf).amax(-1),
        scores.where(of_type, torch.inf).amin(-1),
    )


def _table(kept: dict[str, NDArray[np.float64]], languages: Sequence[str], bootstrap: Bootstrap) -> pd.DataFrame:
    """The rows of `attribute`, from what was kept of each example, language, layer and type."""
    kept = {name: _with_whole_model(name, numbers) for name, numbers in kept.items()}
    chance = _mean_over_languages(100 * kept["count"] / kept["count"].sum(-1, keepdims=True)).mean(0)
    labels = list(product(("all", *languages), (*range(kept["count"].shape[2] - 1), "all"), (t.label for t in TYPES)))
    tables = []
    others = _statistics(kept, pushed="other")
    for order, ((score, statistic), ratio) in enumerate(_statistics(kept, pushed="push").items()):
        above, below = map(_mean_over_languages, ratio)
        value, other_value = _value(above, below), _value(*map(_mean_over_languages, others[score, statistic]))
        low, high = bootstrap.intervals(above, below)
        table = pd.DataFrame(labels, columns=["language", "layer", "type"])
        table["score"], table["statistic"] = score, statistic
        table["value"], table["low"], table["high"] = value.ravel(), low.ravel(), high.ravel()
        table["chance"] = chance.ravel() if statistic.endswith("share") else np.nan
        table["other_answer"] = other_value.ravel() if score == "correctness" else np.nan
        table["examples"] = (below != 0).sum(0).ravel()
        tables.append(table.assign(row=range(len(table)), order=order))
    return pd.concat(tables).sort_values(["row", "order"], ignore_index=True).drop(columns=["row", "order"])


def _value(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # no example has neurons of the type
        value: NDArray[np.float64] = above.sum(0) / below.sum(0)
    return value


def _with_whole_model(name: str, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """What was kept of each layer, and after the last layer of all together."""
    reduce = np.max if name.endswith("max") else np.min if name.endswith("min") else np.sum
    return np.concatenate([numbers, reduce(numbers, axis=2, keepdims=True)], axis=2)


def _mean_over_languages(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """First the mean over languages, then each."""
    return np.concatenate([numbers.mean(1, keepdims=True), numbers], axis=1)


def _statistics(
    kept: dict[str, NDArray[np.float64]], *, pushed: Literal["push", "other"]
) -> dict[tuple[str, str], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Each statistic as what is above and below a fraction, which are summed over examples before they are divided."""
    count = kept["count"]
    every, some = np.ones_like(count), (count > 0).astype(float)
    found = {("generation", "top_share"): (100 * kept["top"] / kept["top"].sum(-1, keepdims=True), every)}
    for score, prefix in (("generation", ""), ("correctness", f"{pushed}_")):
        total = kept[f"{prefix}sum"]
        found[score, "mean"] = total / np.maximum(count, 1), some
        found[score, "sum"] = total, every
        for name in ("max", "min"):
            found[score, name] = np.where(count > 0, kept[f"{prefix}{name}"], 0), some
    for name in ("positive", "absolute"):
        impact = kept[f"{pushed}_{name}"]
        of_all = np.broadcast_to(impact.sum(-1, keepdims=True), impact.shape)
        some = (of_all > 0).astype(float)
        found["correctness", f"mean_{name}_share"] = 100 * impact / np.where(of_all > 0, of_all, 1), some
        found["correctness", f"pooled_{name}_share"] = 100 * impact, of_all
    return found


def _other_answers(answers: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """For each answer the next after it that begins with another token, the first coming after the last; or none."""
    n = len(answers)
    return [
        next((other for k in range(1, n) if (other := answers[(i + k) % n])[0] != own[0]), ())
        for i, own in enumerate(answers)
    ]


def _top_counts(top_k: Any, widths: Sequence[int]) -> list[int]:
    """How many neurons are the top of each layer."""
    is_count = isinstance(top_k, Integral) and not isinstance(top_k, bool) and int(top_k) >= 1
    is_share = not is_count and isinstance(top_k, Real) and not isinstance(top_k, Integral) and 0 < float(top_k) <= 1
    if not (is_count or is_share):
        raise NeuronShareError(f"top_k={top_k!r}; give a number of neurons, at least 1, or a share, above 0.0 to 1.0.")
    counts = [int(top_k) if is_count else max(1, floor(float(top_k) * width + 0.5)) for width in widths]
    for layer, (count, width) in enumerate(zip(counts, widths, strict=True)):
        if count > width:
            raise NeuronShareError(
                f"top_k={top_k}: layer {layer} has {width} neurons only; give fewer, or a share such as 0.05."
            )
    return counts


def _check_options(prompts: ParallelPrompts, sharing: Any, answer: Any, norm: Any) -> None:
    if not isinstance(sharing, NeuronSharing):
        raise NeuronShareError(f"sharing is a {type(sharing).__name__}; give the NeuronSharing that categorise found.")
    for name, value, known in (("answer", answer, get_args(Answer)), ("norm", norm, get_args(Norm))):
        if value not in known:
            raise NeuronShareError(f"{name}={value!r} is unknown; use one of {', '.join(known)}.")
    if prompts.answers is None:
        raise NeuronShareError(
            f"{prompts!r} has no answers, in none of {', '.join(prompts.languages)}; give "
            "ParallelPrompts(..., answers={language: [...]})."
        )

"""Measure what each type of neuron contributes to the answer: the paper's two scores, by language, layer and type.

Each neuron has both scores (maths/impact.py) at the token that predicts the answer. A forward pass gives the scores of
all layers. They are reduced at once to a few numbers for each example and type, or to counts for each neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from tl_neuronshare.arguments import explains
from tl_neuronshare.attribution.describing import named
from tl_neuronshare.attribution.impacts import TOP_K, Answer, ImpactOptions, Impacts, LayerImpacts, Norm
from tl_neuronshare.checks import is_count, one_of
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.launch import warn
from tl_neuronshare.maths.activation import Number
from tl_neuronshare.maths.bootstrap import FEWEST, Bootstrap
from tl_neuronshare.maths.impact import largest
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.results.types import TYPES
from tl_neuronshare.running.loop import Keeping
from tl_neuronshare.running.plan import BatchSize, Running
from tl_neuronshare.running.shards import Record

Score = Literal["generation", "correctness"]
# The numbers that are kept for each example, language, layer and type.
_OF_PUSHES = ("sum", "max", "min", "positive", "absolute")
_PUSHED = ("correctness", "other", "difference")
_KEPT = ("count", "top", "sum", "max", "min", *(f"{pushed}_{name}" for pushed in _PUSHED for name in _OF_PUSHES))


@explains
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
    out: str | Path | None = None,
    shard: tuple[int, int] | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure how much each type of neuron writes, and how much it pushes the right answer, by language and layer.

    Args:
        model: a HookedTransformer or TransformerBridge, with raw weights.
        prompts: the prompts that were categorised, or some of their languages, with answers.
        sharing: the types, from `categorise` with this model and these prompts.
        top_k: how many neurons of a layer count as its top by generation impact. A whole number is a number of
            neurons. A float is a share of the layer's width (rounded half up, at least one neuron). If neurons have
            equal impacts, those with lower numbers come first.
        answer: which tokens of the answer are scored. `first` is only the first token. `all` is every token, each at
            the position that predicts it; a neuron's score is then the mean over the tokens.
        norm: how the correctness impact treats the final norm.
            `none`: it is ignored, as in the paper.
            `frozen`: its weight is applied, and its scale is taken from the run and held constant. The score is then
                the neuron's own part of the logit, before the model caps or scales its logits.
            `full`: the score uses the gradient of the logit, so it includes the neuron's effect on the scale.
            A norm between the MLP and the residual stream (Gemma 2 and 3, OLMo 2 and 3) is a part of the model that
            both scores go through: its weight is applied, and its scale frozen; with `full`, its gradient is taken.
        n_resamples: how many resamples the bootstrap draws.
        batch_size: as in `categorise`.
        prepend_bos: as in `categorise`.
        out: as in `categorise`.
        shard: as in `categorise`.
        progress: whether to show a progress bar, if the run takes more than two seconds.

    Returns:
        A table with a row for each language (`all` is the mean over languages; pooled statistics pool them), layer
        (`all` is the whole model), type, score and statistic.

        Each statistic is computed over one example's neurons of the type. `value` is its mean over examples, without
        those for which it is not defined, such as the mean of no neurons. The `pooled_...` statistics are different:
        each is a ratio of two sums over examples.

        Statistics of the score `generation`: `top_share` (percent of the layer's top neurons that are of the type),
        `mean`, `sum`, `max`, `min`. Statistics of the score `correctness`: `mean`, `sum`, `max`, `min`, and the percent
        that the type contributes to the impacts of all neurons: `mean_positive_share` and `pooled_positive_share` (only
        positive impacts), `mean_absolute_share` and `pooled_absolute_share` (absolute values). The score `difference`
        has the same statistics: it is the neuron's correctness impact for the right answer minus that for a wrong one.
        What a neuron does to all answers alike is not in it.

        Columns `low` and `high` are the 95 % interval: a percentile bootstrap over examples, which needs at least ten.
        `examples` is the number of examples behind the value. Two columns are controls. `chance` is what a share would
        be for equally many neurons drawn at random: the percent of the layer's neurons that are of the type.
        `other_answer` is the value for a wrong answer instead of the right one: the answer of the next example whose
        first token is different. Without one, it and the difference are NaN. `table.attrs` says how the table was made.

    Raises:
        NeuronShareError: answers are missing, or an answer adds no token; an option is unknown; a layer has fewer than
            `top_k` neurons; `sharing` is of other prompts, a different model or another choice of BOS; the final norm
            is not of a known kind; or values are not finite.

    Warns:
        UserWarning: the weights are folded or centred; or the model changes the output of the MLPs before it adds it to
            the residual stream, or while it adds it, in a way that is neither a norm nor a multiplier that its
            configuration names.

    Source: arXiv 2406.09265v1, contribution score and effective score; the intervals and controls are ours.

    Examples:
        >>> prompts = ns.demo.prompts()[:3]
        >>> table = attribute(model, prompts, ns.categorise(model, prompts))
        >>> shares = table.query("language == 'en' and layer == 3 and statistic == 'top_share'")
        >>> shares.set_index("type")["value"].sum().round(6)
        np.float64(100.0)
    """
    options, how, keeping = ImpactOptions(top_k, answer, norm), Running(batch_size, prepend_bos), Keeping(out, shard)
    impacts = Impacts(model, prompts, sharing, options, how)
    _warn(impacts)
    bootstrap = Bootstrap(n_resamples)
    shape = (len(prompts), len(prompts.languages), sharing.n_layers, len(TYPES))
    kept = {name: np.zeros(shape) for name in _KEPT}

    def reduced(scores: LayerImpacts) -> Record:
        of_types = _by_type(scores, impacts.top_k[scores.layer]).double()
        return {"kept": rearrange(of_types, "kept type row -> row kept type")}

    def keep(language: str, layer: int, examples: list[int], record: Record) -> None:
        place = (examples, prompts.languages.index(language), layer)
        for name, numbers in zip(_KEPT, record["kept"].unbind(1), strict=True):
            kept[name][place] = numbers.numpy()

    impacts.each(reduced, keep, task="attribute", progress=progress, keeping=keeping)
    table = _table(kept, prompts.languages, bootstrap)
    table.attrs.update(impacts.record | {"n_resamples": bootstrap.n_resamples})
    return table


@explains
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
    out: str | Path | None = None,
    shard: tuple[int, int] | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Find the neurons that are among the top of their layer for the most prompts, over all examples and languages.

    Args:
        model: as in `attribute`.
        prompts: as in `attribute`.
        sharing: as in `attribute`.
        score: the score by which neurons are among the top: `generation` or `correctness`. Only positive scores count.
        n: how many neurons to return. None means all that are among the top for at least one prompt.
        top_k: as in `attribute`.
        answer: as in `attribute`.
        norm: as in `attribute`.
        batch_size: as in `attribute`.
        prepend_bos: as in `categorise`.
        out: as in `categorise`.
        shard: as in `categorise`.
        progress: whether to show a progress bar where it takes more than two seconds.

    Returns:
        A table with a row for each neuron, beginning with those that are most often among the top. Columns: layer;
        neuron; prompts (percent of the prompts for which it is among the top); score (mean over all prompts); languages
        (those in which it is among the top for at least half of the examples); for each type, the number of examples
        for which the neuron is of that type; and always, the type that it is of for every example, or an empty text
        where its type varies or there are fewer than ten examples. A neuron that is always all-shared is active
        whatever the prompt says, and one that is always non-activated is silent. `table[table["always"] == ""]`, with
        n=None, leaves those out, and `mask_from_frame(table, n_layers=..., d_mlp=...)` turns a table into a mask.

    Raises:
        NeuronShareError: whatever `attribute` raises; `score` is unknown; or `n` is not a number of neurons.

    Warns:
        UserWarning: as in `attribute`.

    Examples:
        >>> prompts = ns.demo.prompts()[:3]
        >>> table = top_neurons(model, prompts, ns.categorise(model, prompts), n=5)
        >>> list(table.columns)[:5]
        ['layer', 'neuron', 'prompts', 'score', 'languages']
        >>> int(ns.mask_from_frame(table, n_layers=4, d_mlp=512).sum())
        5
    """
    one_of("score", score, get_args(Score))
    if n is not None and not is_count(n):
        raise NeuronShareError(f"n={n!r}; give a number of neurons, or None for all.")
    options, how, keeping = ImpactOptions(top_k, answer, norm), Running(batch_size, prepend_bos), Keeping(out, shard)
    impacts = Impacts(model, prompts, sharing, options, how)
    _warn(impacts)
    times = torch.zeros(len(prompts.languages), sharing.n_layers, sharing.d_mlp, dtype=torch.int32, device="cpu")
    total = torch.zeros(sharing.n_layers, sharing.d_mlp, dtype=torch.float64, device="cpu")

    def summed(impact: LayerImpacts) -> Record:
        scores = impact.generation if score == "generation" else impact.correctness
        counted = largest(scores, impacts.top_k[impact.layer]) & (scores > 0)
        return {"times": counted.sum(0, keepdim=True), "total": scores.double().sum(0, keepdim=True)}

    def add(language: str, layer: int, examples: list[int], record: Record) -> None:
        width = impacts.widths[layer]
        times[prompts.languages.index(language), layer, :width] += record["times"].sum(0)
        total[layer, :width] += record["total"].sum(0)

    impacts.each(summed, add, task=f"top neurons by {score}", progress=progress, keeping=keeping)
    table = _table_of_neurons(impacts, times, total)[:n]
    table.attrs.update(impacts.record | {"score": score, "n": n})
    return table


def _table_of_neurons(
    impacts: Impacts, times: Int[Tensor, "language layer neuron"], total: Float[Tensor, "layer neuron"]
) -> pd.DataFrame:
    """Make the table of the neurons that are among the top for at least one prompt, the most frequent first."""
    languages, n_examples = impacts.prompts.languages, len(impacts.prompts)
    layers, neurons = times.sum(0).nonzero().T
    often = n_examples <= 2 * times[:, layers, neurons].T
    n_prompts, times_of_types = n_examples * len(languages), impacts.sharing.times_of_types()
    table = pd.DataFrame(
        {
            **named(impacts.layers, torch.stack([layers, neurons], dim=1)),
            "prompts": 100 * times.sum(0)[layers, neurons].double().numpy() / n_prompts,
            "score": total[layers, neurons].numpy() / n_prompts,
            "languages": [
                " ".join(language for language, yes in zip(languages, row, strict=True) if yes)
                for row in often.tolist()
            ],
            **{type.label: times_of_types[type, layers, neurons].numpy() for type in TYPES},
        }
    )
    labels = [type.label for type in TYPES]
    n_examples = len(impacts.sharing)
    is_always = (table[labels] == n_examples) & (n_examples >= FEWEST)
    table["always"] = np.where(is_always.any(axis=1), is_always.idxmax(axis=1), "")
    order = ["prompts", "score", "layer", "neuron"]
    return table.sort_values(order, ascending=[False, False, True, True], ignore_index=True)


def _warn(impacts: Impacts) -> None:
    """Give the warnings about the scores, at the line that called the public function."""
    for warning in impacts.warnings:
        warn(warning)


def _by_type(impacts: LayerImpacts, top_k: int) -> Float[Tensor, "kept type row"]:
    """Reduce a layer to the numbers in `_KEPT`. If there are no neurons of a type, its max and min are infinite."""
    types = torch.arange(len(TYPES), device=impacts.types.device).flip(0).reshape(-1, 1, 1)  # as in TYPES
    # Ones and zeros, since a product takes much less time than `where`; the scores are finite.
    is_of_type = (impacts.types == types).to(impacts.generation.dtype)
    return torch.stack(
        [
            is_of_type.sum(-1),
            (is_of_type * largest(impacts.generation, top_k).to(is_of_type.dtype)).sum(-1),
            *_sum_max_min(impacts.generation, impacts.types, is_of_type * impacts.generation),
            *_pushed(impacts.correctness, impacts.types, is_of_type),
            *_pushed(impacts.other_answer, impacts.types, is_of_type),
            *_pushed(impacts.correctness - impacts.other_answer, impacts.types, is_of_type),
        ]
    )


def _pushed(
    scores: Float[Tensor, "row neuron"],
    types: UInt8[Tensor, "row neuron"],
    is_of_type: Float[Tensor, "type row neuron"],
) -> tuple[Tensor, ...]:
    of_type = is_of_type * scores
    return *_sum_max_min(scores, types, of_type), of_type.clamp(min=0).sum(-1), of_type.abs().sum(-1)


def _sum_max_min(
    scores: Float[Tensor, "row neuron"], types: UInt8[Tensor, "row neuron"], of_type: Float[Tensor, "type row neuron"]
) -> tuple[Tensor, ...]:
    """Reduce scores by type; `of_type` has them once for each type, and 0 where the neuron is of a different type."""

    def extreme(start: float, which: Literal["amax", "amin"]) -> Float[Tensor, "type row"]:
        by_number = scores.new_full((len(scores), len(TYPES)), start)
        return by_number.scatter_reduce(-1, types.long(), scores, which).flip(-1).T  # as in TYPES

    return of_type.sum(-1), extreme(-torch.inf, "amax"), extreme(torch.inf, "amin")


def _table(kept: dict[str, NDArray[np.float64]], languages: Sequence[str], bootstrap: Bootstrap) -> pd.DataFrame:
    """Make the rows of `attribute`, from the numbers that were kept for each example, language, layer and type."""
    kept = {name: _with_whole_model(name, numbers) for name, numbers in kept.items()}
    chance = _mean_over_languages(100 * kept["count"] / kept["count"].sum(-1, keepdims=True)).mean(0)
    labels = list(product(("all", *languages), (*range(kept["count"].shape[2] - 1), "all"), (t.label for t in TYPES)))
    tables = []
    statistics = _statistics(kept)
    for order, (score, statistic) in enumerate(key for key in statistics if key[0] != "other"):
        above, below = _over_languages(statistics[score, statistic])
        value, (low, high) = _value(above, below), bootstrap.intervals(above, below)
        table = pd.DataFrame(labels, columns=["language", "layer", "type"])
        table["score"], table["statistic"] = score, statistic
        table["value"], table["low"], table["high"] = value.ravel(), low.ravel(), high.ravel()
        table["chance"] = chance.ravel() if statistic.endswith("share") else np.nan
        table["other_answer"] = np.nan
        if score == "correctness":
            table["other_answer"] = _value(*_over_languages(statistics["other", statistic])).ravel()
        table["examples"] = (below != 0).sum(0).ravel()
        tables.append(table.assign(row=range(len(table)), order=order))
    return pd.concat(tables).sort_values(["row", "order"], ignore_index=True).drop(columns=["row", "order"])


def _value(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # no example has neurons of the type
        value: NDArray[np.float64] = above.sum(0) / below.sum(0)
    return value


def _with_whole_model(name: str, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add the whole model after the last layer."""
    reduce = np.max if name.endswith("max") else np.min if name.endswith("min") else np.sum
    return np.concatenate([numbers, reduce(numbers, axis=2, keepdims=True)], axis=2)


def _over_languages(
    ratio: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Put the mean over languages before the first, for both parts of a fraction; what is not defined becomes 0 / 0.

    Without a wrong answer there is no difference, and no mean over all languages where one language has none.
    """
    above, below = map(_mean_over_languages, ratio)
    defined = ~(np.isnan(above) | np.isnan(below))
    return np.where(defined, above, 0), np.where(defined, below, 0)


def _mean_over_languages(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put the mean over languages before the first language."""
    return np.concatenate([numbers.mean(1, keepdims=True), numbers], axis=1)


def _statistics(
    kept: dict[str, NDArray[np.float64]],
) -> dict[tuple[str, str], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Each statistic as the upper and the lower part of a fraction; both are summed over examples, and then divided."""
    count = kept["count"]
    every, has_any = np.ones_like(count), (count > 0).astype(float)
    fractions = {("generation", "top_share"): (100 * kept["top"] / kept["top"].sum(-1, keepdims=True), every)}
    for score, prefix in (("generation", ""), *((pushed, f"{pushed}_") for pushed in _PUSHED)):
        total = kept[f"{prefix}sum"]
        fractions[score, "mean"] = total / np.maximum(count, 1), has_any
        fractions[score, "sum"] = total, every
        for name in ("max", "min"):
            fractions[score, name] = np.where(count > 0, kept[f"{prefix}{name}"], 0), has_any
        for name in ("positive", "absolute") if prefix else ():
            impact = kept[f"{prefix}{name}"]
            of_all = np.broadcast_to(impact.sum(-1, keepdims=True), impact.shape)
            is_pushed = (of_all > 0).astype(float)
            fractions[score, f"mean_{name}_share"] = 100 * impact / np.where(of_all > 0, of_all, 1), is_pushed
            fractions[score, f"pooled_{name}_share"] = 100 * impact, of_all
    return fractions

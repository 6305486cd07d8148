"""What each type of neuron contributes to the answer: the paper's two scores, by language, layer and type.

The scores (impact.py) are of single neurons, at the token from which the answer is predicted. Each forward pass gives
those of all layers; they are reduced at once to some numbers for each example and type, or counted for each neuron.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import product
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tl_neuronshare.attribution.impacts import TOP_K, Answer, Impacts, LayerImpacts, Norm
from tl_neuronshare.checks import is_count, one_of
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import Number
from tl_neuronshare.maths.bootstrap import Bootstrap
from tl_neuronshare.maths.impact import largest
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.results.types import TYPES
from tl_neuronshare.running.plan import BatchSize

Score = Literal["generation", "correctness"]
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
    _warn(impacts)
    bootstrap = Bootstrap(n_resamples)
    shape = (len(prompts), len(prompts.languages), sharing.n_layers, len(TYPES))
    kept = {name: np.zeros(shape) for name in _KEPT}

    def keep(scores: LayerImpacts) -> None:
        of_types = _by_type(scores, impacts.top_k[scores.layer])
        place = (scores.examples, prompts.languages.index(scores.language), scores.layer)
        for name, numbers in zip(_KEPT, of_types.double().cpu().numpy(), strict=True):
            kept[name][place] = numbers.T

    impacts.each(keep, task="attribute", progress=progress)
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
    one_of("score", score, get_args(Score))
    if n is not None and not is_count(n):
        raise NeuronShareError(f"n={n!r}; give a number of neurons, or None for all.")
    impacts = Impacts(
        model, prompts, sharing, top_k=top_k, answer=answer, norm=norm, batch_size=batch_size, prepend_bos=prepend_bos
    )
    _warn(impacts)
    times = torch.zeros(len(prompts.languages), sharing.n_layers, sharing.d_mlp, dtype=torch.int32, device="cpu")
    total = torch.zeros(sharing.n_layers, sharing.d_mlp, dtype=torch.float64, device="cpu")

    def add(impact: LayerImpacts) -> None:
        scores = impact.generation if score == "generation" else impact.correctness
        counted = largest(scores, impacts.top_k[impact.layer]) & (scores > 0)
        width = scores.shape[-1]
        times[prompts.languages.index(impact.language), impact.layer, :width] += counted.sum(0).cpu()
        total[impact.layer, :width] += scores.double().sum(0).cpu()

    impacts.each(add, task="top neurons", progress=progress)
    table = _table_of_neurons(impacts, times, total)[:n]
    table.attrs.update(impacts.record | {"score": score})
    return table


def _table_of_neurons(
    impacts: Impacts, times: Int[Tensor, "language layer neuron"], total: Float[Tensor, "layer neuron"]
) -> pd.DataFrame:
    """The neurons that are among the top for some prompt, those that are most often first."""
    languages, n_examples = impacts.prompts.languages, len(impacts.prompts)
    layers, neurons = times.sum(0).nonzero().T
    often = n_examples <= 2 * times[:, layers, neurons].T
    n_prompts = n_examples * len(languages)
    names = [impacts.layers[layer].columns(neurons[layers == layer]) for layer in layers.unique().tolist()]
    names = names or [impacts.layers[0].columns(neurons)]
    table = pd.DataFrame(
        {
            "layer": layers.numpy(),
            **{column: np.concatenate([of_layer[column] for of_layer in names]) for column in names[0]},
            "prompts": 100 * times.sum(0)[layers, neurons].double().numpy() / n_prompts,
            "score": total[layers, neurons].numpy() / n_prompts,
            "languages": [
                " ".join(language for language, yes in zip(languages, row, strict=True) if yes)
                for row in often.tolist()
            ],
            **{type.label: (impacts.types == type).sum(0)[layers, neurons].numpy() for type in TYPES},
        }
    )
    order = ["prompts", "score", "layer", "neuron"]
    return table.sort_values(order, ascending=[False, False, True, True], ignore_index=True)


def _warn(impacts: Impacts) -> None:
    """Warn, at the line that called the public function, of what a user should know of the scores."""
    for warning in impacts.warnings:
        warnings.warn(warning, stacklevel=3)


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

"""Compare results: tasks, thresholds and models side by side; languages and inputs pair by pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, combinations_with_replacement
from math import isqrt
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import count, whole, writable
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.bootstrap import Bootstrap, Collected
from tl_neuronshare.maths.chance import index_and_chance
from tl_neuronshare.maths.excess import excess
from tl_neuronshare.maths.totals import Means
from tl_neuronshare.results.bits import ranges
from tl_neuronshare.results.identity import first_difference
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.results.tables import MISMATCHES, pieces_of_intersections, why_not_mismatched
from tl_neuronshare.results.types import NeuronType

# How much a tensor of pairs of inputs may hold, and one of the neurons of some inputs.
_PAIRS_BYTES, _MASK_BYTES = 1 << 21, 1 << 25


@explains
def side_by_side(
    results: Mapping[str, NeuronSharing] | Mapping[float, NeuronSharing] | Mapping[int, NeuronSharing],
    *,
    name: str,
    mismatches: int = MISMATCHES,
    seed: int = 0,
) -> pd.DataFrame:
    """Put the patterns of several results into one table: of tasks, thresholds or models.

    Args:
        results: for each task (threshold, model) its result. All must have the same languages, since fewer languages
            have more all-shared neurons.
        name: the first column's name, such as "task", "threshold" or "model".
        mismatches: as in `NeuronSharing.summary`.
        seed: as in `NeuronSharing.summary`.

    Returns:
        The rows of every `summary()`, with two more columns: `name`, and `depth`. The depth is the layer as a fraction
        of the model's depth (0 for the first layer, 1 for the last), so that models of different depth can be compared.

    Raises:
        NeuronShareError: no results, or results in different languages.

    Source: the paper's patterns by task, by threshold, and of several models.

    Examples:
        >>> table = side_by_side({"first": sharing[:1], "others": sharing[1:]}, name="task")
        >>> table.query("type == 'specific' and depth == 1")[["task", "layer", "mean"]].round(1)
              task  layer  mean
        14   first      3  13.5
        30  others      3  11.0
    """
    first, *others = _as_results(results)
    if writable("name", name, least=1) in {*first[:1].summary(mismatches=0).columns, "depth"}:
        raise NeuronShareError(
            f"name={name!r} is a column already; give a different one, such as task, threshold or model."
        )
    for other, result in zip(list(results)[1:], others, strict=True):
        if set(result.languages) != set(first.languages):
            raise NeuronShareError(
                f"{name} {other!r} is of {', '.join(result.languages)}, the first of {', '.join(first.languages)}; "
                "types are comparable for the same languages only: categorise both with the same."
            )
    tables = []
    for label, result in results.items():
        table = result.summary(mismatches=mismatches, seed=seed)
        table.insert(0, name, label)
        table.insert(2, "depth", table["layer"] / max(1, result.n_layers - 1))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


@explains
def language_overlap(
    sharing: NeuronSharing, *, mismatches: int = MISMATCHES, seed: int = 0, n_resamples: int = 5000
) -> pd.DataFrame:
    """Measure how far each two languages activate the same neurons, by layer and in all, beside what chance would give.

    Args:
        sharing: the result of `categorise`.
        mismatches: the number of draws of mismatched examples; 0 leaves this chance level out and saves its time.
        seed: the seed of the first draw.
        n_resamples: the number of resamples of the bootstrap over examples.

    Returns:
        A table with a row for each layer, and "all" for all together, and each pair of languages: layer, language,
        other, jaccard (the mean over examples of |A and B| / |A or B|; examples where both are empty are left out),
        low, high (its 95 % interval over examples; NaN for fewer than ten), and two chance levels. `independent` is the
        index of as many neurons drawn at random from each layer (`chance.expected_intersection`). `mismatched` is the
        index when the languages show different examples. `excess` is the index minus that, and `excess_low` and
        `excess_high` are the ends of its 95 % interval over examples (`maths.excess`). These are NaN where there are
        fewer examples than languages, or an example in which both languages are empty.

    Raises:
        NeuronShareError: n_resamples or mismatches is not such a number, or seed is not a whole number.

    Examples:
        >>> table = language_overlap(sharing)
        >>> table.query("layer == 'all' and language == 'es' and other == 'fr'")[["jaccard", "independent"]].round(2)
             jaccard  independent
        159      0.5         0.08
    """
    bootstrap, seed = Bootstrap(n_resamples), whole("seed", seed)
    pairs = list(combinations(range(len(sharing.languages)), 2))
    indices, independents, values, known = Means(), Means(), Collected(np.float64), Collected(np.bool_)
    for of_examples, at_random in _jaccard_of_pairs(sharing, pairs):
        indices.add(of_examples)
        independents.add(at_random)
        values.add(of_examples.nan_to_num(0).numpy())
        known.add((~of_examples.isnan()).numpy())
    low, high = bootstrap.intervals(values.whole(), known.whole())
    value, independent = indices.means(), independents.means()
    beside = _beside_mismatched(sharing, pairs, values.whole(), known.whole(), mismatches=mismatches, seed=seed)
    return pd.DataFrame(
        {
            "layer": layer,
            "language": sharing.languages[first],
            "other": sharing.languages[second],
            "jaccard": value[pair, place].item(),
            "low": low[pair, place],
            "high": high[pair, place],
            "independent": independent[pair, place].item(),
            **{name: numbers[pair, place].item() for name, numbers in beside.items()},
        }
        for place, layer in enumerate(_layers(sharing))
        for pair, (first, second) in enumerate(pairs)
    )


@explains
def input_overlap(
    results: Mapping[str, NeuronSharing], *, type: NeuronType | str = NeuronType.ALL_SHARED
) -> pd.DataFrame:
    """Measure how far the neurons of one type are the same for two inputs: of two tasks, and of one task.

    Types belong to an input, so two tasks are compared input by input: every input of the first with every input of
    the second. Two tasks differ if their inputs have less in common than two inputs of the same task. The time grows
    with the square of the number of inputs, and the memory does not grow.

    Args:
        results: for each task its result, of one model and the same languages.
        type: the type of the neurons that are compared.

    Returns:
        A table with a row for each layer, and "all" for all together, and each pair of tasks, a task with itself
        included: layer, task, other, jaccard (the mean over pairs of two different inputs; pairs where both sets are
        empty are left out), independent (the index of as many neurons drawn at random from each layer), pairs (the
        number of pairs that count).

    Raises:
        NeuronShareError: no results, or results that differ in layers, languages, weights, site, position or threshold.

    Examples:
        >>> table = input_overlap({"first": sharing[:1], "others": sharing[1:]})
        >>> table.query("layer == 'all'").drop(columns="layer").round(2)
              task   other  jaccard  independent  pairs
        4    first   first      NaN          NaN      0
        9    first  others     0.15         0.02      2
        14  others  others     0.06         0.01      1
    """
    first, *others = _as_results(results)
    for name, result in zip(list(results)[1:], others, strict=True):
        difference = first_difference(first, result)
        if difference is not None:
            what, ours, theirs = difference
            raise NeuronShareError(
                f"Task {name!r} has {what} {theirs!r}, the first {ours!r}; compare results that measured the same."
            )
    rows = []
    for task, other in combinations_with_replacement(results, 2):
        indices, at_random = _means_of_inputs(results[task], results[other], type)
        rows += [
            {
                "layer": layer,
                "task": task,
                "other": other,
                "jaccard": indices.means()[place].item(),
                "independent": at_random.means()[place].item(),
                "pairs": int(indices.n[place]),
            }
            for place, layer in enumerate(_layers(first))
        ]
    return pd.DataFrame(rows)


def _as_results(results: Mapping[Any, NeuronSharing]) -> list[NeuronSharing]:
    """The results of a mapping; refuse what is not a mapping to results."""
    values = list(results.values()) if isinstance(results, Mapping) else []
    if not values or not all(isinstance(value, NeuronSharing) for value in values):
        raise NeuronShareError("results is not a mapping from names to NeuronSharing; give {'xnli': sharing, ...}.")
    return values


def _layers(sharing: NeuronSharing) -> list[int | str]:
    return [*range(sharing.n_layers), "all"]


def _jaccard_of_pairs(
    sharing: NeuronSharing, pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[Float[Tensor, "example pair layer_and_all"], Float[Tensor, "example pair layer_and_all"]]]:
    """The index of each pair of languages, and what it would be at random: by layer, and last over all layers."""
    first, second = (list(side) for side in zip(*pairs, strict=True))
    for by_layer in pieces_of_intersections(sharing):
        counts = rearrange(by_layer.double(), "example layer a b -> example a b layer")
        sizes, other_sizes = counts[:, first, first], counts[:, second, second]
        yield index_and_chance(counts[:, first, second], sizes, other_sizes, sharing.widths)


def _beside_mismatched(
    sharing: NeuronSharing,
    pairs: Sequence[tuple[int, int]],
    values: NDArray[np.float64],
    known: NDArray[np.bool_],
    *,
    mismatches: int,
    seed: int,
) -> dict[str, NDArray[np.float64]]:
    """The mean index of mismatched examples, how much larger it is in reality, and its interval: by pair and layer."""
    found = {name: np.full(values.shape[1:], np.nan) for name in ("mismatched", "excess", "excess_low", "excess_high")}
    if not count("mismatches", mismatches, least=0) or why_not_mismatched(sharing):
        return found
    levels, of_draws, offsets = [], [], []
    for number in range(mismatches):
        moved, indices, of_rows = sharing.mismatched(seed=seed + number), Means(), Collected(np.float64)
        for of_examples, _ in _jaccard_of_pairs(moved, pairs):
            indices.add(of_examples)
            of_rows.add(of_examples.numpy())
        levels.append(indices.means())
        of_draws.append(of_rows.whole())
        offsets.append(moved.metadata["mismatched"])
    found["mismatched"] = torch.stack(levels).mean(0).numpy()
    is_known: NDArray[np.bool_] = np.logical_and.reduce(known)
    for pair, (first, second) in enumerate(pairs):
        draws = [
            (of_draw[:, pair], (of_languages[first], of_languages[second]))
            for of_draw, of_languages in zip(of_draws, offsets, strict=True)
        ]
        for name, numbers in zip(("excess", "excess_low", "excess_high"), excess(values[:, pair], draws), strict=True):
            found[name][pair] = np.where(is_known[pair], numbers, np.nan)
    return found


def _means_of_inputs(sharing: NeuronSharing, other: NeuronSharing, type: NeuronType | str) -> tuple[Means, Means]:
    """The index of each two different inputs, and what it would be at random: by layer, and last over all layers.

    Some inputs are compared with some others at a time, so that memory does not grow with their number.
    """
    n_layers, d_mlp = sharing.is_neuron.shape
    step = max(1, min(isqrt(_PAIRS_BYTES // (8 * n_layers)), _MASK_BYTES // (n_layers * d_mlp)))
    indices, at_random = Means(), Means()
    for rows in ranges(len(sharing), step):
        mask = sharing.mask(type, examples=rows)
        # Of one task, each pair of inputs is looked at once.
        for columns in ranges(len(other), step, start=rows.start if sharing is other else 0):
            found = _jaccard_of_inputs(mask, other.mask(type, examples=columns), sharing.widths)
            is_pair = torch.ones(len(rows), len(columns), dtype=torch.bool, device="cpu")
            if sharing is other and rows == columns:
                is_pair = is_pair.triu(diagonal=1)  # an input is never compared with itself
            for means, of_pairs in zip((indices, at_random), found, strict=True):
                means.add(of_pairs[is_pair])
    return indices, at_random


def _jaccard_of_inputs(
    mask: Bool[Tensor, "a layer neuron"], other: Bool[Tensor, "b layer neuron"], widths: Sequence[int]
) -> tuple[Float[Tensor, "a b layer_and_all"], Float[Tensor, "a b layer_and_all"]]:
    """The index of each pair of inputs, and what it would be at random: by layer, and last over all layers."""
    common = torch.stack(  # layer by layer: as floats masks take four times the bytes
        [
            einsum(mask[:, layer].float(), other[:, layer].float(), "a neuron, b neuron -> a b")
            for layer in range(len(widths))
        ],
        dim=-1,
    )
    sizes = rearrange(mask.sum(-1), "a layer -> a 1 layer")
    return index_and_chance(common.double(), sizes.double(), other.sum(-1).double(), widths)

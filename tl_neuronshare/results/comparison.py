"""Results against each other: tasks, thresholds and models side by side; languages and inputs pair by pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, combinations_with_replacement
from typing import Any

import pandas as pd
import torch
from einops import einsum, rearrange
from jaxtyping import Float, Shaped
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.bootstrap import Bootstrap
from tl_neuronshare.maths.chance import expected_intersection, jaccard
from tl_neuronshare.results.sharing import MISMATCHES, NeuronSharing, NeuronType, first_difference


def side_by_side(
    results: Mapping[str, NeuronSharing] | Mapping[float, NeuronSharing],
    *,
    name: str,
    mismatches: int = MISMATCHES,
    seed: int = 0,
) -> pd.DataFrame:
    """The patterns of several results in one table: of tasks, thresholds or models.

    Args:
        results: for each task (threshold, model) its result, all of the same languages: with fewer of them more
            neurons are all-shared.
        name: of the first column, such as "task", "threshold", "model".
        mismatches: as in `NeuronSharing.summary`.
        seed: as in `NeuronSharing.summary`.

    Returns:
        The rows of every `summary()`, with two more columns: `name`, and `depth`, the layer as a fraction of the
        model's depth (0 the first layer, 1 the last), by which models of different depth can be compared.

    Raises:
        NeuronShareError: no results, or of other languages.

    Source: the paper's patterns by task, by threshold, and of several models.

    Example:
        >>> table = side_by_side({"first": sharing[:1], "others": sharing[1:]}, name="task")
        >>> table.query("type == 'specific' and depth == 1")[["task", "layer", "mean"]].round(1)
              task  layer  mean
        14   first      3  13.5
        30  others      3  11.0
    """
    first, *others = _results(results)
    if not isinstance(name, str) or name in {*first[:1].summary(mismatches=0).columns, "depth"}:
        raise NeuronShareError(f"name={name!r} is a column already, or no name; use such as task, threshold or model.")
    for other, result in zip(list(results)[1:], others, strict=True):
        if set(result.languages) != set(first.languages):
            raise NeuronShareError(
                f"{name} {other!r} is of {', '.join(result.languages)}, the first of {', '.join(first.languages)}; "
                "types are comparable for the same languages only: categorise both with these."
            )
    tables = []
    for label, result in results.items():
        table = result.summary(mismatches=mismatches, seed=seed)
        table.insert(0, name, label)
        table.insert(2, "depth", table["layer"] / max(1, result.n_layers - 1))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def language_overlap(
    sharing: NeuronSharing, *, mismatches: int = MISMATCHES, seed: int = 0, n_resamples: int = 5000
) -> pd.DataFrame:
    """How far each two languages activate the same neurons, by layer and in all, beside what chance would give.

    Args:
        sharing: what `categorise` found.
        mismatches: draws of mismatched examples; 0 saves their time.
        seed: of the first draw.
        n_resamples: of the bootstrap over examples.

    Returns:
        A table with a row for each layer, and "all" for all together, and each pair of languages: layer, language,
        other, jaccard (the mean over examples of |A and B| / |A or B|; examples where both are empty are left out),
        low, high (its 95 % interval over examples; NaN for fewer than ten), and two chance levels. `independent`: as
        many neurons drawn at random from each layer (`chance.expected_intersection`). `mismatched`: the languages
        show different examples; NaN where there are fewer examples than languages.

    Raises:
        NeuronShareError: no number of resamples.

    Example:
        >>> table = language_overlap(sharing)
        >>> table.query("layer == 'all' and language == 'es' and other == 'fr'")[["jaccard", "independent"]].round(2)
             jaccard  independent
        159      0.5         0.08
    """
    bootstrap = Bootstrap(n_resamples)
    pairs = list(combinations(range(len(sharing.languages)), 2))
    found, expected = _jaccard_of_pairs(sharing, pairs)
    mismatched = torch.full_like(found[0], torch.nan)
    if mismatches and sharing.n_examples >= len(sharing.languages):
        draws = [sharing.mismatched(seed=seed + draw) for draw in range(mismatches)]
        mismatched = torch.stack([_jaccard_of_pairs(draw, pairs)[0].nanmean(0) for draw in draws]).mean(0)
    low, high = bootstrap.intervals(found.nan_to_num(0).numpy(), (~found.isnan()).double().numpy())
    value, independent = found.nanmean(0), expected.nanmean(0)
    return pd.DataFrame(
        {
            "layer": layer,
            "language": sharing.languages[a],
            "other": sharing.languages[b],
            "jaccard": value[pair, place].item(),
            "low": low[pair, place],
            "high": high[pair, place],
            "independent": independent[pair, place].item(),
            "mismatched": mismatched[pair, place].item(),
        }
        for place, layer in enumerate(_layers(sharing))
        for pair, (a, b) in enumerate(pairs)
    )


def input_overlap(
    results: Mapping[str, NeuronSharing], *, type: NeuronType | str = NeuronType.ALL_SHARED
) -> pd.DataFrame:
    """How far the neurons of one type are the same for two inputs: of two tasks, and of one task.

    Types belong to an input, so two tasks are compared input by input: every input of the one with every input of the
    other. Whether tasks differ shows beside how much two inputs of the same task do.

    Args:
        results: for each task its result, of one model and the same languages.
        type: which neurons.

    Returns:
        A table with a row for each layer, and "all" for all together, and each pair of tasks, each with itself too:
        layer, task, other, jaccard (the mean over pairs of inputs, an input never with itself; pairs where both sets
        are empty are left out), independent (as many neurons drawn at random from each layer), pairs (how many count).

    Raises:
        NeuronShareError: no results, or of other layers, languages, weights, site, position or threshold.

    Example:
        >>> table = input_overlap({"first": sharing[:1], "others": sharing[1:]})
        >>> table.query("layer == 'all'").drop(columns="layer").round(2)
              task   other  jaccard  independent  pairs
        4    first   first      NaN          NaN      0
        9    first  others     0.15         0.02      2
        14  others  others     0.06         0.01      1
    """
    first, *others = _results(results)
    for name, result in zip(list(results)[1:], others, strict=True):
        difference = first_difference(first, result)
        if difference is not None:
            what, ours, theirs = difference
            raise NeuronShareError(
                f"Task {name!r} has {what} {theirs!r}, the first {ours!r}; compare results that measured the same."
            )
    masks = {task: result.mask(type) for task, result in results.items()}
    rows = []
    for task, other in combinations_with_replacement(masks, 2):
        common = torch.stack(  # layer by layer: as floats masks take four times the bytes
            [
                einsum(masks[task][:, layer].float(), masks[other][:, layer].float(), "a neuron, b neuron -> a b")
                for layer in range(first.n_layers)
            ],
            dim=-1,
        )
        one, two = rearrange(masks[task].sum(-1), "a layer -> a 1 layer"), masks[other].sum(-1)
        pairs = torch.ones(common.shape[:2], dtype=torch.bool, device="cpu")
        if task == other:
            pairs = pairs.triu(diagonal=1)
        widths = torch.tensor(first.widths, device="cpu")
        found = _with_all(common.double(), one, two)[pairs]
        independent = _with_all(expected_intersection(one.double(), two.double(), widths.double()), one, two)[pairs]
        rows += [
            {
                "layer": layer,
                "task": task,
                "other": other,
                "jaccard": found[:, place].nanmean().item(),
                "independent": independent[:, place].nanmean().item(),
                "pairs": int((~found[:, place].isnan()).sum()),
            }
            for place, layer in enumerate(_layers(first))
        ]
    return pd.DataFrame(rows)


def _results(results: Mapping[Any, NeuronSharing]) -> list[NeuronSharing]:
    found = list(results.values()) if isinstance(results, Mapping) else []
    if not found or not all(isinstance(one, NeuronSharing) for one in found):
        raise NeuronShareError("results is no mapping from names to NeuronSharing; give {'xnli': sharing, ...}.")
    return found


def _layers(sharing: NeuronSharing) -> list[int | str]:
    return [*range(sharing.n_layers), "all"]


def _jaccard_of_pairs(
    sharing: NeuronSharing, pairs: Sequence[tuple[int, int]]
) -> tuple[Float[Tensor, "example pair layer"], Float[Tensor, "example pair layer"]]:
    """The index of each pair of languages, and what it would be at random; by layer, and at the end in all."""
    counts = rearrange(sharing.intersections().double(), "example layer a b -> example a b layer")
    one, other = (list(side) for side in zip(*pairs, strict=True))
    first, second = counts[:, one, one], counts[:, other, other]
    expected = expected_intersection(first, second, torch.tensor(sharing.widths, device="cpu").double())
    return _with_all(counts[:, one, other], first, second), _with_all(expected, first, second)


def _with_all(
    common: Shaped[Tensor, "*batch layer"],
    first: Shaped[Tensor, "*#batch layer"],
    second: Shaped[Tensor, "*#batch layer"],
) -> Float[Tensor, "*batch layer_and_all"]:
    """The Jaccard index from the counts of each layer, and at the end from their sums."""
    with_sums = [torch.cat([counts, counts.sum(-1, keepdim=True)], dim=-1) for counts in (common, first, second)]
    return jaccard(*with_sums)

"""Compare methods: how many neurons each finds by layer, how far they agree, and of which types their neurons are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations_with_replacement
from math import nan
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import refuse_language_all
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import count_true
from tl_neuronshare.maths.chance import expected_intersection, jaccard
from tl_neuronshare.results.masks import check_mask
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.results.types import TYPES

Masks = Mapping[str, Bool[Tensor, "layer neuron"]]
_INDICES = ("jaccard", "chance", "largest")


@explains
def sizes(masks: Mapping[str, Masks], *, is_neuron: Bool[Tensor, "layer neuron"]) -> pd.DataFrame:
    """Count how many neurons each method finds for each language in each layer.

    Args:
        masks: for each method its masks, one a language.
        is_neuron: which places are neurons, such as `sharing.is_neuron`.

    Returns:
        A table with a row for each method, language and layer (`all` is the whole model): method, language, layer,
        neurons, and percent (of the layer's neurons; NaN where it has none).

    Raises:
        NeuronShareError: a mask has a different shape.

    Examples:
        >>> masks = {"lape": {"en": torch.tensor([[True, False], [False, False]])}}
        >>> print(sizes(masks, is_neuron=torch.ones(2, 2, dtype=torch.bool)).to_string(index=False))
        method language layer  neurons  percent
          lape       en     0        1     50.0
          lape       en     1        0      0.0
          lape       en   all        1     25.0
    """
    widths = count_true(is_neuron).tolist()
    rows = []
    for method, of_method in _checked(masks, is_neuron).items():
        for language, mask in of_method.items():
            counts = count_true(mask).tolist()
            for layer, n, width in [
                *zip(range(len(widths)), counts, widths, strict=True),
                ("all", sum(counts), sum(widths)),
            ]:
                rows.append(
                    {
                        "method": method,
                        "language": language,
                        "layer": layer,
                        "neurons": n,
                        "percent": 100 * n / width if width else nan,
                    }
                )
    return pd.DataFrame(rows)


@explains
def agreement(masks: Mapping[str, Masks], *, is_neuron: Bool[Tensor, "layer neuron"]) -> pd.DataFrame:
    """Measure how far two methods find the same neurons, beside what their sizes give by chance and at most.

    Args:
        masks: for each method its masks, one a language.
        is_neuron: which places are neurons, such as `sharing.is_neuron`.

    Returns:
        A table with a row for each two methods (also of a method with itself) and language that both have (`all` is the
        mean over languages): method, other, language, jaccard, chance (the index of the expected counts, for as many
        random neurons in each layer), and largest (the index if all neurons of the smaller mask in each layer were also
        in the larger). All are NaN where one of both finds no neuron.

    Raises:
        NeuronShareError: a mask has a different shape.

    Examples:
        >>> first, second = torch.tensor([[True, True, False, False]]), torch.tensor([[False, True, False, True]])
        >>> masks = {"lape": {"en": first}, "mine": {"en": second}}
        >>> table = agreement(masks, is_neuron=torch.ones(1, 4, dtype=torch.bool))
        >>> print(table.query("language == 'all'").round(2).to_string(index=False))
        method other language  jaccard  chance  largest
          lape  lape      all     1.00    0.33      1.0
          lape  mine      all     0.33    0.33      1.0
          mine  mine      all     1.00    0.33      1.0
    """
    rows = []
    for (method, first), (other, second) in combinations_with_replacement(_checked(masks, is_neuron).items(), 2):
        of_languages = [
            {
                "method": method,
                "other": other,
                "language": language,
                **_jaccard(first[language], second[language], is_neuron),
            }
            for language in first
            if language in second
        ]
        table = pd.DataFrame(of_languages, columns=["method", "other", "language", *_INDICES])
        means = table[[*_INDICES]].mean().to_dict()
        rows += [*of_languages, {"method": method, "other": other, "language": "all", **means}]
    return pd.DataFrame(rows)


def _jaccard(
    first: Bool[Tensor, "layer neuron"], second: Bool[Tensor, "layer neuron"], is_neuron: Bool[Tensor, "layer neuron"]
) -> dict[str, float]:
    """The index of two masks, what as many random neurons in each layer have by chance, and what they have at most."""
    n_first, n_second, widths = (count_true(mask).double() for mask in (first, second, is_neuron))
    totals = n_first.sum(), n_second.sum()
    if not all(totals):
        return dict.fromkeys(_INDICES, nan)
    in_both = (
        count_true(first & second).double(),
        expected_intersection(n_first, n_second, widths.clamp(min=1)),
        torch.minimum(n_first, n_second),
    )
    return {name: float(jaccard(each.sum(), *totals)) for name, each in zip(_INDICES, in_both, strict=True)}


@explains
def types(masks: Mapping[str, Masks], sharing: NeuronSharing) -> pd.DataFrame:
    """Count of which of the four types the neurons of each method are, over all examples.

    Args:
        masks: for each method its masks, one a language.
        sharing: the types.

    Returns:
        A table with a row for each method, language (`all` is the mean over languages) and type: method, language,
        type, percent (of the mask's neurons, over all examples), and chance (the same for as many neurons of each layer
        drawn at random).

    Raises:
        NeuronShareError: a mask has a different shape.

    Examples:
        >>> table = types({"all": {"en": sharing.is_neuron}}, sharing)
        >>> bool((table["percent"] - table["chance"]).abs().max() < 1e-6)
        True
    """
    times = sharing.times_of_types().double() / len(sharing)  # type layer neuron
    of_layers = times.sum(-1) / count_true(sharing.is_neuron).clamp(min=1)

    def rows_of(method: str, of_method: Masks) -> Iterator[dict[str, Any]]:
        for language, mask in of_method.items():
            counts = count_true(mask).double()
            for type in TYPES:
                percent = 100 * times[type][mask].sum() / counts.sum()
                chance = 100 * (of_layers[type] * counts).sum() / counts.sum()
                yield {
                    "method": method,
                    "language": language,
                    "type": type.label,
                    "percent": float(percent),
                    "chance": float(chance),
                }

    tables = []
    for method, of_method in _checked(masks, sharing.is_neuron).items():
        table = pd.DataFrame(rows_of(method, of_method))
        means = table.groupby(["method", "type"], sort=False)[["percent", "chance"]].mean().reset_index()
        tables += [table, means.assign(language="all")]
    return pd.concat(tables, ignore_index=True)


def _checked(masks: Mapping[str, Masks], is_neuron: Bool[Tensor, "layer neuron"]) -> Mapping[str, Masks]:
    """Refuse masks that do not fit."""
    if not masks or not all(isinstance(of_method, Mapping) and of_method for of_method in masks.values()):
        raise NeuronShareError("masks lacks a method or its languages; give {method: {language: mask}}.")
    for method, of_method in masks.items():
        refuse_language_all(of_method)
        for language, mask in of_method.items():
            check_mask(mask)
            if mask.shape != is_neuron.shape:
                raise NeuronShareError(
                    f"Method {method!r}, language {language!r}: the mask has shape {tuple(mask.shape)}; give "
                    f"{tuple(is_neuron.shape)}."
                )
            if (mask.cpu() & ~is_neuron).any():
                raise NeuronShareError(
                    f"Method {method!r}, language {language!r}: the mask has places that are not neurons; leave "
                    "them out."
                )
    return masks

"""Tables of a result: types, activation, persistence and overlap. The methods of NeuronSharing describe them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_neuronshare.checks import count, is_count
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.chance import independent_types, jaccard
from tl_neuronshare.results.routing import most_used
from tl_neuronshare.results.types import TYPES, NeuronType, neuron_types

if TYPE_CHECKING:
    from tl_neuronshare.results.sharing import NeuronSharing

MISMATCHES = 3  # draws of mismatched examples


def summary(sharing: NeuronSharing, *, mismatches: int, seed: int) -> pd.DataFrame:
    """Make the table of `NeuronSharing.summary`."""
    percent = _percent_of_types(sharing)
    independent = 100 * independent_types(_percent_by_language(sharing) / 100).mean(1)
    mismatched = mismatched_level(
        sharing,
        lambda drawn: _percent_of_types(drawn).mean(1),
        mismatches=mismatches,
        seed=seed,
        like=independent,
    )
    columns = {**_statistics(percent), "independent": independent, "mismatched": mismatched}
    if sharing.routing is not None:
        columns |= _of_routed(sharing)
    return _table(sharing, "type", _IN_ORDER, columns)


def by_language(sharing: NeuronSharing) -> pd.DataFrame:
    """Make the table of `NeuronSharing.by_language`."""
    percent = _percent_by_language(sharing).transpose(0, 1)
    columns = _statistics(percent)
    if sharing.routing is not None:
        pairs = zip(sharing.pieces(), sharing.computed(), strict=True)
        shares = [_percent_of(activated, computed) for activated, computed in pairs]
        columns["of_routed"] = torch.cat(shares).nanmean(0)
    table = _table(sharing, "language", _numbered(sharing.languages), columns)
    if sharing.routing is not None:
        table["experts"] = [experts for of_layer in most_used(sharing.routing) for experts in of_layer]
    return table


def persistence(sharing: NeuronSharing) -> pd.DataFrame:
    """Make the table of `NeuronSharing.persistence`."""
    shares = []
    always = torch.ones(len(TYPES), sharing.n_layers, sharing.d_mlp, dtype=torch.bool, device="cpu")
    for of_types in _masks(sharing):
        shares.append(_percent(sharing, of_types))
        always &= of_types.all(1)
    percent = torch.cat(shares, dim=1)
    columns = {
        "average": percent.mean(1),
        "every": _percent(sharing, always),
        "chance": 100 * (percent / 100).prod(1),
    }
    return _table(sharing, "type", _IN_ORDER, columns)


def never_activated(sharing: NeuronSharing) -> pd.DataFrame:
    """Make the table of `NeuronSharing.never_activated`."""
    names = (*sharing.languages, "all")
    percent = []
    ever = torch.zeros(len(names), sharing.n_layers, sharing.d_mlp, dtype=torch.bool, device="cpu")
    for activated in sharing.pieces():
        with_all = torch.cat([activated, activated.any(1, keepdim=True)], dim=1)
        percent.append(_percent(sharing, ~with_all & sharing.is_neuron))
        ever |= with_all.any(0)
    every = _percent(sharing, ~ever & sharing.is_neuron)
    columns = {**_statistics(torch.cat(percent).transpose(0, 1)), "every": every}
    return _table(sharing, "language", _numbered(names), columns)


def intersections(sharing: NeuronSharing, layers: Iterable[int]) -> Int[Tensor, "example layer language language"]:
    """Count in some layers how many neurons two languages both activate."""
    counts = []
    for activated in sharing.pieces():
        by_layer = []
        for layer in layers:  # one at a time: as floats they take four times the bytes
            chosen = activated[:, :, layer].float()
            by_layer.append(einsum(chosen, chosen, "example a neuron, example b neuron -> example a b"))
        counts.append(torch.stack(by_layer, dim=1).long())
    return torch.cat(counts)


def overlap(sharing: NeuronSharing, layer: int | None) -> pd.DataFrame:
    """Make the table of `NeuronSharing.overlap`."""
    if layer is not None and not (is_count(layer, 0) and layer < sharing.n_layers):
        raise NeuronShareError(f"There is no layer {layer!r}; use 0 to {sharing.n_layers - 1}, or None for all.")
    layers = range(sharing.n_layers) if layer is None else [layer]
    both = intersections(sharing, layers).sum(1).double()
    sizes = torch.diagonal(both, dim1=-2, dim2=-1)
    indices = jaccard(both, sizes[:, :, None], sizes[:, None])
    names = pd.Index(sharing.languages, name="language")
    return pd.DataFrame(indices.nanmean(0).numpy(), index=names, columns=names)


def mismatched_level(
    sharing: NeuronSharing,
    measure: Callable[[NeuronSharing], Float[Tensor, ...]],
    *,
    mismatches: int,
    seed: int,
    like: Float[Tensor, ...],
) -> Float[Tensor, ...]:
    """Give the mean of a measure over draws of mismatched examples, of the shape of `like`.

    It is NaN where there are fewer examples than languages, so that no draw is possible.

    Raises:
        NeuronShareError: mismatches is not a number of draws, or seed is not a whole number.
    """
    if not count("mismatches", mismatches, least=0) or len(sharing) < len(sharing.languages):
        return torch.full_like(like, torch.nan)
    draws = [measure(sharing.mismatched(seed=seed + number)) for number in range(mismatches)]
    return torch.stack(draws).mean(0)


def _percent_of_types(sharing: NeuronSharing) -> Float[Tensor, "type example layer"]:
    """Percent of each layer's neurons that are of each type, in the order of NeuronType."""
    return torch.cat([_percent(sharing, of_types) for of_types in _masks(sharing)], dim=1)


def _of_routed(sharing: NeuronSharing) -> dict[str, Float[Tensor, "type layer"]]:
    """Mean percent of the types among neurons that are computed in at least one language, and in every language."""
    shares: dict[str, list[Tensor]] = {"of_routed": [], "of_routed_in_all": []}
    for of_types, computed in zip(_masks(sharing), sharing.computed(), strict=True):
        shares["of_routed"].append(_percent_of(of_types, computed.any(1)))
        shares["of_routed_in_all"].append(_percent_of(of_types, computed.all(1)))
    return {name: torch.cat(parts, dim=1).nanmean(1) for name, parts in shares.items()}


def _percent_of(
    chosen: Bool[Tensor, "*batch layer neuron"], among: Bool[Tensor, "*#batch layer neuron"]
) -> Float[Tensor, "*batch layer"]:
    """Percent of some neurons that are chosen; NaN where there are none of them."""
    return 100 * (chosen & among).sum(-1).double() / among.sum(-1)


def _masks(sharing: NeuronSharing) -> Iterator[Bool[Tensor, "type example layer neuron"]]:
    """Which neurons are of each type, in the order of NeuronType, some examples at a time."""
    for activated in sharing.pieces():
        types = neuron_types(activated)
        yield torch.stack([(types == type) & sharing.is_neuron for type in NeuronType])


def _percent_by_language(sharing: NeuronSharing) -> Float[Tensor, "example language layer"]:
    """Percent of each layer's neurons that each language activates."""
    return torch.cat([_percent(sharing, activated) for activated in sharing.pieces()])


def _percent(sharing: NeuronSharing, chosen: Bool[Tensor, "*batch layer neuron"]) -> Float[Tensor, "*batch layer"]:
    """Percent of each layer's own neurons that are chosen."""
    return 100 * chosen.sum(-1).double() / torch.tensor(sharing.widths, device="cpu")


def _statistics(values: Float[Tensor, "name example layer"]) -> dict[str, Float[Tensor, "name layer"]]:
    """Mean, standard deviation (the population's), least and most over the examples."""
    measures: Mapping[str, Callable[[Tensor], Tensor]] = {
        "mean": torch.Tensor.mean,
        "std": lambda of_examples: of_examples.std(correction=0),
        "min": torch.Tensor.min,
        "max": torch.Tensor.max,
    }
    # One vector at a time, since torch rounds a sum over an axis of a larger tensor differently.
    return {
        name: torch.stack([torch.stack([measure(row) for row in rows.unbind(-1)]) for rows in values])
        for name, measure in measures.items()
    }


def _numbered(labels: Sequence[str]) -> dict[str, int]:
    """Each label's place on the first axis of what a table shows."""
    return {label: number for number, label in enumerate(labels)}


_IN_ORDER = {type.label: int(type) for type in TYPES}


def _table(
    sharing: NeuronSharing, kind: str, labels: Mapping[str, int], columns: Mapping[str, Float[Tensor, "name layer"]]
) -> pd.DataFrame:
    """A row for each layer and label: layer, what the label is, and the columns."""
    return pd.DataFrame(
        {"layer": layer, kind: label, **{name: values[place, layer].item() for name, values in columns.items()}}
        for layer in range(sharing.n_layers)
        for label, place in labels.items()
    )

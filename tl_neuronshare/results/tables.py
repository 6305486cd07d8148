"""Tables of a result: types, activation, persistence and overlap. The methods of NeuronSharing describe them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tl_neuronshare.checks import count, is_count, whole
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import count_bits, pack
from tl_neuronshare.maths.bootstrap import Collected
from tl_neuronshare.maths.chance import independent_types, jaccard
from tl_neuronshare.maths.excess import excess
from tl_neuronshare.maths.totals import Counts, Means, one_after_the_other
from tl_neuronshare.results.routing import most_used
from tl_neuronshare.results.types import TYPES, packed_types

if TYPE_CHECKING:
    from tl_neuronshare.results.sharing import NeuronSharing

MISMATCHES = 12  # draws of mismatched examples; an interval needs several


def summary(sharing: NeuronSharing, *, mismatches: int, seed: int) -> pd.DataFrame:
    """Make the table of `NeuronSharing.summary`."""
    at_random, widths = Means(), _widths(sharing)

    def add(packed: UInt8[Tensor, "example language layer byte"]) -> None:
        independent = independent_types(count_bits(packed).double() / widths)
        at_random.add(rearrange(independent, "type example layer -> example type layer"))

    of_examples = Collected(np.int32)
    counts = _of_types(sharing, of_examples, also=add)
    columns = {**counts.statistics(sharing.widths), "independent": 100 * at_random.means()}
    columns |= _beside_mismatched(sharing, of_examples, mismatches=mismatches, seed=seed, like=columns["mean"])
    if sharing.routing is not None:
        columns |= _of_routed(sharing)
    return _table(sharing, "type", _IN_ORDER, columns)


def by_language(sharing: NeuronSharing) -> pd.DataFrame:
    """Make the table of `NeuronSharing.by_language`."""
    counts = Counts()
    for packed in _pieces(sharing):
        counts.add(count_bits(packed))
    columns = counts.statistics(sharing.widths)
    if sharing.routing is not None:
        of_routed = Means()
        for packed, computed in zip(_pieces(sharing), sharing.computed(), strict=True):
            of_routed.add(_percent_of(packed, pack(computed)))
        columns["of_routed"] = of_routed.means()
    table = _table(sharing, "language", _numbered(sharing.languages), columns)
    if sharing.routing is not None:
        table["experts"] = [experts for of_layer in most_used(sharing.routing) for experts in of_layer]
    return table


def persistence(sharing: NeuronSharing) -> pd.DataFrame:
    """Make the table of `NeuronSharing.persistence`."""
    counts, widths = Counts(), _widths(sharing)
    always = sharing.packed_is_neuron.repeat(len(TYPES), 1, 1)
    chance = torch.ones(len(TYPES), sharing.n_layers, dtype=torch.float64, device="cpu")
    for packed in _pieces(sharing):
        types = packed_types(packed, sharing.packed_is_neuron)
        of_examples = count_bits(types)
        counts.add(of_examples)
        always &= _in_all(types)
        chance = one_after_the_other(np.multiply, chance, of_examples.double() / widths)
    columns = {
        "average": counts.statistics(sharing.widths)["mean"],
        "every": 100 * count_bits(always).double() / widths,
        "chance": 100 * chance,
    }
    return _table(sharing, "type", _IN_ORDER, columns)


def never_activated(sharing: NeuronSharing) -> pd.DataFrame:
    """Make the table of `NeuronSharing.never_activated`."""
    names, is_neuron = (*sharing.languages, "all"), sharing.packed_is_neuron
    counts, never = Counts(), is_neuron.repeat(len(names), 1, 1)
    for packed in _pieces(sharing):
        silent = is_neuron & ~packed
        silent = torch.cat([silent, _in_all(silent.transpose(0, 1))[:, None]], dim=1)
        counts.add(count_bits(silent))
        never &= _in_all(silent)
    columns = {**counts.statistics(sharing.widths), "every": 100 * count_bits(never).double() / _widths(sharing)}
    return _table(sharing, "language", _numbered(names), columns)


def intersections(sharing: NeuronSharing) -> Int[Tensor, "example layer language language"]:
    """Count in each layer how many neurons two languages both activate."""
    return torch.cat(list(pieces_of_intersections(sharing)))


def pieces_of_intersections(sharing: NeuronSharing) -> Iterator[Int[Tensor, "example layer language language"]]:
    """Count what `intersections` counts, some examples at a time."""
    n_languages = len(sharing.languages)
    for packed in _pieces(sharing):
        shape = (len(packed), sharing.n_layers, n_languages, n_languages)
        counts = torch.empty(shape, dtype=torch.long, device="cpu")
        for a, b in combinations_with_replacement(range(n_languages), 2):
            counts[..., a, b] = counts[..., b, a] = count_bits(packed[:, a] & packed[:, b])
        yield counts


def overlap(sharing: NeuronSharing, layer: int | None) -> pd.DataFrame:
    """Make the table of `NeuronSharing.overlap`."""
    if layer is not None and not (is_count(layer, 0) and layer < sharing.n_layers):
        raise NeuronShareError(f"There is no layer {layer!r}; use 0 to {sharing.n_layers - 1}, or None for all.")
    indices = Means()
    for counts in pieces_of_intersections(sharing):
        both = (counts.sum(1) if layer is None else counts[:, layer]).double()
        sizes = torch.diagonal(both, dim1=-2, dim2=-1)
        indices.add(jaccard(both, sizes[:, :, None], sizes[:, None]))
    names = pd.Index(sharing.languages, name="language")
    return pd.DataFrame(indices.means().numpy(), index=names, columns=names)


def _pieces(sharing: NeuronSharing) -> Iterator[UInt8[Tensor, "example language layer byte"]]:
    """The packed activations of some examples at a time, without bits beyond a layer's width."""
    is_neuron = sharing.packed_is_neuron
    for _, packed in sharing.bits.pieces():
        yield packed & is_neuron


def _of_types(
    sharing: NeuronSharing, of_examples: Collected, *, also: Callable[[Tensor], None] = lambda packed: None
) -> Counts:
    """Count how many neurons of each layer are of each type, and collect the counts of each example.

    `also` sees the same packed activations, which are read once.
    """
    counts = Counts()
    for packed in _pieces(sharing):
        also(packed)
        of_piece = count_bits(packed_types(packed, sharing.packed_is_neuron))
        counts.add(of_piece)
        of_examples.add(of_piece.numpy())
    return counts


def _beside_mismatched(
    sharing: NeuronSharing, of_examples: Collected, *, mismatches: int, seed: int, like: Float[Tensor, "type layer"]
) -> dict[str, Float[Tensor, "type layer"]]:
    """The mean percent of each type in mismatched examples, how much more there is in reality, and its interval."""
    seed, names = whole("seed", seed), ("mismatched", "excess", "excess_low", "excess_high")
    if not count("mismatches", mismatches, least=0) or why_not_mismatched(sharing):
        return dict.fromkeys(names, torch.full_like(like, torch.nan))
    levels, offsets, rows = [], [], Collected(np.int32)
    for number in range(mismatches):
        moved = sharing.mismatched(seed=seed + number)
        levels.append(_of_types(moved, rows).statistics(sharing.widths)["mean"])
        offsets.append(moved.metadata["mismatched"])
    of_draws = rows.whole().reshape(mismatches, len(sharing), len(TYPES), sharing.n_layers)
    found = (torch.from_numpy(each) for each in excess(of_examples.whole(), [*zip(of_draws, offsets, strict=True)]))
    percents = (100 * each / _widths(sharing) for each in found)
    return dict(zip(names, (torch.stack(levels).mean(0), *percents), strict=True))


def why_not_mismatched(sharing: NeuronSharing) -> str:
    """Say why examples cannot be mismatched; empty where they can."""
    if len(sharing) >= len(sharing.languages):
        return ""
    return (
        f"not known, since a different example in each of {len(sharing.languages)} languages needs at least as many "
        f"examples, and there are {len(sharing)}"
    )


def _of_routed(sharing: NeuronSharing) -> dict[str, Float[Tensor, "type layer"]]:
    """Mean percent of the types among neurons that are computed in at least one language, and in every language."""
    in_one, in_all = Means(), Means()
    for packed, computed in zip(_pieces(sharing), sharing.computed(), strict=True):
        types = packed_types(packed, sharing.packed_is_neuron)
        in_one.add(_percent_of(types, pack(computed.any(1, keepdim=True))))
        in_all.add(_percent_of(types, pack(computed.all(1, keepdim=True))))
    return {"of_routed": in_one.means(), "of_routed_in_all": in_all.means()}


def _percent_of(
    chosen: UInt8[Tensor, "*batch name layer byte"], among: UInt8[Tensor, "*batch #name layer byte"]
) -> Float[Tensor, "*batch name layer"]:
    """Percent of some neurons that are chosen; NaN where there are none of them."""
    return 100 * count_bits(chosen & among).double() / count_bits(among)


def _in_all(packed: UInt8[Tensor, "set ..."]) -> UInt8[Tensor, ...]:
    """What is in all of the sets."""
    return torch.from_numpy(np.bitwise_and.reduce(packed.numpy(), axis=0))


def _widths(sharing: NeuronSharing) -> Int[Tensor, " layer"]:
    return torch.tensor(sharing.widths, device="cpu")


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

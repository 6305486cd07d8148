"""Bipartition: neurons whose values are distributed differently in one group of languages and in the rest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_neuronshare.checks import share as checked_share
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.results.histograms import ValueHistograms
from tl_neuronshare.results.masks import scattered


def bipartition(histograms: ValueHistograms, *, share: float = 0.01) -> dict[str, Bool[Tensor, "layer neuron"]]:
    """Find neurons that tell a group of languages from the rest by the distribution of their values.

    The overlap of two languages is the sum over bins of the smaller of both shares, from 0 to 1. For each neuron the
    languages are divided into two groups, so that the largest overlap of two languages of different groups is as small
    as possible. The neuron is kept if this is not above the bar, which a share `share` of the overlaps of all neurons
    and pairs of languages does not exceed. It then belongs to the languages of the smaller group; of two equally large
    groups, to that with the first language.

    Args:
        histograms: how each neuron's values are distributed in each language, of at least two languages.
        share: which share of the overlaps the bar is not below.

    Returns:
        One mask for each language. A neuron belongs to at most half of the languages.

    Raises:
        NeuronShareError: there is only one language, or the share is not one.

    Source: distribution-aware language neurons (EMNLP 2026), with the default of its authors' code. They call the
    neurons of one language SLN and those of several MLN.

    Example:
        >>> counts = torch.tensor([[[[9, 1], [5, 5]]], [[[0, 10], [5, 5]]], [[[1, 9], [4, 6]]]])
        >>> bipartition(ValueHistograms(counts, languages=["en", "de", "fr"], widths=[2]), share=0.4)["en"]
        tensor([[ True, False]])
    """
    checked_share("share", share)
    n_languages = len(histograms.languages)
    if n_languages < 2:
        raise NeuronShareError(
            f"There are only histograms of {histograms.languages[0]!r}; this method compares languages: give at least "
            "two."
        )
    per_neuron = overlaps(histograms)
    pairs = list(combinations(range(n_languages), 2))
    bar = per_neuron.flatten().kthvalue(max(1, int(share * per_neuron.numel()))).values
    groups = _groups(n_languages)
    cost, best = torch.stack([_largest_across(per_neuron, pairs, group) for group in groups]).min(0)
    is_in = torch.tensor([[number in group for group in groups] for number in range(n_languages)], device="cpu")
    return scattered(is_in[:, best] & (cost <= bar), histograms.is_neuron, histograms.languages)


def overlaps(histograms: ValueHistograms) -> Float[Tensor, "neuron pair"]:
    """Return the overlap of each pair of languages for each measured neuron, layer by layer.

    Example:
        >>> counts = torch.tensor([[[[9, 1], [5, 5]]], [[[0, 10], [5, 5]]]])
        >>> overlaps(ValueHistograms(counts, languages=["en", "de"], widths=[2]))
        tensor([[0.1000],
                [1.0000]], dtype=torch.float64)
    """
    of_layers, n_tokens = [], histograms.tokens[:, None, None].double()
    for layer, is_neuron in enumerate(histograms.is_neuron):
        shares = histograms.counts[:, layer, is_neuron] / n_tokens
        pairs = [torch.minimum(a, b).sum(-1) for a, b in combinations(shares, 2)]
        of_layers.append(torch.stack(pairs, dim=-1))
    return torch.cat(of_layers)


def _groups(n: int) -> list[tuple[int, ...]]:
    """The smaller groups of all ways to divide n languages in two; of two equally large groups that with the first."""
    return [
        group for size in range(1, n // 2 + 1) for group in combinations(range(n), size) if 2 * size < n or 0 in group
    ]


def _largest_across(
    per_pair: Float[Tensor, "neuron pair"], pairs: Sequence[tuple[int, int]], group: tuple[int, ...]
) -> Float[Tensor, " neuron"]:
    """The largest overlap of a language of the group with one of the others."""
    across = [place for place, (a, b) in enumerate(pairs) if (a in group) != (b in group)]
    return per_pair[:, across].amax(-1)

"""Bipartition: neurons whose values are distributed differently in one group of languages and in the rest."""

from __future__ import annotations

from itertools import combinations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import instance
from tl_neuronshare.checks import share as checked_share
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.results.histograms import ValueHistograms
from tl_neuronshare.results.masks import scattered

_ALL = 1 - 1e-9  # an overlap of 1, but for rounding


@explains
def bipartition(histograms: ValueHistograms, *, share: float = 0.01) -> dict[str, Bool[Tensor, "layer neuron"]]:
    """Find neurons that tell a group of languages from the rest by the distribution of their values.

    The overlap of two languages is the sum over bins of the smaller of both shares, from 0 to 1. For each neuron the
    languages are divided into two groups, so that the largest overlap of two languages of different groups is as small
    as possible. The neuron is kept if this is below 1 and not above the bar, which a share `share` of the overlaps of
    all neurons and pairs of languages does not exceed. It then belongs to the languages of the smaller group; of two
    equally large groups, to that with the first language.

    Args:
        histograms: how each neuron's values are distributed in each language, of at least three languages.
        share: which share of the overlaps the bar is not below.

    Returns:
        One mask for each language. A neuron belongs to at most half of the languages.

    Raises:
        NeuronShareError: there are fewer than three languages, since of two neither group is the smaller; or the share
            is not one.

    Source: distribution-aware language neurons (EMNLP 2026), with the default of its authors' code. They call the
    neurons of one language SLN and those of several MLN.

    Examples:
        >>> counts = torch.tensor([[[[9, 1], [5, 5]]], [[[0, 10], [5, 5]]], [[[1, 9], [4, 6]]]])
        >>> bipartition(ValueHistograms(counts, languages=["en", "de", "fr"], widths=[2]), share=0.4)["en"]
        tensor([[ True, False]])
    """
    checked_share("share", share)
    n_languages = len(instance("histograms", histograms, ValueHistograms).languages)
    if n_languages < 3:
        raise NeuronShareError(
            f"There are histograms of {' and '.join(histograms.languages)} only; this method divides languages into a "
            "smaller and a larger group: give at least three."
        )
    per_pair = overlaps(histograms)
    bar = per_pair.flatten().kthvalue(max(1, int(share * per_pair.numel()))).values
    cost = _costs(per_pair, n_languages)
    kept = ((cost <= bar) & (cost < _ALL)).nonzero().flatten()
    chosen = torch.zeros(n_languages, len(cost), dtype=torch.bool, device="cpu")
    chosen[:, kept] = _smaller_groups(per_pair[kept], cost[kept], n_languages)
    return scattered(chosen, histograms.is_neuron, histograms.languages)


def overlaps(histograms: ValueHistograms) -> Float[Tensor, "neuron pair"]:
    """Return the overlap of each pair of languages for each measured neuron, layer by layer.

    Examples:
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


def _costs(per_pair: Float[Tensor, "neuron pair"], n_languages: int) -> Float[Tensor, " neuron"]:
    """The smallest possible largest overlap across two groups of languages, for each neuron.

    It is the weakest link of a maximum spanning tree, since every division into two groups cuts the tree somewhere.
    The tree grows by the language that is linked to it most.
    """
    n_neurons = len(per_pair)
    links = per_pair.new_full((n_neurons, n_languages, n_languages), -torch.inf)
    for place, (a, b) in enumerate(combinations(range(n_languages), 2)):
        links[:, a, b] = links[:, b, a] = per_pair[:, place]
    every = torch.arange(n_neurons, device="cpu")
    is_outside = torch.ones(n_neurons, n_languages, dtype=torch.bool, device="cpu")
    is_outside[:, 0] = False
    to_tree, cost = links[:, 0].clone(), per_pair.new_full((n_neurons,), torch.inf)
    for _ in range(n_languages - 1):
        link, language = to_tree.masked_fill(~is_outside, -torch.inf).max(1)
        cost = torch.minimum(cost, link)
        is_outside[every, language] = False
        to_tree = torch.maximum(to_tree, links[every, language])
    return cost


def _smaller_groups(
    per_pair: Float[Tensor, "neuron pair"], cost: Float[Tensor, " neuron"], n_languages: int
) -> Bool[Tensor, "language neuron"]:
    """Which languages are in the first group, by size and order, whose overlap with the rest is each neuron's cost."""
    found = torch.zeros(n_languages, len(cost), dtype=torch.bool, device="cpu")
    left = torch.ones_like(cost, dtype=torch.bool)
    pairs = list(combinations(range(n_languages), 2))
    for size in range(1, n_languages // 2 + 1):
        for group in combinations(range(n_languages), size):
            if 2 * size == n_languages and 0 not in group:
                continue  # the other half, which has the first language, has been tried
            across = [place for place, (a, b) in enumerate(pairs) if (a in group) != (b in group)]
            fits = left & (per_pair[:, across].amax(1) == cost)
            found[list(group)] |= fits
            left &= ~fits
            if not left.any():
                return found
    return found

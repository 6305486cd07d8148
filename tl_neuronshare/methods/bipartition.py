"""Bipartition: neurons whose values are distributed differently in one group of languages and in the rest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_neuronshare.checks import distinct
from tl_neuronshare.checks import share as checked_share
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import neurons_of


def bipartition(
    histograms: Int[Tensor, "language layer neuron bin"],
    *,
    languages: Sequence[str],
    widths: Sequence[int],
    share: float = 0.01,
) -> dict[str, Bool[Tensor, "layer neuron"]]:
    """Find neurons that tell a group of languages from the rest by the distribution of their values.

    The overlap of two languages is the sum over bins of the smaller of both shares, from 0 to 1. For each neuron the
    languages are divided into two groups, so that the largest overlap of two languages of different groups is as small
    as possible. The neuron is kept if this is not above the bar, which a share `share` of the overlaps of all neurons
    and pairs of languages does not exceed. It then belongs to the languages of the smaller group; of two equally large
    groups, to that with the first language.

    Args:
        histograms: how many of each language's tokens have a value in each bin. The bins of a neuron are the same for
            all languages; the first and last may be for what is beyond the others.
        languages: the names of the languages.
        widths: how many neurons each layer has.
        share: which share of the overlaps the bar is not below.

    Returns:
        One mask for each language. A neuron belongs to at most half of the languages.

    Raises:
        NeuronShareError: the arguments do not fit each other, there are fewer than two languages, or a language has no
            tokens.

    Source: distribution-aware language neurons (EMNLP 2026), with the default of its authors' code. They call the
    neurons of one language SLN and those of several MLN.

    Example:
        >>> histograms = torch.tensor([[[[9, 1], [5, 5]]], [[[0, 10], [5, 5]]], [[[1, 9], [4, 6]]]])
        >>> bipartition(histograms, languages=["en", "de", "fr"], widths=[2], share=0.4)["en"]
        tensor([[ True, False]])
    """
    checked_share("share", share)
    names = distinct("languages", languages, least=2, what="names of languages")
    expected = (len(names), len(widths), max(widths, default=0))
    if histograms.ndim != 4 or tuple(histograms.shape[:3]) != expected:
        raise NeuronShareError(
            f"The histograms have shape {tuple(histograms.shape)}; {expected[0]} languages and layers of "
            f"{', '.join(map(str, widths))} neurons need {(*expected, 'bins')}."
        )
    is_neuron = neurons_of(widths)
    per_neuron = overlaps(histograms, is_neuron, names)  # neuron pair
    pairs = list(combinations(range(len(names)), 2))
    n_below = max(1, int(share * per_neuron.numel()))
    highest = per_neuron.flatten().kthvalue(n_below).values
    groups = _groups(len(names))
    cost, best = torch.stack([_largest_across(per_neuron, pairs, group) for group in groups]).min(0)
    is_in = torch.tensor([[number in group for group in groups] for number in range(len(names))], device="cpu")
    chosen = is_in[:, best] & (cost <= highest)
    return {
        name: torch.zeros_like(is_neuron).masked_scatter(is_neuron, of_language)
        for name, of_language in zip(names, chosen, strict=True)
    }


def overlaps(
    histograms: Int[Tensor, "language layer neuron bin"], is_neuron: Bool[Tensor, "layer neuron"], names: Sequence[str]
) -> Float[Tensor, "place pair"]:
    """Return the overlap of each pair of languages for each neuron, layer by layer."""
    of_layers = []
    for layer, mask in enumerate(is_neuron):
        counts = histograms[:, layer, mask].double()
        n_tokens = counts.sum(-1, keepdim=True)
        if (n_tokens == 0).any():
            number = int((n_tokens == 0).flatten(1).any(1).int().argmax())
            raise NeuronShareError(f"Language {names[number]!r} has a neuron without any value; give it some text.")
        shares = counts / n_tokens
        pairs = [torch.minimum(shares[a], shares[b]).sum(-1) for a, b in combinations(range(len(names)), 2)]
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

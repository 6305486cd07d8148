"""Language-specific, language-related and general neurons: LAPE with a reward for neurons that are activated often."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import finite
from tl_neuronshare.checks import share as checked_share
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.methods.lape import bar, entropy, rates_of_neurons
from tl_neuronshare.results.masks import check_mask, scattered
from tl_neuronshare.results.rates import NeuronRates

# The largest weight that is tried, and how many steps lead down from it.
_LARGEST, _STEPS = 0.2, 200


@explains
def specific_related_general(
    rates: NeuronRates, *, share: float = 0.01, quantile: float = 0.95, weight: float | None = None
) -> dict[str, Bool[Tensor, "layer neuron"]]:
    """Find language neurons by entropy and by how often they are activated at most.

    With p the rates, K languages, q a neuron's rates divided by their sum, and H_K = 1 + 1/2 + ... + 1/K, a neuron's
    score is H(q) / ln K - weight * max(p) / (H_K / K). The neurons with the lowest scores are kept. A kept neuron
    belongs to every language in which its rate is above the bar, which is that of `lape`. `by_number_of_languages`
    then tells specific, related and general neurons apart.

    Args:
        rates: how often each neuron is activated in each language. The authors count the tokens of answers:
            `activation_rates(model, pairs, part="answer")`.
        share: how many neurons are kept, as a share of all neurons of the model.
        quantile: which share of the rates the bar is not below.
        weight: the weight of the largest rate; None takes `largest_weight`.

    Returns:
        One mask for each language. A neuron may belong to several, or to none.

    Raises:
        NeuronShareError: there is only one language, or an option cannot be used.

    Source: Zhang et al. 2026 (arXiv 2505.21505).

    Examples:
        >>> counts = torch.tensor([[[9, 5, 0, 5]], [[0, 5, 9, 5]]])  # language layer neuron
        >>> rates = NeuronRates(counts, [10, 10], languages=["en", "de"], widths=[4])
        >>> specific_related_general(rates, share=0.5, quantile=0.7)
        {'en': tensor([[ True, False, False, False]]), 'de': tensor([[False, False,  True, False]])}
    """
    checked_share("share", share)
    checked_share("quantile", quantile)
    weight = largest_weight(rates, share=share, quantile=quantile) if weight is None else finite("weight", weight)
    p = rates_of_neurons(rates)
    chosen = _kept(*_terms(p), weight, share) & (p > bar(p, quantile))
    return scattered(chosen, rates.is_neuron, rates.languages)


@explains
def largest_weight(rates: NeuronRates, *, share: float = 0.01, quantile: float = 0.95) -> float:
    """Find the largest weight, of 0, 0.001, ... 0.2, with which no kept neuron belongs to all languages.

    Raises:
        NeuronShareError: with each of them some neuron belongs to all languages.

    Source: Zhang et al. 2026 (arXiv 2505.21505), who search by halving.

    Examples:
        >>> counts = torch.tensor([[[9, 5, 0, 5]], [[0, 5, 9, 5]]])  # language layer neuron
        >>> rates = NeuronRates(counts, [10, 10], languages=["en", "de"], widths=[4])
        >>> largest_weight(rates, share=0.5, quantile=0.7)
        0.2
    """
    p, share, quantile = rates_of_neurons(rates), checked_share("share", share), checked_share("quantile", quantile)
    is_of_all, terms = (p > bar(p, quantile)).all(0), _terms(p)
    for step in range(_STEPS, -1, -1):
        weight = _LARGEST * step / _STEPS
        if not (_kept(*terms, weight, share) & is_of_all).any():
            return weight
    raise NeuronShareError(
        f"With each weight from 0 to {_LARGEST}, one of the {share:.2%} of neurons with the lowest scores belongs to "
        "all languages; give weight=, or a smaller share."
    )


@explains
def by_number_of_languages(
    masks: Mapping[str, Bool[Tensor, "layer neuron"]],
) -> dict[str, Bool[Tensor, "layer neuron"]]:
    """Tell neurons of one language (`specific`), of several (`related`) and of all (`general`) apart.

    Raises:
        NeuronShareError: there are fewer than two languages.

    Examples:
        >>> of_english, of_german = torch.tensor([[True, True, False]]), torch.tensor([[False, True, False]])
        >>> by_number_of_languages({"en": of_english, "de": of_german})["general"]
        tensor([[False,  True, False]])
    """
    if not isinstance(masks, Mapping) or len(masks) < 2:
        raise NeuronShareError("There are masks of fewer than two languages; give {language: mask} of all languages.")
    for mask in masks.values():
        check_mask(mask)
    if len({tuple(mask.shape) for mask in masks.values()}) > 1:
        raise NeuronShareError("The masks have different shapes; give those of one model.")
    times = torch.stack([*masks.values()]).sum(0)
    return {
        "specific": times == 1,
        "related": (times > 1) & (times < len(masks)),
        "general": times == len(masks),
    }


def _terms(p: Float[Tensor, "language neuron"]) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]]:
    """The two terms of a neuron's score: the entropy as a share of the largest, and the largest rate, scaled."""
    n_languages = len(p)
    of_equal_rates = sum(1 / number for number in range(1, n_languages + 1)) / n_languages
    return entropy(p) / math.log(n_languages), p.amax(0) / of_equal_rates


def _kept(
    spread: Float[Tensor, " neuron"], most: Float[Tensor, " neuron"], weight: float, share: float
) -> Bool[Tensor, " neuron"]:
    """Which neurons have the lowest scores; of equal ones the first."""
    kept = (spread - weight * most).sort(stable=True).indices[: round(share * len(spread))]
    return torch.zeros_like(spread, dtype=torch.bool).index_fill(0, kept, value=True)

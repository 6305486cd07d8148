"""LAPE: neurons whose activation probability is concentrated on few languages."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import instance
from tl_neuronshare.checks import share as checked_share
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.results.masks import scattered
from tl_neuronshare.results.rates import NeuronRates


@explains
def lape(rates: NeuronRates, *, share: float = 0.01, quantile: float = 0.95) -> dict[str, Bool[Tensor, "layer neuron"]]:
    """Find language neurons by language activation probability entropy.

    Let p be the rates and q a neuron's rates divided by their sum over the languages. Its LAPE is -sum(q ln q), in
    nats. The bar is the value of p that a share `quantile` of all p, of every neuron and language, does not exceed.
    Among the neurons that pass the bar in some language, those with the lowest LAPE are kept, and a kept neuron belongs
    to every language in which it passes the bar.

    Args:
        rates: how often each neuron is activated in each language, of at least two languages.
        share: how many neurons are kept, as a share of all neurons of the model. Fewer are kept if fewer pass the bar.
        quantile: which share of the rates the bar is not below.

    Returns:
        One mask for each language. A neuron may belong to several; a language may have none.

    Raises:
        NeuronShareError: there is only one language, or a share is not one.

    Source: Tang et al. 2024 (arXiv 2402.16438), with the defaults of its authors' code. Of neurons with equal LAPE at
    the end of the list, the first of the model are kept.

    Examples:
        >>> counts = torch.tensor([[[9, 5, 0, 5]], [[0, 5, 9, 5]]])  # language layer neuron
        >>> rates = NeuronRates(counts, [10, 10], languages=["en", "de"], widths=[4])
        >>> lape(rates, share=0.5, quantile=0.7)
        {'en': tensor([[ True, False, False, False]]), 'de': tensor([[False, False,  True, False]])}
    """
    checked_share("share", share)
    checked_share("quantile", quantile)
    p = rates_of_neurons(rates)
    passes = p > bar(p, quantile)
    of_passing = entropy(p).masked_fill(~passes.any(0), torch.inf)
    n_kept = min(round(share * p.shape[1]), int(passes.any(0).sum()))
    kept = of_passing.sort(stable=True).indices[:n_kept]
    chosen = torch.zeros_like(passes).index_copy(1, kept, passes[:, kept])
    return scattered(chosen, rates.is_neuron, rates.languages)


def rates_of_neurons(rates: NeuronRates) -> Float[Tensor, "language neuron"]:
    """Return the rates of all neurons that are measured, layer by layer.

    Raises:
        NeuronShareError: there is only one language.
    """
    if len(instance("rates", rates, NeuronRates).languages) < 2:
        raise NeuronShareError(
            f"There are only rates of {rates.languages[0]!r}; this method compares languages: give at least two."
        )
    return rates.rates[:, rates.is_neuron]


def bar(p: Float[Tensor, "language neuron"], quantile: float) -> Float[Tensor, ""]:
    """Return the rate that a share `quantile` of all rates does not exceed.

    Examples:
        >>> bar(torch.tensor([[0.4, 0.1], [0.3, 0.2]]), 0.75)
        tensor(0.3000)
    """
    place = max(1, round(quantile * p.numel()))
    return p.flatten().kthvalue(place).values


def entropy(p: Float[Tensor, "language neuron"]) -> Float[Tensor, " neuron"]:
    """Return the entropy of each neuron's rates over the languages, in nats; 0 where no language activates it.

    Examples:
        >>> entropy(torch.tensor([[0.4, 0.2, 0.0], [0.4, 0.0, 0.0]]))
        tensor([0.6931, 0.0000, 0.0000])
    """
    q = (p / p.sum(0)).nan_to_num(0)
    of_neurons: Float[Tensor, " neuron"] = torch.special.entr(q).sum(0)
    return of_neurons

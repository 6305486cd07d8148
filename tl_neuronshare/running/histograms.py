"""Count how each neuron's values are distributed over free text, in two passes over it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Float, Int32, Shaped
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import count, one_of, texts_by_language
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import neurons_of
from tl_neuronshare.models import LensModel, OnDevices, Site, verification
from tl_neuronshare.results.histograms import ValueHistograms
from tl_neuronshare.running.loop import running
from tl_neuronshare.running.plan import BatchSize, Running
from tl_neuronshare.running.tallying import Part, Sums, Tally, measured_layers, metadata_of, tallied

_DEVIATIONS = 3  # how far from the mean the bins reach, in standard deviations
_FLOOR = -0.4  # no activation function of a gate goes below
_NARROWEST, _HALF = 1e-3, 0.05  # bins together as narrow as this become so wide on each side of the mean


@explains
def value_histograms(
    model: LensModel,
    texts: Mapping[str, Iterable[Any] | Path],
    *,
    site: Site = "gate",
    n_bins: int = 400,
    part: Part = "whole",
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> ValueHistograms:
    """Count how many of a language's tokens give a neuron a value in each of its bins, in free text.

    The texts are read twice. The first time gives each neuron's mean and standard deviation over the tokens of all
    languages, and the bins reach three standard deviations to both sides. At the site `gate` none begins below -0.4.

    Args:
        model: a HookedTransformer or TransformerBridge.
        texts: as in `activation_rates`, but not an iterator, which can be read only once.
        site: as in `categorise`. The method for which this is made reads act(gate), and so does the default.
        n_bins: how many bins a neuron has; there are two more for what is below and above them.
        part: as in `activation_rates`.
        batch_size: as in `categorise`.
        prepend_bos: as in `categorise`, for every piece of text.
        progress: whether to show a progress bar, if the run takes more than two seconds.

    Returns:
        The histograms. They take four bytes for each language, neuron and bin. In a mixture of experts a neuron that is
        not computed has the value 0. In an encoder-decoder the decoder's layers are not measured.

    Raises:
        NeuronShareError: as in `activation_rates`; or texts can be read only once.

    Source: distribution-aware language neurons (EMNLP 2026), with the defaults of its authors' code.

    Examples:
        >>> texts = {"en": ["Country code of Peru → PE", "Capital of Peru"], "de": ["Ländercode von Peru → PE"]}
        >>> value_histograms(model, texts, n_bins=8)
        ValueHistograms(tokens: en 12, de 5; 4 layers of 512 neurons; 10 bins)
    """
    how, n_bins = Running(batch_size, prepend_bos).on(model), count("n_bins", n_bins, such_as=400)
    texts_by_language("texts", texts, lists=False)
    one_of("part", part, get_args(Part))
    for language, of_language in texts.items():
        if isinstance(of_language, Iterator):
            raise NeuronShareError(
                f"Language {language!r}: the texts are an iterator, and are read twice; give a list, a file or a data "
                "set."
            )
    every_layer = models.neuron_layers(model, site)
    layers = measured_layers(model, every_layer)
    verification.require(model, "logits", site)

    def sums_of(tally: Tally, name: str) -> Sums:
        with running(model, name, progress=progress) as loop:
            return tallied(model, layers, texts, tally, part=part, how=how, loop=loop)

    low, high = _ends(sums_of(Tally(_moments, size=2, dtype=torch.float64), "moments of values"), site)
    binned = Tally(_Binning(low, high, n_bins), size=n_bins + 2, dtype=torch.int32)
    sums = sums_of(binned, "histograms of values")
    widths = [layer.width for layer in every_layer]
    ends = torch.full((2, len(widths), max(widths)), torch.nan, dtype=torch.float32, device="cpu")
    ends[:, : len(layers), : low.shape[-1]] = torch.stack([low, high])
    ends[:, ~neurons_of(widths)] = torch.nan
    return ValueHistograms(
        sums.of_all(widths),
        *ends,
        languages=list(texts),
        widths=widths,
        n_measured=len(layers),
        metadata={
            **metadata_of(model, how, site=site, counted=part),
            "texts": dict(zip(texts, sums.hashes, strict=True)),
        },
    )


def _moments(layer: int, values: Float[Tensor, "token neuron"]) -> Float[Tensor, "neuron 2"]:
    """The sum of each neuron's values and that of their squares."""
    return torch.stack([values.sum(0), values.square().sum(0)], dim=-1)


def _ends(moments: Sums, site: Site) -> tuple[Float[Tensor, "layer neuron"], Float[Tensor, "layer neuron"]]:
    """Where the bins of each neuron begin and end."""
    mean, square = (moments.numbers.sum(0) / moments.tokens.sum()).unbind(-1)
    reach = _DEVIATIONS * (square - mean.square()).clamp(min=0).sqrt()
    low, high = mean - reach, mean + reach
    if site == "gate":
        low = low.clamp(min=_FLOOR)
    is_narrow = high - low < _NARROWEST
    return low.where(~is_narrow, mean - _HALF).float(), high.where(~is_narrow, mean + _HALF).float()


class _Binning:
    """Counts how many of a layer's values are in each bin of their neuron."""

    def __init__(self, low: Float[Tensor, "layer neuron"], high: Float[Tensor, "layer neuron"], n_bins: int) -> None:
        self._low = [OnDevices(of_layer) for of_layer in low]
        self._width = [OnDevices(of_layer) for of_layer in (high - low) / n_bins]
        self._n_bins = n_bins

    def __call__(self, layer: int, values: Float[Tensor, "token neuron"]) -> Shaped[Tensor, "neuron bin"]:
        width = values.shape[-1]
        low, size = (ends[layer].on(values.device)[:width] for ends in (self._low, self._width))
        places = ((values - low) / size).floor().clamp(-1, self._n_bins).long() + 1
        n_all = self._n_bins + 2
        places += torch.arange(width, device=values.device) * n_all
        counts: Int32[Tensor, "neuron bin"] = (
            torch.bincount(places.flatten(), minlength=width * n_all).view(width, n_all).int()
        )
        return counts

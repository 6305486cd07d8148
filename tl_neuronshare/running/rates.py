"""Count how often each neuron is activated over free text, while the text streams by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, takewhile

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.checks import texts_by_language
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import Number, widened
from tl_neuronshare.models import LensModel, NeuronLayer, Site, verification
from tl_neuronshare.running.plan import Batch, BatchSize, Plan, Running, running
from tl_neuronshare.running.recording import as_threshold

_CHUNK = 1 << 26  # values of one layer that are compared at a time
_TEXTS = 256  # tokenised at a time
_PIECES = 256  # planned at a time, so that pieces of similar lengths share a batch


def activation_rates(
    model: LensModel,
    texts: Mapping[str, Iterable[str]],
    *,
    site: Site = "post",
    threshold: Number = 0.0,
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> Float[Tensor, "language layer neuron"]:
    """Measure which share of a language's tokens activates each neuron, in free text that need not be parallel.

    Only counts are kept, so there may be any amount of text. An iterator is read once, a few texts at a time. A text
    that is longer than the model's context is read in pieces, each without the text before it.

    Args:
        model: a HookedTransformer or TransformerBridge.
        texts: the texts of each language. Special tokens (BOS ...) are run but not counted.
        site: as in `categorise`.
        threshold: a neuron is activated if its value is above this number.
        batch_size: as in `categorise`.
        prepend_bos: as in `categorise`, for every piece of text.
        progress: whether to show a progress bar, if the run takes more than two seconds.

    Returns:
        Shares between 0 and 1, in the order of the languages. If a layer is narrower than the widest layer, the rest
        of its row is NaN. In an encoder-decoder the texts are given to the encoder, and the decoder's rows are NaN.

    Raises:
        NeuronShareError: the model or an option is unsuitable, a language has only special tokens, or activations are
            NaN or infinite.

    Example:
        >>> texts = {"en": ["Country code of Peru → PE", "Capital of Peru"], "de": ["Ländercode von Peru → PE"]}
        >>> rates = activation_rates(model, texts)
        >>> rates.shape  # language layer neuron
        torch.Size([2, 4, 512])
    """
    how = Running(batch_size, prepend_bos).on(model)
    texts_by_language("texts", texts, lists=False)
    threshold = as_threshold("threshold", threshold)
    every_layer = models.neuron_layers(model, site)
    # The decoder of an encoder-decoder sees no free text, so that its layers are not measured.
    n_measured = len(every_layer)
    if models.architecture_of(model) == "encoder-decoder":
        n_measured = sum(layer.stack == "encoder" for layer in every_layer)
    layers = every_layer[:n_measured]
    verification.require(model, "logits", site)
    widest = max(layer.width for layer in every_layer)
    rates = torch.full(
        (len(texts), len(every_layer), widest), torch.nan, dtype=torch.float64, device="cpu"
    )  # counts may be large
    with running(model, "activation rates", progress=progress) as loop:
        for number, (language, of_language) in enumerate(texts.items()):
            counter = _Counter(model, layers, language, threshold)
            pieces = _pieces(model, of_language, language, prepend_bos=how.prepend_bos)
            while rows := list(islice(pieces, _PIECES)):
                loop(Plan(model, rows, batch_size=how.batch_size), counter.count)
            if counter.n_tokens == 0:
                raise NeuronShareError(f"Language {language!r} has only special tokens; give it some text.")
            for layer, counts in enumerate(counter.counts):
                rates[number, layer, : len(counts)] = counts.double() / counter.n_tokens
    return rates


def _pieces(model: LensModel, texts: Iterable[str], language: str, *, prepend_bos: bool | None) -> Iterator[list[int]]:
    """The tokens of each text in pieces that fit the context.

    Each piece begins with the BOS if its text does, and with what else a tokenizer puts around a text by itself.
    """
    remaining = iter(texts)
    bos, special = model.tokenizer.bos_token_id, set(models.special_tokens(model)).__contains__
    while batch := list(islice(remaining, _TEXTS)):
        for text in batch:
            if not isinstance(text, str):
                raise NeuronShareError(f"Language {language!r}: {text!r} is not a text; give strings.")
        for row in models.tokenise(model, batch, prepend_bos=prepend_bos, language=language):
            if prepend_bos is not None:
                start, end = row[:1] if row[:1] == [bos] else [], []
            else:
                start, end = list(takewhile(special, row)), list(takewhile(special, reversed(row)))[::-1]
            inner = row[len(start) : len(row) - len(end)]
            room = max(1, model.cfg.n_ctx - len(start) - len(end))
            for place in range(0, len(inner), room):
                yield start + inner[place : place + room] + end


class _Counter:
    """Counts how many of a language's tokens activate each neuron. Each layer is reduced as soon as it is read."""

    def __init__(self, model: LensModel, layers: Sequence[NeuronLayer], language: str, threshold: float) -> None:
        self.model, self.layers, self.language, self.threshold = model, layers, language, threshold
        self.counts = [torch.zeros(layer.width, dtype=torch.int64, device="cpu") for layer in layers]
        self.n_tokens = 0

    def count(self, batch: Batch) -> None:
        """Run a batch, and count its tokens that are not special."""
        seen = batch.seen_by("encoder")
        counted = models.is_text(self.model, seen.tokens) & seen.shown()
        if not counted.any():
            return
        places = counted.nonzero(as_tuple=True)
        counts_of_layers: dict[int, Int64[Tensor, " neuron"]] = {}

        def read(layer: int, tensors: tuple[Tensor, ...]) -> None:
            tensors = tuple(tensor.detach() for tensor in tensors)
            absent = min(0.0, self.threshold)  # what is not computed is not activated
            counts_of_layers[layer] = torch.zeros(
                self.layers[layer].width, dtype=torch.int64, device=tensors[-1].device
            )
            step = max(1, _CHUNK // self.layers[layer].width)
            for part in zip(*(torch.split(place, step) for place in places), strict=True):
                here = tuple(place.to(tensors[-1].device) for place in part)
                values = widened(self.layers[layer].read(tensors, here, absent=absent))
                if not values.isfinite().all():
                    raise NeuronShareError(
                        f"Language {self.language!r}: NaN or infinite activations at {self.layers[layer].name}; load "
                        "the model in float32 or bfloat16, and check your own hooks."
                    )
                counts_of_layers[layer] += (values > self.threshold).sum(0)

        with models.reading(self.model, self.layers, read) as run_once:
            run_once(batch)
        self.counts = [counts + counts_of_layers[layer].cpu() for layer, counts in enumerate(self.counts)]
        self.n_tokens += int(counted.sum())

"""How often each neuron is activated over free text: streaming counts, so that there may be any amount of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm.auto import tqdm

from tl_neuronshare import models
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import Number, widened
from tl_neuronshare.models import verification
from tl_neuronshare.models.layers import NeuronLayer, Site
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.models.tokens import left_padded
from tl_neuronshare.running.plan import BatchSize, check_run_options, plan_batches
from tl_neuronshare.running.recording import as_threshold

_TEXTS = 256  # tokenised and sorted by length at a time


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
    """The share of a language's tokens that activate each neuron, 0 to 1, in free text that need not be parallel.

    Only counts are kept, so that there may be any amount of text; an iterator is read once, some texts at a time.
    What is longer than the model's context is read in pieces, each without the text before it.

    Args:
        model: a HookedTransformer or TransformerBridge.
        texts: for each language its texts. Special tokens (BOS ...) are run, and not counted.
        site: as in `categorise`.
        threshold: activated is above it.
        batch_size: as in `categorise`.
        prepend_bos: as in `categorise`, for every piece of text.
        progress: whether to show a progress bar where it takes more than two seconds.

    Returns:
        Shares, in the order of the languages; NaN where a layer is narrower than the widest.

    Raises:
        NeuronShareError: an unsuitable model or option, a language without a token that is no special one, or
            activations that are NaN or infinite.

    Example:
        >>> texts = {"en": ["Country code of Peru → PE", "Capital of Peru"], "de": ["Ländercode von Peru → PE"]}
        >>> rates = activation_rates(model, texts)
        >>> rates.shape  # language layer neuron
        torch.Size([2, 4, 512])
    """
    check_run_options(batch_size, prepend_bos)
    models.check_model(model)
    if not isinstance(texts, Mapping) or not texts or not all(map(_are_texts, texts.values())):
        raise NeuronShareError("texts is no mapping from each language to its texts; give {'en': [text, ...], ...}.")
    above = as_threshold(threshold)
    layers = models.neuron_layers(model, site)
    verification.require(model, "logits", site)
    packing = verification.packing(model)
    special = torch.tensor(models.special_tokens(model), dtype=torch.long, device="cpu")
    widest = max(layer.width for layer in layers)
    rates = torch.full(
        (len(texts), len(layers), widest), torch.nan, dtype=torch.float64, device="cpu"
    )  # counts may be large
    with (
        models.left_as_found(model),
        tqdm(desc="activation rates", unit=" texts", disable=not progress, delay=2) as bar,
    ):
        for index, (language, of_one) in enumerate(texts.items()):
            counts = [torch.zeros(layer.width, dtype=torch.int64, device="cpu") for layer in layers]
            n_tokens = 0
            for some in _some_at_a_time(of_one):
                rows = list(_pieces(model, some, language, prepend_bos=prepend_bos))
                for batch in plan_batches([(len(row),) for row in rows], batch_size, packing=packing):
                    tokens, mask = left_padded([rows[row] for row in batch])
                    counted = ~torch.isin(tokens, special)
                    if mask is not None:
                        counted &= mask.bool()
                    if counted.any():
                        found = _counts(model, layers, tokens, mask, counted, threshold=above, language=language)
                        counts = [count + new for count, new in zip(counts, found, strict=True)]
                        n_tokens += int(counted.sum())
                bar.update(len(some))
            if n_tokens == 0:
                raise NeuronShareError(f"Language {language!r} has no token that is no special one; give it some text.")
            for layer, count in enumerate(counts):
                rates[index, layer, : len(count)] = count.double() / n_tokens
    return rates


def _are_texts(given: object) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, str)


def _some_at_a_time(texts: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while some := list(islice(remaining, _TEXTS)):
        yield some


def _pieces(model: LensModel, texts: Sequence[str], language: str, *, prepend_bos: bool | None) -> Iterator[list[int]]:
    """Each text's tokens in pieces that fit the context, each with the BOS if the text has one."""
    for text in texts:
        if not isinstance(text, str):
            raise NeuronShareError(f"Language {language!r}: {text!r} is no text; give strings.")
    bos = model.tokenizer.bos_token_id
    for row in models.tokenise(model, texts, prepend_bos=prepend_bos):
        start = row[:1] if row[:1] == [bos] else []
        room = model.cfg.n_ctx - len(start)
        for place in range(len(start), len(row), room):
            yield start + row[place : place + room]


def _counts(
    model: LensModel,
    layers: Sequence[NeuronLayer],
    tokens: Int64[Tensor, "text position"],
    mask: Int64[Tensor, "text position"] | None,
    counted: Bool[Tensor, "text position"],
    *,
    threshold: float,
    language: str,
) -> list[Int64[Tensor, " neuron"]]:
    """How many of the counted tokens activate each neuron, in one forward pass; each layer is reduced at once."""
    found: dict[int, Int64[Tensor, " neuron"]] = {}

    def count(layer: int, tensor: Tensor) -> None:
        values = widened(layers[layer].values(tensor.detach()[counted.to(tensor.device)]))
        if not values.isfinite().all():
            raise NeuronShareError(
                f"Language {language!r}: NaN or infinite activations at {layers[layer].hook}; load the model in "
                "float32 or bfloat16, and check your own hooks."
            )
        found[layer] = (values > threshold).sum(0)

    with models.reading(model, layers, count):
        models.run(model, tokens, mask)
    for number, layer in enumerate(layers):
        if number not in found:
            raise NeuronShareError(f"{layer.hook} did not fire; do hooks of yours replace its module?")
    return [found[number].cpu() for number in range(len(layers))]

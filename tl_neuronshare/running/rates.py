"""Count how often each neuron is activated over free text, while the text streams by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.checks import texts_by_language
from tl_neuronshare.errors import NeuronShareError, UnfinishedError
from tl_neuronshare.maths.activation import Number, widened
from tl_neuronshare.models import LensModel, NeuronLayer, Site, verification
from tl_neuronshare.models.fingerprint import fingerprint_of_weights
from tl_neuronshare.results.files import read_tensors, write_tensors
from tl_neuronshare.running import provenance
from tl_neuronshare.running.loop import Keeping, Loop, running
from tl_neuronshare.running.plan import Batch, BatchSize, Plan, Running
from tl_neuronshare.running.recording import as_threshold
from tl_neuronshare.running.shards import Record

_CHUNK = 1 << 26  # values of one layer that are compared at a time
_TEXTS = 256  # tokenised at a time
_PIECES = 256  # planned at a time, so that pieces of similar lengths share a batch
_FILE, _KIND = "counts.safetensors", "tl_neuronshare.counts/2"


def activation_rates(
    model: LensModel,
    texts: Mapping[str, Iterable[str]],
    *,
    site: Site = "post",
    threshold: Number = 0.0,
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    out: str | Path | None = None,
    shard: tuple[int, int] | str | None = None,
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
        out: as in `categorise`. The folder keeps the counts; the same call with more text at the end of a language's
            goes on from them.
        shard: as in `categorise`.
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

    def about() -> dict[str, Any]:
        return {
            "call": "activation_rates",
            **provenance.describe(model),
            "fingerprint_of_weights": fingerprint_of_weights(model),
            **{"languages": list(texts), "site": site, "threshold": threshold, **how.record},
        }

    with running(model, "activation rates", progress=progress, keeping=Keeping(out, shard), about=about) as loop:
        so_far = _SoFar(list(texts), [layer.width for layer in layers], loop)
        for language, of_language in texts.items():
            counter = _Counter(model, layers, language, threshold)
            pieces = _pieces(model, of_language, language, prepend_bos=how.prepend_bos)
            while rows := list(islice(pieces, _PIECES)):
                if left := so_far.meets(language, rows):
                    plan = Plan(model, left, batch_size=how.batch_size)
                    loop.part(partial(so_far.count, language, plan, counter))
            so_far.end(language)
        loop.finish()
        loop.clear()
    # Counts may be large.
    widest = max(layer.width for layer in every_layer)
    rates = torch.full((len(texts), len(every_layer), widest), torch.nan, dtype=torch.float64, device="cpu")
    for number, language in enumerate(texts):
        if so_far.tokens[number] == 0:
            raise NeuronShareError(f"Language {language!r} has only special tokens; give it some text.")
        for layer, width in enumerate(so_far.widths):
            rates[number, layer, :width] = so_far.counts[number, layer, :width].double() / so_far.tokens[number]
    return rates


class _SoFar:
    """The counts of the texts so far, which a folder keeps together with a hash of these texts."""

    def __init__(self, languages: list[str], widths: list[int], loop: Loop) -> None:
        self.languages, self.widths, self.loop = languages, widths, loop
        n = len(languages)
        self.tensors = {
            "counts": torch.zeros(n, len(widths), max(widths), dtype=torch.int64, device="cpu"),
            "tokens": torch.zeros(n, dtype=torch.int64, device="cpu"),
            "pieces": torch.zeros(n, dtype=torch.int64, device="cpu"),
            "hashes": torch.zeros(n, 32, dtype=torch.uint8, device="cpu"),
        }
        kept = None if loop.shards is None else loop.of_main(partial(_kept, loop.shards.folder / _FILE))
        self.tensors = self.tensors if kept is None else kept
        self._n_pieces, self._hash = 0, bytes(32)  # how many pieces of a language's text have been met, and their hash

    @property
    def counts(self) -> Int64[Tensor, "language layer neuron"]:
        """How many tokens activate each neuron."""
        return self.tensors["counts"]

    @property
    def tokens(self) -> Int64[Tensor, " language"]:
        """How many tokens each language has."""
        return self.tensors["tokens"]

    def meets(self, language: str, rows: list[list[int]]) -> list[list[int]]:
        """Go on to the next pieces of a language's text; return those that are not counted yet."""
        n_counted = int(self.tensors["pieces"][self.languages.index(language)])
        left = rows[max(0, n_counted - self._n_pieces) :]
        for row in rows:
            self._hash = hashlib.sha256(self._hash + json.dumps(row).encode()).digest()
            self._n_pieces += 1
            if self._n_pieces == n_counted:
                self._require_same(language)
        return left

    def end(self, language: str) -> None:
        """End a language's text."""
        n_counted = int(self.tensors["pieces"][self.languages.index(language)])
        if self._n_pieces < n_counted:
            raise NeuronShareError(
                f"Language {language!r}: the folder has counted {n_counted} pieces of text, and these are "
                f"{self._n_pieces}; give the same or more, or name a different folder."
            )
        self._n_pieces, self._hash = 0, bytes(32)

    def _require_same(self, language: str) -> None:
        if bytes(self.tensors["hashes"][self.languages.index(language)].tolist()) != self._hash:
            raise NeuronShareError(
                f"Language {language!r}: the texts do not begin with those that the folder was begun with; give the "
                "same, or name a different folder."
            )

    def count(self, language: str, plan: Plan, counter: _Counter) -> None:
        """Count the pieces that were met last."""
        number = self.languages.index(language)
        n_tokens, of_layers = 0, [torch.zeros(width, dtype=torch.int64, device="cpu") for width in self.widths]

        def add(rows: list[int], record: Record) -> None:
            nonlocal n_tokens
            n_tokens += int(record["tokens"].sum())
            for layer, counts in enumerate(of_layers):
                counts.add_(record[str(layer)].sum(0))

        self.loop(plan, counter.counted, add, stage=f"{language}/{self._n_pieces}/{self._hash.hex()}")
        if self._n_pieces != self.tensors["pieces"][number] + len(plan):
            raise UnfinishedError(f"Language {language!r}: the counts of earlier texts are not there yet.")
        self.tokens[number] += n_tokens
        for layer, counts in enumerate(of_layers):
            self.counts[number, layer, : len(counts)] += counts
        self.tensors["pieces"][number] = self._n_pieces
        self.tensors["hashes"][number] = torch.tensor(list(self._hash), dtype=torch.uint8, device="cpu")
        self.loop.seal(_FILE, lambda path: write_tensors(self.tensors, path, kind=_KIND))


def _kept(path: Path) -> dict[str, Tensor] | None:
    """Copy the counts in a folder, which are added to; None if there are none."""
    if not path.exists():
        return None
    return read_tensors(path, lambda tensors, _: {name: each.clone() for name, each in tensors.items()}, kind=_KIND)


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

    def counted(self, batch: Batch) -> Record:
        """Run a batch, and count its tokens that are not special, in all and for each neuron."""
        seen = batch.seen_by("encoder")
        counted = models.is_text(self.model, seen.tokens) & seen.shown()
        places = counted.nonzero(as_tuple=True)
        counts_of_layers: dict[int, Int64[Tensor, " neuron"]] = {
            number: torch.zeros(layer.width, dtype=torch.int64, device="cpu")
            for number, layer in enumerate(self.layers)
        }
        are_finite: dict[int, list[Tensor]] = {}  # looked at after the pass, so that no layer waits for it

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
                are_finite.setdefault(layer, []).append(values.isfinite().all())
                counts_of_layers[layer] += (values > self.threshold).sum(0)

        if counted.any():
            with models.reading(self.model, self.layers, read) as run_once:
                run_once(batch)
        is_finite = models.on_cpu([torch.stack(parts).all() for parts in are_finite.values()])
        for layer, yes in zip(are_finite, is_finite, strict=True):
            if not yes:
                raise NeuronShareError(
                    f"Language {self.language!r}: NaN or infinite activations at {self.layers[layer].name}; load the "
                    "model in float32 or bfloat16, and check your own hooks."
                )
        of_layers = {str(layer): counts[None] for layer, counts in counts_of_layers.items()}
        return {"tokens": counted.sum()[None], **of_layers}

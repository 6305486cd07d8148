"""Count how often each neuron is activated over free text, while the text streams by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.checks import one_of, texts_by_language
from tl_neuronshare.errors import NeuronShareError, UnfinishedError
from tl_neuronshare.maths.activation import Number, widened
from tl_neuronshare.models import LensModel, NeuronLayer, Site, verification
from tl_neuronshare.models.fingerprint import fingerprint_of_weights
from tl_neuronshare.results.files import read_tensors, write_tensors
from tl_neuronshare.results.identity import fingerprint
from tl_neuronshare.results.rates import NeuronRates
from tl_neuronshare.running import provenance
from tl_neuronshare.running.loop import Keeping, Loop, running
from tl_neuronshare.running.plan import Batch, BatchSize, Plan, Running
from tl_neuronshare.running.recording import as_threshold
from tl_neuronshare.running.shards import Record

_CHUNK = 1 << 26  # values of one layer that are compared at a time
_TEXTS = 256  # tokenised at a time
_PIECES = 256  # planned at a time, so that pieces of similar lengths share a batch
_FILE, _KIND = "counts.safetensors", "tl_neuronshare.counts/3"
Part = Literal["whole", "prompt", "answer"]


def activation_rates(
    model: LensModel,
    texts: Mapping[str, Iterable[Any] | Path],
    *,
    site: Site = "post",
    threshold: Number = 0.0,
    part: Part = "whole",
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    out: str | Path | None = None,
    shard: tuple[int, int] | str | None = None,
    progress: bool = True,
) -> NeuronRates:
    """Count how many of a language's tokens activate each neuron, in free text that need not be parallel.

    Only counts are kept, so there may be any amount of text. An iterator is read once, a few texts at a time. A text
    that is longer than the model's context is read in pieces, each without the text before it.

    Args:
        model: a HookedTransformer or TransformerBridge.
        texts: the texts of each language: a list or an iterator of strings, the path of a file with a text in each
            line, or a Hugging Face data set, also a streamed one, with a column `text`. A text may also be a pair of
            a prompt and an answer. Special tokens (BOS ...) are run but not counted.
        site: as in `categorise`.
        threshold: a neuron is activated if its value is above this number.
        part: which tokens are counted: those of the whole text or, if texts are pairs, of the prompt or of the answer
            alone. The answer begins where prompt and answer, tokenised together, first differ from the prompt.
        batch_size: as in `categorise`.
        prepend_bos: as in `categorise`, for every piece of text.
        out: as in `categorise`. The folder keeps the counts; the same call with more text at the end of a language's
            goes on from them.
        shard: as in `categorise`.
        progress: whether to show a progress bar, if the run takes more than two seconds.

    Returns:
        The counts, which add up with those of other texts. In an encoder-decoder the texts are given to the encoder,
        and the decoder's layers are not measured.

    Raises:
        NeuronShareError: the model or an option is unsuitable, a language has only special tokens, or activations are
            NaN or infinite.

    Example:
        >>> texts = {"en": ["Country code of Peru → PE", "Capital of Peru"], "de": ["Ländercode von Peru → PE"]}
        >>> found = activation_rates(model, texts)
        >>> found
        NeuronRates(tokens: en 12, de 5; 4 layers of 512 neurons)
        >>> found.rates.shape  # language layer neuron
        torch.Size([2, 4, 512])
    """
    how = Running(batch_size, prepend_bos).on(model)
    texts_by_language("texts", texts, lists=False)
    threshold = as_threshold("threshold", threshold)
    one_of("part", part, get_args(Part))
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
            **{"languages": list(texts), "site": site, "threshold": threshold, "counted": part, **how.record},
        }

    with running(model, "activation rates", progress=progress, keeping=Keeping(out, shard), about=about) as loop:
        so_far = _SoFar(list(texts), [layer.width for layer in layers], loop)
        for language, of_language in texts.items():
            counter = _Counter(model, layers, language, threshold)
            pieces = _pieces(model, of_language, language, part, prepend_bos=how.prepend_bos)
            while some := list(islice(pieces, _PIECES)):
                counter.pieces = so_far.meets(language, some)
                if counter.pieces:
                    plan = Plan(model, [piece.tokens for piece in counter.pieces], batch_size=how.batch_size)
                    loop.part(partial(so_far.count, language, plan, counter))
            so_far.end(language)
        loop.finish()
        loop.clear()
    for language, n_tokens in zip(texts, so_far.tokens.tolist(), strict=True):
        if n_tokens == 0:
            raise NeuronShareError(f"Language {language!r} has only special tokens; give it some text.")
    widths = [layer.width for layer in every_layer]
    counts = torch.zeros(len(texts), len(widths), max(widths), dtype=torch.int64, device="cpu")
    counts[:, :n_measured, : so_far.counts.shape[-1]] = so_far.counts
    return NeuronRates(
        counts,
        so_far.tokens,
        languages=list(texts),
        widths=widths,
        hooks=[layer.name for layer in every_layer],
        experts=[layer.experts for layer in every_layer],
        n_measured=n_measured,
        metadata={
            **provenance.describe(model),
            **{"site": site, "threshold": threshold, "counted": part, **how.record},
            "special_tokens_left_out": models.special_tokens(model),
            "fingerprint": fingerprint(fingerprint_of_weights(model), None),
            "texts": {language: [of_texts] for language, of_texts in zip(texts, so_far.hashes, strict=True)},
        },
    )


class _Piece(NamedTuple):
    """A piece of text that fits the context: its tokens, and from where to where they are counted."""

    tokens: list[int]
    start: int
    stop: int


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

    @property
    def hashes(self) -> list[str]:
        """A hash of each language's text."""
        return [bytes(of_language.tolist()).hex()[:16] for of_language in self.tensors["hashes"]]

    def meets(self, language: str, pieces: list[_Piece]) -> list[_Piece]:
        """Go on to the next pieces of a language's text; return those that are not counted yet."""
        n_counted = int(self.tensors["pieces"][self.languages.index(language)])
        left = pieces[max(0, n_counted - self._n_pieces) :]
        for piece in pieces:
            self._hash = hashlib.sha256(self._hash + json.dumps(piece).encode()).digest()
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


def _pieces(
    model: LensModel, texts: Iterable[Any] | Path, language: str, part: Part, *, prepend_bos: bool | None
) -> Iterator[_Piece]:
    """The tokens of each text in pieces that fit the context; those of which nothing is counted are left out.

    Each piece begins with the BOS if its text does, and with what else a tokenizer puts around a text by itself.
    """
    remaining = (_halves(text, language, part) for text in (_lines(texts) if isinstance(texts, Path) else texts))
    bos, special = model.tokenizer.bos_token_id, set(models.special_tokens(model)).__contains__
    while batch := list(islice(remaining, _TEXTS)):
        tokenise = partial(models.tokenise, model, prepend_bos=prepend_bos, language=language)
        rows = tokenise([prompt + answer for prompt, answer in batch])
        prompts = tokenise([prompt for prompt, _ in batch]) if part != "whole" else rows
        for row, prompt in zip(rows, prompts, strict=True):
            meet = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(row, prompt, strict=False)))
            first, last = (meet, len(row)) if part == "answer" else (0, meet)
            if prepend_bos is not None:
                start, end = row[:1] if row[:1] == [bos] else [], []
            else:
                start, end = list(takewhile(special, row)), list(takewhile(special, reversed(row)))[::-1]
            inner = row[len(start) : len(row) - len(end)]
            room = max(1, model.cfg.n_ctx - len(start) - len(end))
            for place in range(0, len(inner), room):
                tokens = start + inner[place : place + room] + end
                piece = _Piece(tokens, max(0, first - place), min(len(tokens), last - place))
                if piece.start < piece.stop:
                    yield piece


def _halves(text: Any, language: str, part: Part) -> tuple[str, str]:
    """Prompt and answer of a text; a whole text is a prompt without an answer."""
    text = text["text"] if isinstance(text, Mapping) and "text" in text else text
    if isinstance(text, str) and part == "whole":
        return text, ""
    if isinstance(text, Sequence) and len(text) == 2 and all(isinstance(half, str) for half in text):
        return text[0], text[1]
    if isinstance(text, str):
        raise NeuronShareError(
            f"Language {language!r}: {shortened(text)} is not a pair of a prompt and an answer, which part={part!r} "
            "needs; give pairs of strings."
        )
    raise NeuronShareError(
        f"Language {language!r}: {shortened(text)} is not a text; give strings, pairs of a prompt and an answer, or "
        "rows of a data set with a column text."
    )


def _lines(file: Path) -> Iterator[str]:
    """The lines of a file that are not empty."""
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    yield line.rstrip("\n")
    except OSError as error:
        raise NeuronShareError(f"{str(file)!r} cannot be read ({error}); give a file of texts.") from error
    except UnicodeDecodeError as error:
        raise NeuronShareError(f"{str(file)!r} is not UTF-8 ({error}); save it so.") from error


class _Counter:
    """Counts how many of a language's tokens activate each neuron. Each layer is reduced as soon as it is read.

    Attributes:
        pieces: the pieces of text that are counted next.
    """

    pieces: list[_Piece]

    def __init__(self, model: LensModel, layers: Sequence[NeuronLayer], language: str, threshold: float) -> None:
        self.model, self.layers, self.language, self.threshold = model, layers, language, threshold

    def counted(self, batch: Batch) -> Record:
        """Run a batch, and count its tokens that are not special, in all and for each neuron."""
        seen = batch.seen_by("encoder")
        counted = models.is_text(self.model, seen.tokens) & seen.shown() & self._chosen(batch.rows, seen.shown())
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

    def _chosen(self, rows: Sequence[int], shown: Bool[Tensor, "row position"]) -> Bool[Tensor, "row position"]:
        """Which tokens are in the part that is counted."""
        place = shown.cumsum(1) - 1  # of each token in its piece
        pieces = [self.pieces[row] for row in rows]
        start = torch.tensor([piece.start for piece in pieces], device="cpu")[:, None]
        stop = torch.tensor([piece.stop for piece in pieces], device="cpu")[:, None]
        return (place >= start) & (place < stop)

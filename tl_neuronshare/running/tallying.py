"""Add up numbers of each neuron over the tokens of free text, while the text streams by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.errors import NeuronShareError, UnfinishedError
from tl_neuronshare.maths.activation import widened
from tl_neuronshare.models import LensModel, NeuronLayer
from tl_neuronshare.models.fingerprint import fingerprint_of_weights
from tl_neuronshare.results.files import read_tensors, write_tensors
from tl_neuronshare.results.identity import fingerprint
from tl_neuronshare.running import provenance
from tl_neuronshare.running.loop import Loop
from tl_neuronshare.running.plan import Batch, Plan, Running
from tl_neuronshare.running.shards import Record

_CHUNK = 1 << 26  # values of one layer that are reduced at a time
_TEXTS = 256  # tokenised at a time
_PIECES = 256  # planned at a time, so that pieces of similar lengths share a batch
_KIND = "tl_neuronshare.counts/4"
Part = Literal["whole", "prompt", "answer"]


@dataclass(frozen=True)
class Tally:
    """What is added up for each neuron.

    Attributes:
        of: gives a layer's numbers at some tokens, from the number of the layer and its values there.
        name: the name of the file in which a folder keeps the sums.
        size: how many numbers a neuron has.
        dtype: the dtype of the sums.
        absent: the value of a neuron that a mixture of experts does not compute.
    """

    of: Callable[[int, Float[Tensor, "token neuron"]], Shaped[Tensor, "neuron number"]]
    name: str = "counts"
    size: int = 1
    dtype: torch.dtype = torch.int64
    absent: float = 0.0


@dataclass(frozen=True)
class Sums:
    """Sums over the tokens of each language, how many tokens there are, and a hash of each language's text."""

    numbers: Shaped[Tensor, "language layer neuron number"]
    tokens: Int64[Tensor, " language"]
    hashes: list[str]

    def of_all(self, widths: Sequence[int]) -> Shaped[Tensor, "language layer neuron number"]:
        """Return the sums with zeros for the layers that were not measured, which come last in the model."""
        n_languages, n_measured, widest, size = self.numbers.shape
        numbers = self.numbers.new_zeros(n_languages, len(widths), max(widths), size)
        numbers[:, :n_measured, :widest] = self.numbers
        return numbers


def metadata_of(model: LensModel, how: Running, **options: Any) -> dict[str, Any]:
    """Describe how numbers of free text are made: the model and its weights, the options, and what is left out."""
    return {
        **provenance.describe(model),
        **options,
        **how.record,
        "special_tokens_left_out": models.special_tokens(model),
        "fingerprint": fingerprint(fingerprint_of_weights(model), None),
    }


def measured_layers(model: LensModel, layers: Sequence[NeuronLayer]) -> list[NeuronLayer]:
    """Return the layers that free text passes: in an encoder-decoder those of the encoder, which come first."""
    if models.architecture_of(model) != "encoder-decoder":
        return list(layers)
    return [layer for layer in layers if layer.stack == "encoder"]


def tallied(
    model: LensModel,
    layers: Sequence[NeuronLayer],
    texts: Mapping[str, Iterable[Any] | Path],
    tally: Tally,
    *,
    part: Part,
    how: Running,
    loop: Loop,
) -> Sums:
    """Add up numbers of each neuron over the tokens of each language's texts.

    Args:
        model: the model to run.
        layers: the layers to read.
        texts: as in `activation_rates`.
        tally: what is added up.
        part: which tokens count, as in `activation_rates`.
        how: how the texts are run.
        loop: the loop that goes through the batches.

    Raises:
        NeuronShareError: a text is not one, a language has only special tokens, or values are NaN or infinite.
    """
    so_far = _SoFar(list(texts), [layer.width for layer in layers], tally, loop)
    sizes = [len(each) for each in texts.values() if isinstance(each, Sized)]
    n_texts = sum(sizes) if len(sizes) == len(texts) else None
    n_pieces = n_done = 0
    for language, of_language in texts.items():
        reader = _Reader(model, layers, language, tally)
        pieces = _pieces(model, of_language, language, part, prepend_bos=how.prepend_bos)
        while some := list(islice(pieces, _PIECES)):
            reader.pieces = so_far.meets(language, some)
            n_pieces += len(reader.pieces)
            n_done += len(some) - len(reader.pieces)
            if n_texts is not None:  # a text has one piece or more
                loop.expect(max(n_texts - n_done, n_pieces))
            if reader.pieces:
                plan = Plan(model, [piece.tokens for piece in reader.pieces], batch_size=how.batch_size)
                loop.part(partial(so_far.add, language, plan, reader))
        so_far.end(language)
    loop.finish()
    for language, n_tokens in zip(texts, so_far.tokens.tolist(), strict=True):
        if n_tokens == 0:
            raise NeuronShareError(f"Language {language!r} has no text, or only special tokens; give it some text.")
    return Sums(so_far.numbers, so_far.tokens, so_far.hashes)


class _Piece(NamedTuple):
    """A piece of text that fits the context: its tokens, and from where to where they are counted."""

    tokens: list[int]
    start: int
    stop: int


class _SoFar:
    """The sums over the texts so far, which a folder keeps together with a hash of these texts."""

    def __init__(self, languages: list[str], widths: list[int], tally: Tally, loop: Loop) -> None:
        self.languages, self.widths, self.tally, self.loop = languages, widths, tally, loop
        self._file, n = f"{tally.name}.safetensors", len(languages)
        shape = (n, len(widths), max(widths), tally.size)
        self.tensors = {
            "numbers": torch.zeros(shape, dtype=tally.dtype, device="cpu"),
            "tokens": torch.zeros(n, dtype=torch.int64, device="cpu"),
            "pieces": torch.zeros(n, dtype=torch.int64, device="cpu"),
            "hashes": torch.zeros(n, 32, dtype=torch.uint8, device="cpu"),
        }
        kept = None if loop.shards is None else loop.of_main(partial(_kept, loop.shards.folder / self._file))
        self.tensors = self.tensors if kept is None else kept
        self._n_pieces, self._hash = 0, bytes(32)  # how many pieces of a language's text have been met, and their hash

    @property
    def numbers(self) -> Shaped[Tensor, "language layer neuron number"]:
        """The sums."""
        return self.tensors["numbers"]

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
                f"Language {language!r}: the folder has read {n_counted} pieces of text, and these are "
                f"{self._n_pieces}; give the same or more, or name a different folder."
            )
        self._n_pieces, self._hash = 0, bytes(32)

    def _require_same(self, language: str) -> None:
        if bytes(self.tensors["hashes"][self.languages.index(language)].tolist()) != self._hash:
            raise NeuronShareError(
                f"Language {language!r}: the texts do not begin with those that the folder was begun with; give the "
                "same, or name a different folder."
            )

    def add(self, language: str, plan: Plan, reader: _Reader) -> None:
        """Add the numbers of the pieces that were met last."""
        number, size = self.languages.index(language), self.tally.size
        n_tokens, of_layers = (
            0,
            [torch.zeros(width, size, dtype=self.tally.dtype, device="cpu") for width in self.widths],
        )

        def add(rows: list[int], record: Record) -> None:
            nonlocal n_tokens
            n_tokens += int(record["tokens"].sum())
            for layer, numbers in enumerate(of_layers):
                numbers.add_(record[str(layer)].sum(0))

        self.loop(plan, reader.read, add, stage=f"{self.tally.name}/{language}/{self._n_pieces}/{self._hash.hex()}")
        if self._n_pieces != self.tensors["pieces"][number] + len(plan):
            raise UnfinishedError(f"Language {language!r}: the sums over earlier texts are not there yet.")
        self.tokens[number] += n_tokens
        for layer, numbers in enumerate(of_layers):
            self.numbers[number, layer, : len(numbers)] += numbers
        self.tensors["pieces"][number] = self._n_pieces
        self.tensors["hashes"][number] = torch.tensor(list(self._hash), dtype=torch.uint8, device="cpu")
        self.loop.seal(self._file, lambda path: write_tensors(self.tensors, path, kind=_KIND))


def _kept(path: Path) -> dict[str, Tensor] | None:
    """Copy the sums in a folder, which are added to; None if there are none."""
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
    if isinstance(text, str):
        raise NeuronShareError(
            f"Language {language!r}: {shortened(text)} is not a pair of a prompt and an answer, which part={part!r} "
            "needs; give pairs of strings."
        )
    if isinstance(text, Sequence) and len(text) == 2 and all(isinstance(half, str) for half in text):
        return text[0], text[1]
    raise NeuronShareError(
        f"Language {language!r}: {shortened(text)} is not a text; give strings, pairs of a prompt and an answer, or "
        "rows of a data set with a column text."
    )


def _lines(file: Path) -> Iterator[str]:
    """The lines of a file that are not empty."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for line in lines:
                if line.strip():
                    yield line.rstrip("\n")
    except OSError as error:
        raise NeuronShareError(f"{str(file)!r} cannot be read ({error}); give a file of texts.") from error
    except UnicodeDecodeError as error:
        raise NeuronShareError(f"{str(file)!r} is not UTF-8 ({error}); save it so.") from error


class _Reader:
    """Reads the values at a language's tokens. Each layer is reduced as soon as it is read.

    Attributes:
        pieces: the pieces of text that are read next.
    """

    pieces: list[_Piece]

    def __init__(self, model: LensModel, layers: Sequence[NeuronLayer], language: str, tally: Tally) -> None:
        self.model, self.layers, self.language, self.tally = model, layers, language, tally

    def read(self, batch: Batch) -> Record:
        """Run a batch, count its tokens that are not special, and add up each neuron's numbers at them."""
        seen = batch.seen_by("encoder")
        counted = models.is_text(self.model, seen.tokens) & seen.shown() & self._chosen(batch.rows, seen.shown())
        places = counted.nonzero(as_tuple=True)
        tally = self.tally
        sums: dict[int, Tensor] = {
            number: torch.zeros(layer.width, tally.size, dtype=tally.dtype, device="cpu")
            for number, layer in enumerate(self.layers)
        }
        are_finite: dict[int, list[Tensor]] = {}  # looked at after the pass, so that no layer waits for it

        def reduce(layer: int, tensors: tuple[Tensor, ...]) -> None:
            tensors = tuple(tensor.detach() for tensor in tensors)
            sums[layer] = sums[layer].to(tensors[-1].device)
            step = max(1, _CHUNK // self.layers[layer].width)
            for part in zip(*(torch.split(place, step) for place in places), strict=True):
                here = tuple(place.to(tensors[-1].device) for place in part)
                values = widened(self.layers[layer].read(tensors, here, absent=tally.absent))
                are_finite.setdefault(layer, []).append(values.isfinite().all())
                sums[layer] += tally.of(layer, values)

        if counted.any():
            with models.reading(self.model, self.layers, reduce) as run_once:
                run_once(batch)
        is_finite = models.on_cpu([torch.stack(parts).all() for parts in are_finite.values()])
        for layer, yes in zip(are_finite, is_finite, strict=True):
            if not yes:
                raise NeuronShareError(
                    f"Language {self.language!r}: NaN or infinite activations at {self.layers[layer].name}; load the "
                    "model in float32 or bfloat16, and check your own hooks."
                )
        return {"tokens": counted.sum()[None], **{str(layer): numbers[None] for layer, numbers in sums.items()}}

    def _chosen(self, rows: Sequence[int], shown: Bool[Tensor, "row position"]) -> Bool[Tensor, "row position"]:
        """Which tokens are in the part that is counted."""
        place = shown.cumsum(1) - 1  # of each token in its piece
        pieces = [self.pieces[row] for row in rows]
        start = torch.tensor([piece.start for piece in pieces], device="cpu")[:, None]
        stop = torch.tensor([piece.stop for piece in pieces], device="cpu")[:, None]
        return (place >= start) & (place < stop)

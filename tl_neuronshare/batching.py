"""From prompts to batches of tokens: tokenising with checks, which prompts share a forward pass, padding."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil
from numbers import Integral
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models import LensModel
from tl_neuronshare.prompts import ParallelPrompts

BatchSize = Literal["auto"] | int
# What "auto" puts in one batch, padding included: enough to keep a GPU busy, little beside a model's weights.
_AUTO_TOKENS, _AUTO_PROMPTS = 8192, 256
AUTO_NUMBERS = 1 << 27  # logits or neurons' values: half a GiB in float32


@dataclass(frozen=True)
class Packing:
    """Which prompts may share a batch without changing one another, and what a batch costs.

    Attributes:
        pads: whether prompts may be padded at all; else only those of equal length share a batch.
        boundary: longer texts than this are computed otherwise, as whole batches, so that those on either side of it
            never share one; None where there is no such length.
        tokens_a_pass: a forward pass costs about as much as so many tokens, besides those that it has.
    """

    pads: bool = True
    boundary: int | None = None
    tokens_a_pass: int = 128

    def counting_one_more(self) -> Packing:
        """The same for sizes that count one token which is not run."""
        return replace(self, boundary=None if self.boundary is None else self.boundary + 1)

    def are_long(self, n_tokens: int) -> bool:
        """Whether so many tokens are beyond the boundary."""
        return self.boundary is not None and n_tokens > self.boundary

    def crosses(self, n_tokens: int, n_more: int) -> bool:
        """Whether a text gets beyond the boundary by so many more tokens."""
        return self.are_long(n_tokens + n_more) and not self.are_long(n_tokens)


def check_options(prompts: object, batch_size: object, prepend_bos: object) -> None:
    """Refuse what is no ParallelPrompts, no size of a batch, or no choice of BOS."""
    if not isinstance(prompts, ParallelPrompts):
        raise NeuronShareError(
            f"prompts is a {type(prompts).__name__}; make it ParallelPrompts({{language: [prompt, ...], ...}})."
        )
    check_run_options(batch_size, prepend_bos)


def check_run_options(batch_size: object, prepend_bos: object) -> None:
    """Refuse what is no size of a batch, or no choice of BOS."""
    if batch_size != "auto" and (
        isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1
    ):
        raise NeuronShareError(f'batch_size={batch_size!r} is unknown; use "auto" or a number of prompts, at least 1.')
    if not (prepend_bos is None or isinstance(prepend_bos, bool)):
        raise NeuronShareError(f"prepend_bos={prepend_bos!r} is unknown; use True, False, or None for the model's own.")


def tokenised(
    model: LensModel, texts: Sequence[str], language: str, examples: Sequence[Hashable], *, prepend_bos: bool | None
) -> list[list[int]]:
    """Each text of one language as tokens, checked against the context; nothing is cut off.

    Raises:
        NeuronShareError: a text without a token, or with more than the model's context.

    Example:
        >>> len(tokenised(model, ["Country code of Peru →"], "en", [0], prepend_bos=None)[0])
        5
    """
    rows = models.tokenise(model, texts, prepend_bos=prepend_bos)
    for example, tokens in zip(examples, rows, strict=True):
        where = f"Language {language!r}, example {example!r}"
        if not tokens:
            raise NeuronShareError(f"{where}: the prompt has no token; write one that the tokenizer can read.")
        check_length(model, len(tokens), where)
    return rows


def check_length(model: LensModel, n_tokens: int, where: str, what: str = "the prompt") -> None:
    """Refuse what is longer than the context."""
    if n_tokens > model.cfg.n_ctx:
        raise NeuronShareError(
            f"{where}: {what} has {n_tokens} tokens, the model's context {model.cfg.n_ctx}; "
            "shorten it or drop that example in every language."
        )


def plan_batches(
    sizes: Sequence[tuple[int, ...]],
    batch_size: BatchSize,
    *,
    packing: Packing,
    n_ctx: int | None = None,
    per_token: int = 0,
) -> list[list[int]]:
    """Which prompts share a forward pass: of all ways to put similar lengths together the one that costs least.

    A batch costs all its tokens, padding included, and what a pass costs besides (`packing`). Where a number of prompts
    is given as `batch_size`, there are as few batches as it allows.

    Args:
        sizes: how many tokens each has, in parts that are padded apart: (prompt,) or (prompt, answer).
        batch_size: how many at most.
        packing: which of them may share a batch.
        n_ctx: how wide a batch may be, padding included.
        per_token: how many numbers (logits, neurons' values) are made for each token of the last part.

    Example:
        >>> plan_batches([(5,), (3,), (5,), (4,)], 2, packing=Packing())
        [[1, 3], [0, 2]]
    """
    order = sorted(range(len(sizes)), key=lambda row: sizes[row][::-1])
    alike = [(size, list(rows)) for size, rows in groupby(order, key=sizes.__getitem__)]
    # The best plan of the first so many sizes, as what it costs, where its last stretch begins and its rows a batch.
    best = [_Stretch(0, 0, 1)]
    n_tokens = 0  # of the first so many sizes, without padding
    for stop, (last, last_rows) in enumerate(alike, 1):
        n_tokens += sum(last) * len(last_rows)
        n_rows, own, widest, fewest = 0, 0, last, sum(last)
        found: _Stretch | None = None
        for start in reversed(range(stop)):
            size, rows = alike[start]
            n_rows, own = n_rows + len(rows), own + sum(size) * len(rows)
            widest, fewest = tuple(map(max, widest, size)), min(fewest, sum(size))
            width = sum(widest)
            fits = (
                packing.pads
                and (packing.are_long(fewest) or not packing.are_long(width))
                and (n_ctx is None or width <= n_ctx)
            )
            if start < stop - 1 and not fits:
                break
            room = _room(widest, batch_size, per_token)
            if batch_size != "auto":  # as few as possible: one stretch, as far back as it fits
                found = _Stretch(0, start, room)
                continue
            # Whatever comes before, all tokens are run, and this padding; which only grows further back.
            if found is not None and n_tokens + n_rows * width - own + packing.tokens_a_pass > found.cost:
                break
            cost = best[start].cost + ceil(n_rows / room) * packing.tokens_a_pass + n_rows * width
            if found is None or cost < found.cost:
                found = _Stretch(cost, start, room)
        assert found is not None
        best.append(found)
    batches: list[list[int]] = []
    stop = len(alike)
    while stop:
        stretch = best[stop]
        rows = [row for _, of_size in alike[stretch.start : stop] for row in of_size]
        batches[:0] = [rows[place : place + stretch.room] for place in range(0, len(rows), stretch.room)]
        stop = stretch.start
    return batches


class _Stretch(NamedTuple):
    """Sizes that are padded alike, and cut into batches of so many rows."""

    cost: int
    start: int
    room: int


def _room(size: tuple[int, ...], batch_size: BatchSize, per_token: int) -> int:
    """How many rows of this size fit in a batch."""
    if batch_size != "auto":
        return int(batch_size)
    room = AUTO_NUMBERS // max(1, size[-1] * per_token) if per_token else _AUTO_PROMPTS
    return min(_AUTO_PROMPTS, max(1, _AUTO_TOKENS // sum(size)), max(1, room))


def left_padded(
    rows: Sequence[Sequence[int]],
) -> tuple[Int[Tensor, "prompt position"], Int[Tensor, "prompt position"] | None]:
    """Tokens and their mask; no mask where nothing is padded.

    The mask is made from the lengths: one made from the token ids would hide a prompt's own BOS or end token
    where that is also the padding.

    Example:
        >>> left_padded([[5, 6, 7], [8]])
        (tensor([[5, 6, 7],
                [0, 0, 8]]), tensor([[1, 1, 1],
                [0, 0, 1]]))
    """
    return padded_apart(rows, [()] * len(rows))


def padded_apart(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> tuple[Int[Tensor, "prompt position"], Int[Tensor, "prompt position"] | None]:
    """Prompts padded on the left and answers on the right, so that all prompts end at the same place; and the mask.

    Example:
        >>> padded_apart([[5, 6], [7]], [[8], [9, 9]])
        (tensor([[5, 6, 8, 0],
                [0, 7, 9, 9]]), tensor([[1, 1, 1, 0],
                [0, 1, 1, 1]]))
    """
    end, after = max(map(len, prompts)), max(map(len, answers))
    # Any token will do: the mask hides it.
    tokens = torch.tensor(
        [
            [0] * (end - len(prompt)) + list(prompt) + list(answer) + [0] * (after - len(answer))
            for prompt, answer in zip(prompts, answers, strict=True)
        ],
        device="cpu",
    )
    places = torch.arange(end + after, device="cpu")
    first = torch.tensor([[end - len(prompt)] for prompt in prompts], device="cpu")
    last = torch.tensor([[end + len(answer)] for answer in answers], device="cpu")
    mask = (places >= first) & (places < last)
    return tokens, None if mask.all() else mask.long()

"""Which prompts share a forward pass: planned before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from math import ceil, inf
from numbers import Integral
from typing import Literal, NamedTuple

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models.packing import Packing
from tl_neuronshare.prompts import ParallelPrompts

BatchSize = Literal["auto"] | int
# What "auto" puts in one batch, padding included: enough to keep a GPU busy, little beside a model's weights.
_AUTO_TOKENS, _AUTO_PROMPTS = 8192, 256
AUTO_NUMBERS = 1 << 27  # logits or neurons' values: half a GiB in float32


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
    cheapest = _cheapest(alike, packing, n_ctx, per_token) if batch_size == "auto" else None
    batches: list[list[int]] = []
    stop = len(alike)
    while stop:
        # For as few batches as possible the longest stretch is right.
        stretch = cheapest[stop] if cheapest else list(_stretches(alike, stop, packing, n_ctx))[-1]
        rows = [row for _, of_size in alike[stretch.start : stop] for row in of_size]
        room = _room(stretch.widest, batch_size, per_token)
        batches[:0] = [rows[place : place + room] for place in range(0, len(rows), room)]
        stop = stretch.start
    return batches


class _Stretch(NamedTuple):
    """Sizes in a row that are padded alike, to be cut into batches."""

    start: int
    n_rows: int
    n_tokens: int  # without padding
    widest: tuple[int, ...]


def _stretches(
    alike: Sequence[tuple[tuple[int, ...], list[int]]], stop: int, packing: Packing, n_ctx: int | None
) -> Iterator[_Stretch]:
    """Those that end before `stop`, from the shortest to the longest that may share a batch."""
    last, _ = alike[stop - 1]
    n_rows, n_tokens, widest, fewest = 0, 0, last, sum(last)
    for start in reversed(range(stop)):
        size, rows = alike[start]
        n_rows, n_tokens = n_rows + len(rows), n_tokens + sum(size) * len(rows)
        widest, fewest = tuple(map(max, widest, size)), min(fewest, sum(size))
        fits = (
            packing.pads
            and (packing.are_long(fewest) or not packing.are_long(sum(widest)))
            and (n_ctx is None or sum(widest) <= n_ctx)
        )
        if start < stop - 1 and not fits:
            return
        yield _Stretch(start, n_rows, n_tokens, widest)


def _cheapest(
    alike: Sequence[tuple[tuple[int, ...], list[int]]], packing: Packing, n_ctx: int | None, per_token: int
) -> list[_Stretch]:
    """For the first so many sizes the last stretch of the plan that costs least; for none of them an empty one."""
    best, costs = [_Stretch(0, 0, 0, ())], [0]
    n_tokens = 0  # of the first so many sizes, without padding
    for stop, (last, last_rows) in enumerate(alike, 1):
        n_tokens += sum(last) * len(last_rows)
        found, least = best[0], inf
        for one in _stretches(alike, stop, packing, n_ctx):
            padded = one.n_rows * sum(one.widest)
            # Whatever comes before, all tokens are run, and this padding; which only grows further back.
            if n_tokens + padded - one.n_tokens + packing.tokens_a_pass > least:
                break
            passes = ceil(one.n_rows / _room(one.widest, "auto", per_token))
            cost = costs[one.start] + passes * packing.tokens_a_pass + padded
            if cost < least:
                found, least = one, cost
        best.append(found)
        costs.append(int(least))
    return best


def _room(size: tuple[int, ...], batch_size: BatchSize, per_token: int) -> int:
    """How many rows of this size fit in a batch."""
    if batch_size != "auto":
        return int(batch_size)
    room = AUTO_NUMBERS // max(1, size[-1] * per_token) if per_token else _AUTO_PROMPTS
    return min(_AUTO_PROMPTS, max(1, _AUTO_TOKENS // sum(size)), max(1, room))

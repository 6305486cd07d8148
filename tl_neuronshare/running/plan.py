"""Plan which rows of tokens share a forward pass, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from math import ceil, inf
from typing import Any, Literal, NamedTuple

from tl_neuronshare import models
from tl_neuronshare.checks import Options, is_count, option
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models import Inputs, LensModel, Packing, verification
from tl_neuronshare.prompts import short_hash

BatchSize = Literal["auto"] | int
# What "auto" puts in one batch, padding included: enough to keep a GPU busy, but little beside a model's weights.
_AUTO_TOKENS, _AUTO_PROMPTS = 8192, 256
AUTO_NUMBERS = 1 << 27  # logits or neurons' values in one batch: half a GiB in float32


def _as_batch_size(name: str, value: Any) -> BatchSize:
    if not (isinstance(value, str) and value == "auto") and not is_count(value):
        raise NeuronShareError(f'{name}={value!r} is unknown; use "auto" or a number of prompts, at least 1.')
    return "auto" if isinstance(value, str) else int(value)


def number_or_auto(text: str) -> BatchSize:
    """A batch size on the command line."""
    return "auto" if text == "auto" else int(text)


def _as_bos(name: str, value: Any) -> bool | None:
    if not (value is None or isinstance(value, bool)):
        raise NeuronShareError(f"{name}={value!r} is unknown; use True, False, or None for the model's default.")
    return value


@dataclass(frozen=True)
class Running(Options):
    """How prompts are run."""

    batch_size: BatchSize = option(
        "auto",
        _as_batch_size,
        help="prompts a forward pass (default: as many as fit)",
        type=number_or_auto,
        metavar="N",
    )
    prepend_bos: bool | None = option(None, _as_bos)

    def on(self, model: LensModel) -> Running:
        """The same options, with the model's default for `prepend_bos` if it is None.

        Raises:
            NeuronShareError: this is not a TransformerLens model that can be used.
        """
        models.check_model(model)
        return replace(self, prepend_bos=models.resolve_prepend_bos(model, self.prepend_bos))


@dataclass(frozen=True, kw_only=True)
class Batch(Inputs):
    """Rows of a plan that share a forward pass.

    Attributes:
        rows: the numbers of the plan's rows.
        end: how many tokens the padded prompts have. The tokens after these belong to answers.
    """

    rows: list[int]
    end: int


class Plan:
    """Which rows share a batch. A row is a prompt as tokens, and maybe an answer that is run after it.

    In an encoder-decoder the prompt is the source, and the answer follows the decoder's own prompt.

    Args:
        model: the model that will run the rows.
        prompts: the tokens of each row's prompt.
        answers: the tokens of each row's answer, which are padded separately from the prompts; none by default.
        batch_size: how many rows a batch has at most.
        n_more: how many tokens each row needs in addition, which are not part of the plan: a last token that is only
            predicted, or tokens that are generated.
        per_token: how many numbers (logits, neurons' values) are made for each token of an answer.
        packing: which rows may share a batch; by default what verification has shown for the model.

    Examples:
        >>> plan = Plan(model, [[5, 6, 7], [8], [9, 9]], batch_size=2)
        >>> plan.batches
        [[1, 2], [0]]
    """

    def __init__(
        self,
        model: LensModel,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]] | None = None,
        *,
        batch_size: BatchSize,
        n_more: int = 0,
        per_token: int = 0,
        packing: Packing | None = None,
    ) -> None:
        self.model, self.prompts, self.answers = model, prompts, answers
        if answers is None:
            sizes: list[tuple[int, ...]] = [(len(prompt) + n_more,) for prompt in prompts]
        else:
            sizes = [(len(prompt), len(after) + n_more) for prompt, after in zip(prompts, answers, strict=True)]
        self.batches = plan_batches(
            sizes,
            batch_size,
            packing=packing or verification.packing(model).counting(n_more),
            n_ctx=model.cfg.n_ctx + n_more,
            per_token=per_token,
        )

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch, self.batches)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the rows and of how they are batched."""
        return short_hash(repr((self.prompts, self.answers, self.batches)))

    def batch(self, rows: list[int]) -> Batch:
        """The batch of these rows, padded."""
        prompts = [self.prompts[row] for row in rows]
        answers = None if self.answers is None else [self.answers[row] for row in rows]
        inputs = models.inputs_of(self.model, prompts, answers)
        end = inputs.tokens.shape[1] - max(map(len, answers or [()]))
        return Batch(**vars(inputs), rows=rows, end=end)


def plan_batches(
    sizes: Sequence[tuple[int, ...]],
    batch_size: BatchSize,
    *,
    packing: Packing,
    n_ctx: int | None = None,
    per_token: int = 0,
) -> list[list[int]]:
    """Choose which rows share a forward pass: rows of similar lengths, at the lowest cost.

    The cost of a batch is the number of its tokens, padding included, and a fixed cost for each pass (`packing`). If
    `batch_size` is a number, there are as few batches as it allows.

    Args:
        sizes: how many tokens each row has, in parts that are padded separately: (prompt,) or (prompt, answer).
        batch_size: how many rows a batch has at most.
        packing: which rows may share a batch.
        n_ctx: how many tokens a row of a batch may have, padding included.
        per_token: how many numbers (logits, neurons' values) are made for each token of the last part.

    Examples:
        >>> plan_batches([(5,), (3,), (5,), (4,)], 2, packing=Packing())
        [[1, 3], [0, 2]]
    """
    if not packing.shares:
        batch_size = 1
    order = sorted(range(len(sizes)), key=lambda row: sizes[row][::-1])
    alike = [(size, list(rows)) for size, rows in groupby(order, key=sizes.__getitem__)]
    cheapest = _cheapest(alike, packing, n_ctx, per_token) if batch_size == "auto" else None
    batches: list[list[int]] = []
    stop = len(alike)
    while stop:
        # The longest stretch makes the fewest batches.
        stretch = cheapest[stop] if cheapest else list(_stretches(alike, stop, packing, n_ctx))[-1]
        rows = [row for _, of_size in alike[stretch.start : stop] for row in of_size]
        room = rows_that_fit(stretch.widest, batch_size, per_token)
        batches[:0] = [rows[place : place + room] for place in range(0, len(rows), room)]
        stop = stretch.start
    return batches


class _Stretch(NamedTuple):
    """Consecutive sizes whose rows are all padded to the same size, and are then cut into batches."""

    start: int
    n_rows: int
    n_tokens: int  # without padding
    widest: tuple[int, ...]


def _stretches(
    alike: Sequence[tuple[tuple[int, ...], list[int]]], stop: int, packing: Packing, n_ctx: int | None
) -> Iterator[_Stretch]:
    """The stretches that end before `stop`, from the shortest to the longest whose rows may share a batch."""
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
    """The last stretch of the cheapest plan, for the first 0, 1, 2 ... sizes; it is empty for 0 sizes."""
    best, costs = [_Stretch(0, 0, 0, ())], [0]
    n_tokens = 0  # in the first `stop` sizes, without padding
    for stop, (last, last_rows) in enumerate(alike, 1):
        n_tokens += sum(last) * len(last_rows)
        cheapest, lowest = best[0], inf
        for stretch in _stretches(alike, stop, packing, n_ctx):
            padded = stretch.n_rows * sum(stretch.widest)
            # Whatever comes before, this is the least that a plan costs: all tokens, and the padding of this stretch.
            # Longer stretches have more padding, so none of them can be cheaper either.
            if n_tokens + padded - stretch.n_tokens + packing.tokens_a_pass > lowest:
                break
            passes = ceil(stretch.n_rows / rows_that_fit(stretch.widest, "auto", per_token))
            cost = costs[stretch.start] + passes * packing.tokens_a_pass + padded
            if cost < lowest:
                cheapest, lowest = stretch, cost
        best.append(cheapest)
        costs.append(int(lowest))
    return best


def rows_that_fit(size: tuple[int, ...], batch_size: BatchSize, per_token: int) -> int:
    """Return how many rows of this size fit in a batch; the arguments are those of `plan_batches`.

    Examples:
        >>> rows_that_fit((500, 12), "auto", per_token=50_000)
        16
    """
    if batch_size != "auto":
        return int(batch_size)
    room = AUTO_NUMBERS // max(1, size[-1] * per_token) if per_token else _AUTO_PROMPTS
    return min(_AUTO_PROMPTS, max(1, _AUTO_TOKENS // sum(size)), max(1, room))

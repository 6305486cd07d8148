"""Which prompts are run once for all rows that follow them, such as choices, and in which forward passes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from tl_neuronshare.models import LensModel, verification
from tl_neuronshare.running.plan import AUTO_NUMBERS, BatchSize, Plan

_TOKENS = 1 << 16  # of prompts, for which one layer's keys and values are copied at a time


@dataclass(frozen=True)
class Row:
    """The tokens that are run for some continuations: those before, and those of the answer.

    Attributes:
        example: the number of the example.
        before: the prompt's tokens.
        run: the answer's tokens that the model sees; there may be none.
        numbers: which continuations are scored there.
    """

    example: int
    before: tuple[int, ...]
    run: tuple[int, ...]
    numbers: list[int]


class Once:
    """Examples whose prompts are run once, each for all its rows; and rows that are run with their prompts.

    Attributes:
        groups: the rows of each of these examples.
        plan: the batches of their prompts. Its answers only say how much is run after them.
        left: all other rows.
        plan_of_left: the batches of these, each with its prompt.
    """

    def __init__(
        self, model: LensModel, groups: Sequence[list[Row]], left: list[Row], batch_size: BatchSize, up_to: int
    ) -> None:
        self.groups, self.left = groups, left
        self._batch_size, self._per_token = batch_size, model.cfg.d_vocab
        packing = verification.packing(model)
        self.plan = Plan(
            model,
            [rows[0].before for rows in groups],
            [max((row.run for row in rows), key=len) for rows in groups],
            batch_size=batch_size,
            per_token=model.cfg.d_vocab,
            packing=replace(packing, boundary=up_to, tokens_a_pass=2 * packing.tokens_a_pass),
        )
        self.plan_of_left = whole(model, left, batch_size)

    def passes(self, batch: Sequence[int]) -> list[list[tuple[int, Row]]]:
        """Which rows share a forward pass after a batch's prompts have been run.

        Args:
            batch: the numbers of the batch's groups.

        Returns:
            For each pass its rows, each with the place of its prompt in the batch.
        """
        rows = [(place, row) for place, number in enumerate(batch) for row in self.groups[number] if row.run]
        rows.sort(key=lambda each: len(each[1].run))  # so that rows of similar lengths share a pass
        width, longest = self.widths(batch)
        room = max(1, min(_TOKENS // width, AUTO_NUMBERS // (longest * self._per_token)))
        room = room if self._batch_size == "auto" else min(room, int(self._batch_size))
        return [rows[start : start + room] for start in range(0, len(rows), room)]

    def widths(self, batch: Sequence[int]) -> tuple[int, int]:
        """How many tokens the longest prompt of a batch has, and the longest row after one."""
        of_batch = [row for number in batch for row in self.groups[number]]
        return max(len(row.before) for row in of_batch), max(len(row.run) for row in of_batch)

    def cost(self, tokens_a_pass: int) -> int:
        """How many tokens are run, padding and the fixed cost of each pass included."""
        of_groups = sum(
            tokens_a_pass
            + len(batch) * self.widths(batch)[0]
            + sum(tokens_a_pass + len(rows) * len(rows[-1][1].run) for rows in self.passes(batch))
            for batch in self.plan.batches
        )
        return of_groups + _cost_of(self.plan_of_left, tokens_a_pass)


def prompts_once(plan: Plan, rows: Sequence[Row], batch_size: BatchSize) -> Once | None:
    """Find the examples whose prompts may be run once, where this costs less than to run each row with its prompt.

    It is decided by the numbers of tokens alone, and by what `verification` has shown for the model.

    Args:
        plan: the plan in which each row is run with its prompt.
        rows: the rows, those of an example side by side.
        batch_size: how many rows share a forward pass.

    Returns:
        These examples, or None if no prompts are to be run once.
    """
    once = _cheaper(plan, rows, batch_size, int(plan.model.cfg.n_ctx))
    if once is None:
        return None
    needed = max(sum(once.widths(batch)) for batch in once.plan.batches)
    up_to = verification.shared_up_to(plan.model, needed)
    return once if needed <= up_to else _cheaper(plan, rows, batch_size, up_to)


def _cheaper(plan: Plan, rows: Sequence[Row], batch_size: BatchSize, up_to: int) -> Once | None:
    """The same, for texts of up to this number of tokens."""
    model, packing = plan.model, verification.packing(plan.model)
    groups: list[list[Row]] = []
    left: list[Row] = []
    for _, of_prompt in groupby(rows, key=lambda row: (row.example, row.before)):
        group = list(of_prompt)
        longest = max(len(row.run) for row in group)
        fits = len(group[0].before) + longest <= up_to and longest * model.cfg.d_vocab <= AUTO_NUMBERS
        if len(group) > 1 and fits:
            groups.append(group)
        else:
            left += group
    if not groups or not packing.pads:
        return None
    once = Once(model, groups, left, batch_size, up_to)
    return once if once.cost(packing.tokens_a_pass) < _cost_of(plan, packing.tokens_a_pass) else None


def whole(model: LensModel, rows: Sequence[Row], batch_size: BatchSize) -> Plan:
    """The plan in which each row is run with its prompt."""
    return Plan(
        model,
        [row.before for row in rows],
        [row.run for row in rows],
        batch_size=batch_size,
        n_more=1,  # the last token of the answer may be predicted without being run
        per_token=model.cfg.d_vocab,
    )


def _cost_of(plan: Plan, tokens_a_pass: int) -> int:
    """How many tokens the batches of a plan run, padding and the fixed cost of each pass included."""

    def longest(rows: Iterable[int], texts: Sequence[Sequence[int]] | None) -> int:
        return max(len(texts[row]) for row in rows) if texts is not None else 0

    return sum(
        tokens_a_pass + len(rows) * (longest(rows, plan.prompts) + longest(rows, plan.answers)) for rows in plan.batches
    )

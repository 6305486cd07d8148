"""Score how probable a model finds continuations, and which greedy answers follow from these scores."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, zip_longest
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.evaluation.answers import Continuation
from tl_neuronshare.evaluation.once import Once, Row, prompts_once, whole
from tl_neuronshare.models import verification
from tl_neuronshare.models.continuing import continuing
from tl_neuronshare.models.hooks import Edit, Hooks
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.running.loop import Loop
from tl_neuronshare.running.plan import AUTO_NUMBERS, Batch, BatchSize
from tl_neuronshare.running.shards import Record

# A function of the language, the example of each row, and maybe prompt_tokens and tokens, that returns hooks
HookMaker = Callable[..., Hooks]
_CHUNK = 1 << 24  # logits that are converted to float32 at a time


@runtime_checkable
class Beside(Protocol):
    """What is measured for the rows of each batch, beside their scores."""

    def measured(self, examples: Sequence[int]) -> Record:
        """Return a number for the example of each row of the batch whose hooks were made last, by name."""
        ...

    def keep(self, language: str, examples: Sequence[int], record: Record) -> None:
        """Take these numbers from a record, which has others too."""
        ...


@dataclass(frozen=True)
class Scores:
    """The scores of a language's continuations.

    Attributes:
        log_probs: the log-probability of each continuation, summed over its tokens, in nats.
        greedy: for each continuation, the first tokens of greedy decoding after its prompt that the run proves.
    """

    log_probs: Float[Tensor, " continuation"]
    greedy: list[list[int]]


class Scorer:
    """Computes log-probabilities of continuations in one language, in batches that are planned once.

    Continuations of an example that differ only in their last token share a row, because the model need not see that
    token. With `likeliest` the model sees it, and the scorer also finds the likeliest token after each token. Where an
    example has several rows, its prompt is run once for all of them if that is cheaper, was shown to be right, and no
    hook could tell the difference.
    """

    def __init__(
        self,
        model: LensModel,
        language: str,
        each: Sequence[Continuation],
        batch_size: BatchSize,
        *,
        likeliest: bool = False,
    ) -> None:
        self.model, self.language, self.continuations, self.likeliest = model, language, each, likeliest
        self._batch_size = batch_size
        self._packing = verification.packing(model)
        # For each row (example, tokens before, tokens that are run), the numbers of the continuations that share it.
        sharing_row: dict[tuple[int, tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for number, continuation in enumerate(each):
            before, scored = continuation.before, continuation.scored
            # The last token is not run if it would carry the text beyond the boundary of long RoPE.
            sees_last = likeliest and not self._packing.crosses(len(before) + len(scored) - 1, 1)
            run = scored if sees_last else scored[:-1]
            sharing_row.setdefault((continuation.example, before, run), []).append(number)
        self._rows = [Row(*row, numbers) for row, numbers in sharing_row.items()]
        self.plan = whole(model, self._rows, batch_size)
        self._once = None if likeliest else prompts_once(self.plan, self._rows, batch_size)

    @property
    def n_rows(self) -> int:
        """How many rows a run has without hooks."""
        return len(self.plan) if self._once is None else len(self._once.plan) + len(self._once.left)

    def run(
        self, fwd_hooks: Hooks | HookMaker | None, loop: Loop, *, stage: str = "", beside: Beside | None = None
    ) -> Scores:
        """Score every continuation.

        Args:
            fwd_hooks: as in `evaluate`.
            loop: the loop that goes through the batches.
            stage: the name of this run in the loop's records.
            beside: what else is measured for each batch.
        """
        log_probs = torch.zeros(len(self.continuations), dtype=torch.float64, device="cpu")
        greedy: list[list[int]] = [[] for _ in self.continuations]
        noise = verification.noise(self.model) if self.likeliest else torch.inf
        # Decoding runs different tokens from scoring, and what a user's hook does to them is not known. So scores
        # under such a hook prove nothing about decoding.
        can_prove = self.likeliest and not models.has_hooks(self.model)

        def score(batch: Batch, rows: Sequence[Row]) -> Record:
            of_batch = [rows[place] for place in batch.rows]
            scored = [(place, number) for place, row in enumerate(of_batch) for number in row.numbers]
            # Where the logit of each scored token is (row, column, token), and which of `scored` it belongs to.
            row, column, token, which = torch.tensor(
                [
                    (place, column, token, which)
                    for which, (place, number) in enumerate(scored)
                    for column, token in enumerate(self.continuations[number].scored)
                ],
                device="cpu",
            ).T
            hooks = self._hooks(fwd_hooks, of_batch, batch)
            proves = can_prove and _are_local(hooks)
            with models.all_firing(self.model, hooks):
                picked = _picked(self.model, batch, (row, column, token), noise=noise if proves else None)
            sums = torch.zeros(len(scored), dtype=torch.float64, device="cpu")
            proved: list[list[int]] = [[] for _ in batch.rows]
            for place, (one, surely) in enumerate(zip(of_batch, picked.surely.tolist(), strict=True)):
                if proves and not self._packing.crosses(len(one.before), len(one.run)):
                    proved[place] = _proved(one.run, surely)
            return {
                "log_probs": sums.index_add_(0, which, picked.log_probs.double()),
                **ragged("greedy", proved),
                **({} if beside is None else beside.measured([row.example for row in of_batch])),
            }

        def score_once(batch: Batch, once: Once) -> Record:
            of_batch = [once.groups[place] for place in batch.rows]
            firsts = [group[0] for group in of_batch]
            hooks = self._hooks(fwd_hooks, firsts, batch)
            measured = {} if beside is None else beside.measured([row.example for row in firsts])
            if _are_local(hooks):
                return {"log_probs": self._scored_once(once, batch, hooks), **measured}
            rows = [row for group in of_batch for row in group]
            found = torch.zeros(len(self.continuations), dtype=torch.float64, device="cpu")
            for part in whole(self.model, rows, self._batch_size):
                found[_numbers(rows[place] for place in part.rows)] = score(part, rows)["log_probs"]
            return {"log_probs": found[_numbers(rows)], **measured}

        def keep(places: list[int], record: Record, rows: Sequence[Row]) -> None:
            of_batch = [rows[place] for place in places]
            log_probs[_numbers(of_batch)] = record["log_probs"]
            for row, known in zip(of_batch, unragged("greedy", record), strict=True):
                greedy[row.numbers[0]] = known
            if beside is not None:
                beside.keep(self.language, [row.example for row in of_batch], record)

        def keep_once(places: list[int], record: Record, once: Once) -> None:
            of_batch = [once.groups[place] for place in places]
            log_probs[_numbers(row for group in of_batch for row in group)] = record["log_probs"]
            if beside is not None:
                beside.keep(self.language, [group[0].example for group in of_batch], record)

        once, plan, rows = self._once, self.plan, self._rows
        can_share = callable(fwd_hooks) or _are_local(fwd_hooks or [])
        if once is not None and can_share and not models.has_hooks(self.model):
            loop(once.plan, partial(score_once, once=once), partial(keep_once, once=once), stage=f"{stage}/once")
            plan, rows, stage = once.plan_of_left, once.left, f"{stage}/left"
        loop(plan, partial(score, rows=rows), partial(keep, rows=rows), stage=stage)
        return Scores(log_probs, greedy)

    def _hooks(self, fwd_hooks: Hooks | HookMaker | None, rows: Sequence[Row], batch: Batch) -> Hooks:
        """The hooks for a batch of these rows."""
        return hooks_for(fwd_hooks, self.language, [row.example for row in rows], batch.tokens[:, : batch.end])

    def _scored_once(
        self, once: Once, batch: Batch, hooks: Sequence[tuple[str, Edit]]
    ) -> Float[Tensor, " continuation"]:
        """Run the prompts of a batch once, and then their rows; return the scores in the order of groups and rows."""
        scores = torch.zeros(len(self.continuations), dtype=torch.float64, device="cpu")

        def add(logits: Tensor, wanted: Sequence[tuple[int, int, int]]) -> None:
            """Add the log-probabilities of tokens: (place of the logits, token, number of the continuation)."""
            place, token, number = torch.tensor(wanted, device="cpu").T
            scores.index_add_(0, number, _log_probs(logits, place, token).cpu().double())

        groups = [once.groups[place] for place in batch.rows]
        with continuing(self.model, batch.until(batch.end)) as run:
            with models.all_firing(self.model, hooks):
                first = run.prompts()
            of_prompts = [(place, number) for place, group in enumerate(groups) for number in _numbers(group)]
            add(first, [(place, self.continuations[number].scored[0], number) for place, number in of_prompts])
            for rows in once.passes(batch.rows):
                after = [place for place, _ in rows]
                following = [(name, edit.following(torch.tensor(after, device="cpu"))) for name, edit in hooks]
                with models.all_firing(self.model, following):
                    later = run.texts(after, [row.run for _, row in rows])
                starts = accumulate((len(row.run) for _, row in rows), initial=0)
                add(
                    later,
                    [
                        (start + place, token, number)
                        for start, (_, row) in zip(starts, rows, strict=False)
                        for number in row.numbers
                        for place, token in enumerate(self.continuations[number].scored[1:])
                    ],
                )
        return scores[_numbers(row for group in groups for row in group)]


def _numbers(rows: Iterable[Row]) -> list[int]:
    """The numbers of the continuations that are scored in these rows."""
    return [number for row in rows for number in row.numbers]


def _are_local(hooks: object) -> TypeGuard[Sequence[tuple[str, Edit]]]:
    """Whether hooks are edits of single tokens, so that it does not matter which tokens share a forward pass."""
    return isinstance(hooks, Sequence) and all(
        isinstance(pair, Sequence) and isinstance(pair[-1], Edit) and pair[-1].is_local for pair in hooks
    )


def ragged(name: str, lists: Sequence[Sequence[int]]) -> Record:
    """Return lists of tokens as two tensors of a record: all tokens, and how many each list has."""
    return {
        name: torch.tensor([token for tokens in lists for token in tokens], dtype=torch.long, device="cpu"),
        f"{name} of each": torch.tensor([len(tokens) for tokens in lists], dtype=torch.long, device="cpu"),
    }


def unragged(name: str, record: Record) -> list[list[int]]:
    """Return the lists that `ragged` made into tensors."""
    return [tokens.tolist() for tokens in torch.split(record[name], record[f"{name} of each"].tolist())]


def _proved(run: Sequence[int], surely: Sequence[int]) -> list[int]:
    """The first tokens of greedy decoding: the run tokens while each is surely the likeliest, and one token more."""
    proved = []
    for token, likeliest in zip_longest(run, surely[: len(run) + 1]):
        if likeliest < 0:
            break
        proved.append(likeliest)
        if likeliest != token:
            break
    return proved


@dataclass(frozen=True)
class _Picked:
    log_probs: Float[Tensor, " wanted"]
    surely: Int[Tensor, "row column"]  # the likeliest token of each column; -1 if rounding might change it


def _picked(
    model: LensModel,
    batch: Batch,
    wanted: tuple[Tensor, Tensor, Tensor],
    *,
    noise: float | None,
) -> _Picked:
    """Log-probabilities of the wanted (row, column, token) triples, and with `noise` each column's likeliest token.

    Columns are counted from the prompt's end. Usually all of them are computed at once. If there would be too many
    logits, the model is run for a few columns at a time, each time on a longer prefix.

    Args:
        model: the model that is run.
        batch: the rows to run.
        wanted: the row, column and token of each triple.
        noise: how far apart two logits must be, relative to the largest, so that rounding cannot change their order.
    """
    row, column, token = wanted
    tokens, end = batch.tokens, batch.end
    n_columns = tokens.shape[1] - end + 1
    step = max(1, AUTO_NUMBERS // (len(tokens) * model.cfg.d_vocab))
    log_probs = torch.zeros(len(token), dtype=torch.float32, device="cpu")
    surely = torch.full((len(tokens), n_columns), -1, device="cpu")
    for start in range(0, n_columns, step):
        stop = min(start + step, n_columns)
        width = end - 1 + stop
        logits = models.last_logits(model, batch.until(width), stop - start)
        here = (column >= start) & (column < stop)
        flat, place = logits.flatten(0, 1), row[here] * (stop - start) + column[here] - start
        log_probs[here] = _log_probs(flat, place, token[here]).cpu()
        if noise is not None:
            parts = torch.split(logits, max(1, _CHUNK // logits[0].numel()))
            surely[:, start:stop] = torch.cat([_surely_likeliest(part, noise) for part in parts]).cpu()
    return _Picked(log_probs, surely)


def _log_probs(
    logits: Float[Tensor, "place vocabulary"], place: Int[Tensor, " wanted"], token: Int[Tensor, " wanted"]
) -> Float[Tensor, " wanted"]:
    """The log-probabilities of tokens, each by the logits of a place."""
    parts = torch.split(logits, max(1, _CHUNK // logits.shape[-1]))
    total = torch.cat([part.float().logsumexp(-1) for part in parts])
    place, token = place.to(logits.device), token.to(logits.device)
    return logits[place, token].float() - total[place]


def _surely_likeliest(logits: Float[Tensor, "*row vocabulary"], noise: float) -> Int[Tensor, "*row"]:
    """The likeliest token; -1 if the second is so near that rounding might change their order."""
    values, tokens = logits.topk(2)
    first, second = values.unbind(-1)
    largest = torch.maximum(first.abs(), logits.amin(-1).abs())
    return tokens[..., 0].where(first - second > noise * largest, -1)


def hooks_for(
    fwd_hooks: Hooks | HookMaker | None, language: str, examples: Sequence[int], tokens: Int[Tensor, "row pos"]
) -> Hooks:
    """Get the hooks for one batch."""
    hooks = fwd_hooks
    if callable(fwd_hooks):
        offered = {"prompt_tokens": tokens.shape[1], "tokens": tokens}
        asked = inspect.signature(fwd_hooks).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in asked.values())
        context = {name: value for name, value in offered.items() if takes_all or name in asked}
        hooks = fwd_hooks(language, torch.tensor(examples, device="cpu"), **context)
    if hooks is None and fwd_hooks is None:
        return []
    if not isinstance(hooks, Sequence) or isinstance(hooks, str):
        raise NeuronShareError(
            f"fwd_hooks is or gives a {type(hooks).__name__}; give a list of pairs (hook name, function), or a "
            "function of (language, examples) that returns one."
        )
    if any(isinstance(pair, Sequence) and pair and _takes_another_end(pair[-1], tokens.shape[1]) for pair in hooks):
        raise NeuronShareError(
            "The hooks edit tokens of the prompt, but do not know where this batch's prompts end, because answers "
            "follow them. Give a function of (language, examples, prompt_tokens), and pass prompt_tokens on."
        )
    return hooks


def _takes_another_end(function: object, prompt_tokens: int) -> bool:
    """Whether a hook edits tokens of the prompt, but takes it to end elsewhere."""
    return isinstance(function, Edit) and not function.ends_at(prompt_tokens)

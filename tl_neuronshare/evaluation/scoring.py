"""How probable a model finds continuations, and where its greedy answer follows from that."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.evaluation.answers import Continuation
from tl_neuronshare.models import verification
from tl_neuronshare.models.hooks import Hooks
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.running.plan import AUTO_NUMBERS, Batch, BatchSize, Loop, Plan

# (language, the example of each row, and by name what the function asks for) -> hooks for this batch
HookMaker = Callable[..., Hooks]
_CHUNK = 1 << 24  # logits in float32 at a time


@dataclass(frozen=True)
class Scores:
    """What a run says of a language's continuations."""

    log_probs: Float[Tensor, " continuation"]  # summed over each one's tokens, in nats
    greedy: list[list[int]]  # the tokens that greedy decoding begins with, as far as the run shows them


class Scorer:
    """Log-probabilities of continuations in one language, in batches that are planned once.

    Continuations of an example that differ in their last token only share a row: the model need not see that token.
    Where `likeliest` is asked for it does, and what is the likeliest after each token is found too.
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
        self._packing = verification.packing(model)
        # For each row, an example with what is run of it, the numbers of the continuations that share it.
        sharing_row: dict[tuple[int, tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for number, one in enumerate(each):
            # Its last token would be one too many where the text gets beyond long RoPE's boundary with it.
            sees_last = likeliest and not self._packing.crosses(len(one.before) + len(one.scored) - 1, 1)
            run = one.scored if sees_last else one.scored[:-1]
            sharing_row.setdefault((one.example, one.before, run), []).append(number)
        self._examples = [example for example, _, _ in sharing_row]
        self._numbers = list(sharing_row.values())
        self.plan = Plan(
            model,
            [before for _, before, _ in sharing_row],
            [run for _, _, run in sharing_row],
            batch_size=batch_size,
            n_more=1,  # the last token of the answer is predicted, and not run
            per_token=model.cfg.d_vocab,
        )

    def run(self, fwd_hooks: Hooks | HookMaker | None, loop: Loop) -> Scores:
        """Score every continuation."""
        log_probs = torch.zeros(len(self.continuations), dtype=torch.float64, device="cpu")
        greedy: list[list[int]] = [[] for _ in self.continuations]
        noise = verification.noise(self.model) if self.likeliest else torch.inf
        # Hooks of which it is not known what they do to other tokens than they see now prove nothing.
        can_prove = self.likeliest and not models.has_hooks(self.model)

        def score(batch: Batch) -> None:
            # Where each scored token's logit is: row, column, token; and whose it is.
            row, column, token, number = torch.tensor(
                [
                    (place, column, token, number)
                    for place, row in enumerate(batch.rows)
                    for number in self._numbers[row]
                    for column, token in enumerate(self.continuations[number].scored)
                ],
                device="cpu",
            ).T
            examples = [self._examples[row] for row in batch.rows]
            hooks = hooks_for(fwd_hooks, self.language, examples, batch.tokens[:, : batch.end])
            proves = can_prove and all(getattr(function, "is_local", False) for _, function in hooks)
            with models.all_firing(self.model, hooks):
                picked = _picked(self.model, batch, (row, column, token), noise=noise if proves else None)
            log_probs.index_add_(0, number, picked.log_probs.double())
            for place, surely in zip(batch.rows, picked.surely.tolist(), strict=True) if proves else ():
                run = self.plan.answers[place] if self.plan.answers is not None else ()
                if not self._packing.crosses(len(self.plan.prompts[place]), len(run)):
                    greedy[self._numbers[place][0]] = _as_far_as(run, surely)

        loop(self.plan, score)
        return Scores(log_probs, greedy)


def _as_far_as(given: Sequence[int], surely: Sequence[int]) -> list[int]:
    """What greedy decoding begins with: the given tokens, as long as each is surely the likeliest, and one more."""
    known = []
    for token, likeliest in zip_longest(given, surely[: len(given) + 1]):
        if likeliest < 0:
            break
        known.append(likeliest)
        if likeliest != token:
            break
    return known


@dataclass(frozen=True)
class _Picked:
    log_probs: Float[Tensor, " wanted"]
    surely: Int[Tensor, "row column"]  # the likeliest token of each column; -1 where rounding might make it another


def _picked(
    model: LensModel,
    batch: Batch,
    wanted: tuple[Tensor, Tensor, Tensor],
    *,
    noise: float | None,
) -> _Picked:
    """Log-probabilities of the wanted (row, column after the prompt's end, token), a few columns at a time.

    Mostly one piece does; where it would be too many logits, the model is run again on a longer prefix for each. With
    `noise`, how far logits must be apart relative to the largest, also the likeliest token of each column.
    """
    row, column, token = wanted
    tokens, mask, end = batch.tokens, batch.mask, batch.end
    n_columns = tokens.shape[1] - end + 1
    step = max(1, AUTO_NUMBERS // (len(tokens) * model.cfg.d_vocab))
    log_probs = torch.zeros(len(token), dtype=torch.float32, device="cpu")
    surely = torch.full((len(tokens), n_columns), -1, device="cpu")
    for start in range(0, n_columns, step):
        stop = min(start + step, n_columns)
        width = end - 1 + stop
        logits = models.last_logits(model, tokens[:, :width], None if mask is None else mask[:, :width], stop - start)
        here = (column >= start) & (column < stop)
        rows, columns, chosen = (part[here].to(logits.device) for part in (row, column - start, token))
        parts = torch.split(logits, max(1, _CHUNK // logits[0].numel()))
        total = torch.cat([part.float().logsumexp(-1) for part in parts])
        log_probs[here] = (logits[rows, columns, chosen].float() - total[rows, columns]).cpu()
        if noise is not None:
            surely[:, start:stop] = torch.cat([_surely_likeliest(part, noise) for part in parts]).cpu()
    return _Picked(log_probs, surely)


def _surely_likeliest(logits: Float[Tensor, "*row vocabulary"], noise: float) -> Int[Tensor, "*row"]:
    """The likeliest token, or -1 where the next one is so near that rounding might have chosen."""
    values, tokens = logits.topk(2)
    first, second = values.unbind(-1)
    largest = torch.maximum(first.abs(), logits.amin(-1).abs())
    return tokens[..., 0].where(first - second > noise * largest, -1)


def hooks_for(
    fwd_hooks: Hooks | HookMaker | None, language: str, examples: Sequence[int], tokens: Int[Tensor, "row pos"]
) -> Hooks:
    """The hooks for one batch."""
    hooks = fwd_hooks
    if callable(fwd_hooks):
        offered = {"prompt_tokens": tokens.shape[1], "tokens": tokens}
        asked = inspect.signature(fwd_hooks).parameters
        everything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in asked.values())
        context = {name: value for name, value in offered.items() if everything or name in asked}
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
            "The hooks edit tokens of the prompt, and do not know where this batch's prompts end: what is run goes on "
            "with the answer. Give a function of (language, examples, prompt_tokens), and pass prompt_tokens on."
        )
    return hooks


def _takes_another_end(function: object, prompt_tokens: int) -> bool:
    """Whether a hook edits tokens of the prompt and takes that to end elsewhere. Those of `ablation_hooks` can tell."""
    ends_at = getattr(function, "ends_at", None)
    return ends_at is not None and not ends_at(prompt_tokens)

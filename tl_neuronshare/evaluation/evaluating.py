"""Measure what a model answers, and how probable it finds the right answer, with or without hooks.

All rows of a batch are in one language. Logits are computed only at positions that predict a token of an answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from tl_neuronshare import models
from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import Options, count, flag, one_of, option, or_none
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.evaluation.answers import Continuation, continuations
from tl_neuronshare.evaluation.generation import Generation
from tl_neuronshare.evaluation.grading import is_right
from tl_neuronshare.evaluation.numerals import last_number
from tl_neuronshare.evaluation.scoring import Beside, HookMaker, Scorer
from tl_neuronshare.models import Hooks, LensModel, verification
from tl_neuronshare.prompts import ParallelPrompts, require_prompts
from tl_neuronshare.running import provenance
from tl_neuronshare.running.loop import Keeping, Loop, running
from tl_neuronshare.running.plan import BatchSize, Running

ScoringName = Literal["choice", "exact", "number"]


def as_stop(name: str, value: Any) -> tuple[str, ...]:
    """Check that a value is a list of texts at which decoding is cut off."""
    texts = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else ("",)  # read it once
    if not all(isinstance(text, str) and text for text in texts):
        raise NeuronShareError(f"{name}={value!r}; give a list of texts that are not empty.")
    return texts


@dataclass(frozen=True)
class Scoring(Options):
    """How answers are scored."""

    scoring: ScoringName = option(
        "choice",
        partial(one_of, known=get_args(ScoringName)),
        help="choice: the likeliest of the choices; exact: whole answers, decoded greedily; number: the last number in "
        "the decoded answer",
        choices=get_args(ScoringName),
    )
    length_normalised: bool = option(False, flag, help="compare choices by the mean over their tokens")
    max_new_tokens: int | None = option(
        None,
        or_none(count),
        help="how many to decode (default: a few more than the longest answer has)",
        type=int,
        metavar="N",
    )
    stop: Sequence[str] = option(
        ("\n",), as_stop, help="texts at which decoding is cut off (default: a new line)", nargs="*"
    )

    @property
    def decodes(self) -> bool:
        """Whether answers are decoded greedily."""
        return self.scoring != "choice"

    def check_together(self) -> None:
        """Refuse options that belong to a different kind of scoring."""
        if self.length_normalised and self.decodes:
            raise NeuronShareError(
                f"length_normalised={self.length_normalised!r}; use True only with scoring='choice', or use False."
            )
        if self.max_new_tokens is not None and not self.decodes:
            raise NeuronShareError(
                f"max_new_tokens={self.max_new_tokens!r} has no effect with scoring='choice'; leave it out."
            )

    def check(self, prompts: ParallelPrompts) -> None:
        """Refuse prompts that cannot be scored in this way."""
        if prompts.answers is None:
            raise NeuronShareError(
                f"{prompts!r} has no answers; give ParallelPrompts(..., answers={{language: [...]}})."
            )
        if self.scoring == "choice" and prompts.choices is None:
            raise NeuronShareError(
                f'{prompts!r} has no choices; give ParallelPrompts(..., choices=...), or use scoring="exact" or '
                '"number".'
            )
        for language, answers in prompts.answers.items() if self.decodes else ():
            for example, answer in zip(prompts.examples, answers, strict=True):
                where = f"Language {language!r}, example {example!r}: the answer {answer!r}"
                if self.scoring == "number" and last_number(answer) is None:
                    raise NeuronShareError(f'{where} has no number; use scoring="exact".')
                if any(text in answer for text in self.stop):
                    raise NeuronShareError(
                        f"{where} contains a text of stop={list(self.stop)!r}, so the model could never give it; "
                        "choose other texts."
                    )


@explains
def evaluate(
    model: LensModel,
    prompts: ParallelPrompts,
    *,
    scoring: ScoringName = "choice",
    fwd_hooks: Hooks | HookMaker | None = None,
    length_normalised: bool = False,
    max_new_tokens: int | None = None,
    stop: Sequence[str] = ("\n",),
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    out: str | Path | None = None,
    shard: tuple[int, int] | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure whether the model answers correctly, and how probable it finds the right answer.

    The model is left as it was. Hooks of your own that are active stay active.

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompts: prompts with answers. The scoring `choice` needs choices too.
        scoring: how an answer is judged.
            `choice`: the prediction is the choice with the highest log-probability, summed over its tokens.
            `exact`: the prediction is decoded greedily. It is correct if it is the answer. Differences of case, of
                character width and of invisible characters do not count. Spaces, quotes and brackets around the answer
                and punctuation at its end do not count either.
            `number`: the prediction is decoded greedily. It is correct if its last number equals the last number of
                the answer; `numerals.last_number` reads both.
        fwd_hooks: a list of pairs (hook name, function), or a function of (language, examples) that returns such a list
            for each batch. `examples` is a tensor with the index of each row's example, so `masks[examples]` has one
            mask for each row. All prompts of a batch are padded so that they end at the same token. If your function
            has a parameter `prompt_tokens`, it also gets the length of the padded prompts. If it has a parameter
            `tokens`, it gets their tokens; while answers are scored, these end where an answer merges with its prompt.
            A function with `**options` gets both. With greedy decoding, your function is called again for the examples
            that must be decoded, because scoring alone does not prove their answer. Where a prompt is run once for all
            its choices, an example has one row; if your function then gives hooks that are not from `ablation_hooks`,
            which may look at whole texts, it is called again for these. A hook on the unembedding sees only the
            positions that are scored.
        length_normalised: with `choice`, whether to compare the mean log-probability over a choice's tokens instead of
            the sum.
        max_new_tokens: how many tokens to decode at most. By default this is one more than the longest answer of the
            language has; for `number` it is nine more, because a number can be written in longer ways.
        stop: texts at which a decoded answer is cut off. It also ends at the end tokens of the tokenizer and the model.
        batch_size: how many rows share a forward pass. Choices that differ only in their last token share a row, and
            the prompt of others is run once for all where that costs less (see `verify`, check `continuations`).
        prepend_bos: as in `categorise`.
        out: as in `categorise`; not together with hooks, which a folder cannot identify.
        shard: as in `categorise`. The parts are languages.
        progress: whether to show a progress bar, if the run takes more than two seconds.

    Returns:
        A table with a row for each example and language. Columns: example; language; correct; log_prob (of the right
        answer, summed over its tokens, in nats); prediction; merged (whether tokens of prompt and answer merge).

    Raises:
        NeuronShareError: answers or choices are missing; two choices have the same tokens; the model fails a check of
            `verify`; an answer has no tokens, is longer than the context, contains a text of `stop`, or merges with the
            first token of a prompt without BOS; an option or hook is unknown; a hook does not fire; or a
            log-probability is NaN.

    Examples:
        >>> table = evaluate(model, ns.demo.prompts()[9:10].select(["en", "zh"]))
        >>> print(table[["language", "correct", "log_prob", "prediction"]].round(2).to_string(index=False))
        language  correct  log_prob prediction
              en     True     -0.09         22
              zh     True     -0.09         22
    """
    task = Evaluation(
        model, prompts, Scoring(scoring, length_normalised, max_new_tokens, stop), Running(batch_size, prepend_bos)
    )
    keeping = Keeping(out, shard)
    if keeping.folder is not None and fwd_hooks is not None:
        raise NeuronShareError(
            f"out={str(out)!r}: a later call could not know whether fwd_hooks are the same; leave one of them out."
        )
    with running(model, "evaluate", n_rows=task.n_rows, progress=progress, keeping=keeping, about=task.about) as loop:
        table = task.run(fwd_hooks, loop)
    assert table is not None  # the loop has refused an unfinished run
    return table


class Evaluation:
    """Prompts that are tokenised and batched once, and can then be evaluated under many hooks. See `evaluate`.

    Attributes:
        scorers: for each language, the scorer of its answers or choices.
        prompt_tokens: for each language, the tokens of each prompt, if it is tokenised alone.
    """

    def __init__(self, model: LensModel, prompts: ParallelPrompts, scoring: Scoring, how: Running) -> None:
        require_prompts(prompts)
        self.model, self.prompts, self.scoring, self.how = model, prompts, scoring, how.on(model)
        models.require_architecture(
            model, "decoder", "encoder-decoder", why="It gives no answer to a prompt. Use a decoder."
        )
        scoring.check(prompts)
        verification.require(model, "logits", *(["decoding"] if scoring.decodes else []))
        answers: Mapping[str, Sequence[str]] = prompts.answers or {}
        # The texts that are scored for each example: its choices, or only its answer.
        self.texts: dict[str, list[tuple[str, ...]]] = {
            language: [(answer,) for answer in answers[language]]
            if scoring.decodes or prompts.choices is None
            else list(prompts.choices[language])
            for language in prompts.languages
        }
        self.gold = {
            language: [texts.index(answers[language][example]) for example, texts in enumerate(self.texts[language])]
            for language in prompts.languages
        }
        self.scorers: dict[str, Scorer] = {}
        self.merged: dict[str, list[bool]] = {}
        self.prompt_tokens: dict[str, list[list[int]]] = {}
        self.generations: dict[str, Generation] = {}
        for language in prompts.languages:
            self._prepare(language)

    def _prepare(self, language: str) -> None:
        """Tokenise one language, and plan its batches."""
        model, prompts, how = self.model, self.prompts, self.how
        after = continuations(model, prompts, language, self.texts[language], prepend_bos=how.prepend_bos)
        decodes = self.scoring.decodes
        self.scorers[language] = Scorer(model, language, after.each, how.batch_size, likeliest=decodes)
        self.prompt_tokens[language], self.merged[language] = after.prompts, after.merged
        if not decodes:
            _refuse_equal_choices(prompts, language, after.each)
            return
        longest = max(len(continuation.scored) for continuation in after.each)
        enough = longest + (9 if self.scoring.scoring == "number" else 1)
        self.generations[language] = Generation(
            model,
            language,
            after.prompts,
            prompts.examples,
            n_new=self.scoring.max_new_tokens or enough,
            stop=self.scoring.stop,
            batch_size=how.batch_size,
        )

    @property
    def n_rows(self) -> int:
        """How many rows a run scores. How many must also be decoded is not known before."""
        return sum(scorer.n_rows for scorer in self.scorers.values())

    @property
    def record(self) -> dict[str, Any]:
        """The options, the share of merged prompts, and the accuracy by chance, for the metadata of a result."""
        merged = [is_merged for of_language in self.merged.values() for is_merged in of_language]
        return {
            **self.scoring.record,
            **self.how.record,
            "merged": sum(merged) / len(merged),
            "chance": None if self.scoring.decodes else self._chance,
        }

    @property
    def _chance(self) -> float:
        """The accuracy of choosing at random."""
        shares = [1 / len(choices) for of_language in self.texts.values() for choices in of_language]
        return sum(shares) / len(shares)

    def about(self) -> dict[str, Any]:
        """Return what the table depends on."""
        ends = {"end_tokens": sorted(models.end_tokens(self.model))} if self.scoring.decodes else {}
        return {"call": "evaluate", **provenance.of_prompts(self.model, self.prompts), **self.record, **ends}

    def run(
        self,
        fwd_hooks: Hooks | HookMaker | None,
        loop: Loop,
        *,
        stage: str = "",
        beside: Beside | None = None,
    ) -> pd.DataFrame | None:
        """Make the table of `evaluate`; None if other processes have not done their part yet.

        Args:
            fwd_hooks: as in `evaluate`.
            loop: the loop that goes through the batches.
            stage: the name of this run in the loop's records.
            beside: what else is measured for each batch.
        """
        parts = [
            loop.part(
                partial(self._rows, language, fwd_hooks, loop, stage=f"{stage}/{language}", beside=beside), whole=True
            )
            for language in self.scorers
        ]
        if any(part is None for part in parts):
            return None
        rows = [row for part in parts if part is not None for row in part]
        table = pd.DataFrame(rows)
        table.attrs["verified"] = verification.is_verified(self.model)
        return table

    def _rows(
        self, language: str, fwd_hooks: Hooks | HookMaker | None, loop: Loop, *, stage: str, beside: Beside | None
    ) -> list[dict[str, Any]]:
        """Make one language's rows of the table."""
        scorer, merged = self.scorers[language], self.merged[language]
        scores = scorer.run(fwd_hooks, loop, stage=f"{stage}/scores", beside=beside)
        generated: list[str] | None = None
        if self.generations:
            # An answer that merges with its prompt is not a continuation of the prompt alone, so it proves nothing.
            begun = [[] if is_merged else known for known, is_merged in zip(scores.greedy, merged, strict=True)]
            generated = self.generations[language].run(begun, fwd_hooks, loop, stage=f"{stage}/answers")
        each = iter(zip(scores.log_probs.tolist(), scorer.continuations, strict=True))
        rows = []
        for index, (texts, gold) in enumerate(zip(self.texts[language], self.gold[language], strict=True)):
            log_probs, of_texts = zip(*islice(each, len(texts)), strict=True)
            example = self.prompts.examples[index]
            if any(map(math.isnan, log_probs)):
                raise NeuronShareError(
                    f"Language {language!r}, example {example!r}: the log-probability is NaN; load the model in "
                    "float32 or bfloat16, and check your hooks."
                )
            if generated is None:
                prediction = texts[self._best(log_probs, of_texts)]
                correct = prediction == texts[gold]
            else:
                prediction = generated[index]
                correct = is_right(prediction, texts[gold], by_number=self.scoring.scoring == "number")
            rows.append(
                {
                    "example": example,
                    "language": language,
                    "correct": correct,
                    "log_prob": log_probs[gold],
                    "prediction": prediction,
                    "merged": merged[index],
                }
            )
        return rows

    def _best(self, log_probs: Sequence[float], continuations: Sequence[Continuation]) -> int:
        """The index of the likeliest choice; the first one if several are equal."""
        if self.scoring.length_normalised:
            pairs = zip(log_probs, continuations, strict=True)
            log_probs = [log_prob / len(continuation.scored) for log_prob, continuation in pairs]
        return max(range(len(log_probs)), key=log_probs.__getitem__)


def _refuse_equal_choices(prompts: ParallelPrompts, language: str, each: Sequence[Continuation]) -> None:
    """Refuse choices with the same tokens: they cannot be told apart, so the first would always be taken."""
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    scored = iter(each)
    for example, texts in enumerate((prompts.choices or {})[language]):
        for text in texts:
            other = seen.setdefault((example, next(scored).scored), text)
            if other != text:
                raise NeuronShareError(
                    f"Language {language!r}, example {prompts.examples[example]!r}: the choices {other!r} and {text!r} "
                    "are the same tokens to this model's tokenizer; leave one out, or write them differently."
                )

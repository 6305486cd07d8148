"""What a model answers, and how probable it finds the right answer; under whatever hooks.

One language a batch. Of the vocabulary only what is scored is made: logits at the positions before an answer's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal, get_args

import pandas as pd
import torch

from tl_neuronshare import models
from tl_neuronshare.checks import Options, count, flag, one_of, option, or_none, texts_by_language
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.evaluation.answers import Continuation, continuations
from tl_neuronshare.evaluation.generation import Generation
from tl_neuronshare.evaluation.grading import is_right
from tl_neuronshare.evaluation.numerals import last_number
from tl_neuronshare.evaluation.scoring import HookMaker, Scorer
from tl_neuronshare.models import Hooks, LensModel, verification
from tl_neuronshare.prompts import ParallelPrompts, require_prompts
from tl_neuronshare.running.plan import BatchSize, Loop, Running, running

ScoringName = Literal["choice", "exact", "number"]


def _as_stop(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(text, str) and text for text in value):
        raise NeuronShareError(f"{name}={value!r}; give a list of texts that are not empty.")
    return tuple(value)


@dataclass(frozen=True)
class Scoring(Options):
    """How answers are scored."""

    scoring: ScoringName = option(
        "choice",
        partial(one_of, known=get_args(ScoringName)),
        help="choice: the likeliest of the choices; exact: whole answers, decoded greedily; number: the last number of "
        "what is decoded",
        choices=get_args(ScoringName),
    )
    length_normalised: bool = option(False, flag, help="choices by the mean over their tokens")
    max_new_tokens: int | None = option(
        None, or_none(count), help="to decode (default: the longest answer and a little)", type=int, metavar="N"
    )
    stop: Sequence[str] = option(
        ("\n",), _as_stop, help="texts at which decoding is cut off (default: a new line)", nargs="*"
    )

    @property
    def decodes(self) -> bool:
        """Whether answers are decoded greedily."""
        return self.scoring != "choice"

    def check_together(self) -> None:
        """Refuse options of another kind of scoring."""
        if self.length_normalised and self.decodes:
            raise NeuronShareError(
                f"length_normalised={self.length_normalised!r}; use True with scoring='choice' only, or False."
            )
        if self.max_new_tokens is not None and not self.decodes:
            raise NeuronShareError(
                f"max_new_tokens={self.max_new_tokens!r}; give a number of tokens, and not for scoring='choice'."
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
                        f"{where} contains a text of stop={list(self.stop)!r}, and so could never be given; choose "
                        "other texts."
                    )


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
    progress: bool = True,
) -> pd.DataFrame:
    """Whether the model answers rightly, and the log-probability of the right answer, for each example and language.

    The model is left as found, and hooks of the user's that are active stay so.

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompts: with answers; for `choice` with choices too.
        scoring: `choice`: the choice with the highest log-probability, summed over its tokens, is the prediction.
            `exact`: greedy decoding, right if it is the answer, whatever its case, its width, characters that cannot be
                seen, and the space, quotes and end of a sentence around it.
            `number`: greedy decoding, right if its last number is the answer's, as `numerals.last_number` reads both.
        fwd_hooks: a list of pairs (hook name, function), or a function of (language, examples) that returns one for
            each batch: `examples` holds the index of each row's example, so that `masks[examples]` is one mask a row.
            The rows are padded so that their prompts end at the same token. If the function has parameters of these
            names (or `**options`), it is also given `prompt_tokens`, the length of the padded prompts, and `tokens`,
            the prompts (while scoring: up to where an answer merges with them). With greedy decoding it is called
            again for the examples that are decoded: those whose answer scoring has not proved. The unembedding sees
            only the positions that are scored.
        length_normalised: choose by the mean over a choice's tokens rather than their sum.
        max_new_tokens: of greedy decoding; by default as many as the longest answer of the language has, and one for
            the end; for `number` eight more, since there are longer ways to write one.
        stop: where greedy decoding is cut off, besides the end tokens of the tokenizer and the model.
        batch_size: rows in one forward pass; choices that differ only in their last token share a row.
        prepend_bos: as in `categorise`.
        progress: whether to show a progress bar where it takes more than two seconds.

    Returns:
        A table with a row for each example and language: example, language, correct, log_prob (of the right answer,
        in nats, summed over its tokens), prediction, merged (whether tokens of prompt and answer merge).

    Raises:
        NeuronShareError: no answers or choices; choices that are the same tokens; a check of `verify` that the model
            fails; an answer that tokenises to nothing, is longer than the context, holds
            a text of `stop`, or merges with the whole prompt where that begins with no BOS; an unknown option or hook;
            a hook that does not fire; log-probabilities that are NaN.

    Example:
        >>> table = evaluate(model, ns.demo.prompts()[9:10].select(["en", "zh"]))
        >>> print(table[["language", "correct", "log_prob", "prediction"]].round(2).to_string(index=False))
        language  correct  log_prob prediction
              en     True     -0.09         22
              zh     True     -0.09         22
    """
    task = Evaluation(
        model, prompts, Scoring(scoring, length_normalised, max_new_tokens, stop), Running(batch_size, prepend_bos)
    )
    with running(model, "evaluate", n_rows=task.n_rows, progress=progress) as loop:
        return task.run(fwd_hooks, loop)


def perplexity(
    model: LensModel,
    texts: Mapping[str, Sequence[str]],
    *,
    fwd_hooks: Hooks | HookMaker | None = None,
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The perplexity of texts in each language: exp of the mean negative log-probability of all tokens but the first.

    Args:
        model: a HookedTransformer or TransformerBridge.
        texts: for each language its texts, which need not be parallel.
        fwd_hooks: as in `evaluate`; examples are counted from 0 in each language. The first token counts as the prompt.
        batch_size: as in `evaluate`.
        prepend_bos: as in `categorise`. With a BOS the first token of a text counts too.
        progress: whether to show a progress bar where it takes more than two seconds.

    Returns:
        A table with a row for each language: language, perplexity, log_prob (nats a token), tokens, texts.

    Raises:
        NeuronShareError: no texts, one of fewer than two tokens or more than the context, an unknown hook.

    Example:
        >>> texts = {"en": ["Country code of Peru → PE"], "de": ["Ländercode von Peru → PE"]}
        >>> perplexity(model, texts)[["language", "perplexity", "tokens"]].round(2)
          language  perplexity  tokens
        0       en        3.46       5
        1       de        4.33       4
    """
    how = Running(batch_size, prepend_bos).on(model)
    verification.require(model, "logits")
    texts_by_language("texts", texts)
    with running(model, "perplexity", n_rows=sum(map(len, texts.values())), progress=progress) as loop:
        table = pd.DataFrame(
            _perplexity(model, language, of_language, fwd_hooks=fwd_hooks, how=how, loop=loop)
            for language, of_language in texts.items()
        )
    table.attrs["verified"] = verification.is_verified(model)
    return table


def _perplexity(
    model: LensModel,
    language: str,
    texts: Sequence[str],
    *,
    fwd_hooks: Hooks | HookMaker | None,
    how: Running,
    loop: Loop,
) -> dict[str, Any]:
    """One language's row of the table."""
    rows = models.tokenised(model, texts, language, range(len(texts)), prepend_bos=how.prepend_bos)
    for number, tokens in enumerate(rows):
        if len(tokens) < 2:
            raise NeuronShareError(f"Language {language!r}, text {number}: one token, so nothing to predict.")
    each = [Continuation(number, tuple(tokens[:1]), tuple(tokens[1:])) for number, tokens in enumerate(rows)]
    log_probs = Scorer(model, language, each, how.batch_size).run(fwd_hooks, loop).log_probs
    if log_probs.isnan().any():
        raise NeuronShareError(f"Language {language!r}: the log-probability is NaN; check your hooks and the dtype.")
    n_tokens = sum(map(len, rows)) - len(rows)
    mean = log_probs.sum().item() / n_tokens
    return {
        "language": language,
        "perplexity": torch.tensor(-mean, dtype=torch.float64, device="cpu").exp().item(),
        "log_prob": mean,
        "tokens": n_tokens,
        "texts": len(rows),
    }


class Evaluation:
    """Prompts tokenised and batched once, to be evaluated under as many hooks as one likes. See `evaluate`.

    Attributes:
        scorers: for each language what scores its answers, or its choices.
        prompt_tokens: for each language the tokens of each prompt, when it is tokenised alone.
    """

    def __init__(self, model: LensModel, prompts: ParallelPrompts, scoring: Scoring, how: Running) -> None:
        require_prompts(prompts)
        self.model, self.prompts, self.scoring, self.how = model, prompts, scoring, how.on(model)
        scoring.check(prompts)
        verification.require(model, "logits", *(["decoding"] if scoring.decodes else []))
        answers: Mapping[str, Sequence[str]] = prompts.answers or {}
        # What is scored for each example: its choices, or its answer alone.
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
        """Tokenise and plan one language."""
        model, prompts, how = self.model, self.prompts, self.how
        after = continuations(model, prompts, language, self.texts[language], prepend_bos=how.prepend_bos)
        decodes = self.scoring.decodes
        self.scorers[language] = Scorer(model, language, after.each, how.batch_size, likeliest=decodes)
        self.prompt_tokens[language], self.merged[language] = after.prompts, after.merged
        if not decodes:
            _refuse_equal_choices(prompts, language, after.each)
            return
        longest = max(len(one.scored) for one in after.each)
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
        """How many rows a run has, but for what must be decoded, which is not known before."""
        return sum(len(scorer.plan) for scorer in self.scorers.values())

    @property
    def record(self) -> dict[str, Any]:
        """How it was made, for a result's metadata."""
        merged = [is_merged for of_language in self.merged.values() for is_merged in of_language]
        return {**self.scoring.record, **self.how.record, "merged": sum(merged) / len(merged)}

    def run(self, fwd_hooks: Hooks | HookMaker | None, loop: Loop) -> pd.DataFrame:
        """The table of `evaluate`."""
        rows: list[dict[str, Any]] = []
        for language in self.scorers:
            rows += self._rows(language, fwd_hooks, loop)
        table = pd.DataFrame(rows)
        table.attrs["verified"] = verification.is_verified(self.model)
        return table

    def _rows(self, language: str, fwd_hooks: Hooks | HookMaker | None, loop: Loop) -> list[dict[str, Any]]:
        """One language's rows of the table."""
        scorer, merged = self.scorers[language], self.merged[language]
        scores = scorer.run(fwd_hooks, loop)
        generated: list[str] | None = None
        if self.generations:
            # What merges with its prompt is not the prompt's continuation.
            begun = [[] if is_merged else known for known, is_merged in zip(scores.greedy, merged, strict=True)]
            generated = self.generations[language].run(begun, fwd_hooks)
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
        """Which choice is the likeliest; of equal ones the first."""
        if self.scoring.length_normalised:
            pairs = zip(log_probs, continuations, strict=True)
            log_probs = [log_prob / len(continuation.scored) for log_prob, continuation in pairs]
        return max(range(len(log_probs)), key=log_probs.__getitem__)


def _refuse_equal_choices(prompts: ParallelPrompts, language: str, each: Sequence[Continuation]) -> None:
    """Choices that are the same tokens cannot be told apart, so that the first of them would always be taken."""
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    scored = iter(each)
    for example, texts in enumerate((prompts.choices or {})[language]):
        for text in texts:
            other = seen.setdefault((example, next(scored).scored), text)
            if other != text:
                raise NeuronShareError(
                    f"Language {language!r}, example {prompts.examples[example]!r}: the choices {other!r} and {text!r} "
                    "are the same tokens to this model's tokenizer; leave one out, or write them otherwise."
                )

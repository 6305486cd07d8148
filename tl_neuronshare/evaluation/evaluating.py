"""What a model answers, and how probable it finds the right answer; under whatever hooks.

One language a batch. Of the vocabulary only what is scored is made: logits at the positions before an answer's tokens.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from numbers import Integral
from typing import Any, Literal, get_args

import pandas as pd
import torch
from tqdm.auto import tqdm

from tl_neuronshare import models
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.evaluation.answers import Continuation, continuations
from tl_neuronshare.evaluation.numerals import last_number
from tl_neuronshare.evaluation.scoring import HookMaker, Scorer, hooks_for
from tl_neuronshare.models import decoding, verification
from tl_neuronshare.models.hooks import Hooks
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.models.tokens import check_length, left_padded, tokenised
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.running.plan import BatchSize, check_options, check_run_options, plan_batches

Scoring = Literal["choice", "exact", "number"]
_SENTENCE_ENDS = ".,;:!?…。，、；：！？।؟،"


def evaluate(
    model: LensModel,
    prompts: ParallelPrompts,
    *,
    scoring: Scoring = "choice",
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
        model,
        prompts,
        scoring=scoring,
        length_normalised=length_normalised,
        max_new_tokens=max_new_tokens,
        stop=stop,
        batch_size=batch_size,
        prepend_bos=prepend_bos,
    )
    with tqdm(total=task.n_batches, desc="evaluate", disable=not progress, delay=2) as bar:
        return task.run(fwd_hooks, after_batch=bar.update)


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
    check_run_options(batch_size, prepend_bos)
    models.check_model(model)
    verification.require(model, "logits")
    if not isinstance(texts, Mapping) or not texts or any(isinstance(t, str) or not len(t) for t in texts.values()):
        raise NeuronShareError("texts is no mapping from each language to its list of texts; give at least one text.")
    rows = []
    for language, of_one in tqdm(texts.items(), desc="perplexity", disable=not progress, delay=2):
        all_tokens = tokenised(model, of_one, language, range(len(of_one)), prepend_bos=prepend_bos)
        for number, tokens in enumerate(all_tokens):
            if len(tokens) < 2:
                raise NeuronShareError(f"Language {language!r}, text {number}: one token, so nothing to predict.")
        each = [Continuation(number, tuple(tokens[:1]), tuple(tokens[1:])) for number, tokens in enumerate(all_tokens)]
        with models.left_as_found(model):
            scores = Scorer(model, language, each, batch_size).run(fwd_hooks).log_probs
        if scores.isnan().any():
            raise NeuronShareError(
                f"Language {language!r}: the log-probability is NaN; check your hooks and the dtype."
            )
        n_tokens = sum(map(len, all_tokens)) - len(all_tokens)
        mean = scores.sum().item() / n_tokens
        rows.append(
            {
                "language": language,
                "perplexity": torch.tensor(-mean, dtype=torch.float64, device="cpu").exp().item(),
                "log_prob": mean,
                "tokens": n_tokens,
                "texts": len(all_tokens),
            }
        )
    table = pd.DataFrame(rows)
    table.attrs["verified"] = verification.is_verified(model)
    return table


class Evaluation:
    """Prompts tokenised and batched once, to be evaluated under as many hooks as one likes. See `evaluate`."""

    def __init__(
        self,
        model: LensModel,
        prompts: ParallelPrompts,
        *,
        scoring: Scoring = "choice",
        length_normalised: bool = False,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = ("\n",),
        batch_size: BatchSize = "auto",
        prepend_bos: bool | None = None,
    ) -> None:
        check_options(prompts, batch_size, prepend_bos)
        models.check_model(model)
        _check_scoring(prompts, scoring, length_normalised, max_new_tokens, stop)
        verification.require(model, "logits", *(["decoding"] if scoring != "choice" else []))
        self.model, self.prompts, self.scoring, self.stop = model, prompts, scoring, tuple(stop)
        self.length_normalised = length_normalised
        self.max_new_tokens = None if max_new_tokens is None else int(max_new_tokens)
        self.batch_size: BatchSize = batch_size if batch_size == "auto" else int(batch_size)
        self.prepend_bos = models.resolve_prepend_bos(model, prepend_bos)
        answers: Mapping[str, Sequence[str]] = prompts.answers or {}
        # What is scored for each example: its choices, or its answer alone.
        self.texts: dict[str, list[tuple[str, ...]]] = {
            language: list(prompts.choices[language])
            if scoring == "choice" and prompts.choices
            else [(answer,) for answer in answers[language]]
            for language in prompts.languages
        }
        self.gold = {
            language: [texts.index(answers[language][example]) for example, texts in enumerate(self.texts[language])]
            for language in prompts.languages
        }
        self.scorers: dict[str, Scorer] = {}
        self.merged: dict[str, list[bool]] = {}
        self.prompt_tokens: dict[str, list[list[int]]] = {}
        for language in prompts.languages:
            found = continuations(model, prompts, language, self.texts[language], prepend_bos=self.prepend_bos)
            self.scorers[language] = Scorer(model, language, found.each, batch_size, likeliest=scoring != "choice")
            self.prompt_tokens[language], self.merged[language] = found.prompts, found.merged
            if scoring == "choice":
                _refuse_equal_choices(prompts, language, found.each)
        self._ends = set(models.end_tokens(model))
        self._n_new = {} if scoring == "choice" else {la: self._plan_generation(la) for la in prompts.languages}

    @property
    def n_batches(self) -> int:
        """How many batches a run has, but for what must be decoded, which is not known before."""
        return sum(len(scorer.batches) for scorer in self.scorers.values())

    @property
    def record(self) -> dict[str, Any]:
        """For a result's metadata."""
        names = ("scoring", "length_normalised", "max_new_tokens", "batch_size", "prepend_bos")
        merged = [one for of_language in self.merged.values() for one in of_language]
        return {name: getattr(self, name) for name in names} | {
            "stop": list(self.stop),
            "merged": sum(merged) / len(merged),
        }

    def run(
        self, fwd_hooks: Hooks | HookMaker | None = None, *, after_batch: Callable[[], Any] = lambda: None
    ) -> pd.DataFrame:
        """The table of `evaluate`."""
        rows: list[dict[str, Any]] = []
        with models.left_as_found(self.model):
            for language, scorer in self.scorers.items():
                found = scorer.run(fwd_hooks, after_batch=after_batch)
                scored = iter(zip(found.log_probs.tolist(), scorer.continuations, strict=True))
                generated = self._generated(language, found.greedy, fwd_hooks) if self._n_new else None
                for index, texts in enumerate(self.texts[language]):
                    scores, of_texts = zip(*islice(scored, len(texts)), strict=True)
                    if any(map(math.isnan, scores)):
                        raise NeuronShareError(
                            f"Language {language!r}, example {self.prompts.examples[index]!r}: the log-probability is "
                            "NaN; load the model in float32 or bfloat16, and check your hooks."
                        )
                    gold = self.gold[language][index]
                    if generated is None:
                        prediction = texts[self._best(scores, of_texts)]
                        correct = prediction == texts[gold]
                    else:
                        prediction = generated[index]
                        correct = _same(prediction, texts[gold], self.scoring)
                    rows.append(
                        {
                            "example": self.prompts.examples[index],
                            "language": language,
                            "correct": correct,
                            "log_prob": scores[gold],
                            "prediction": prediction,
                            "merged": self.merged[language][index],
                        }
                    )
        table = pd.DataFrame(rows)
        table.attrs["verified"] = verification.is_verified(self.model)
        return table

    def _best(self, scores: Sequence[float], continuations: Sequence[Continuation]) -> int:
        """Which choice is the likeliest; of equal ones the first."""
        if self.length_normalised:
            scores = [score / len(one.scored) for score, one in zip(scores, continuations, strict=True)]
        return max(range(len(scores)), key=scores.__getitem__)

    def _plan_generation(self, language: str) -> int:
        """How many tokens to make for each prompt of a language, all of which must fit the context."""
        longest = max(len(one.scored) for one in self.scorers[language].continuations)
        n_new = longest + (9 if self.scoring == "number" else 1) if self.max_new_tokens is None else self.max_new_tokens
        for example, row in zip(self.prompts.examples, self.prompt_tokens[language], strict=True):
            where = f"Language {language!r}, example {example!r}"
            check_length(self.model, len(row) + n_new, where, f"the prompt with {n_new} new tokens")
        return n_new

    def _generated(self, language: str, begun: Sequence[list[int]], fwd_hooks: Hooks | HookMaker | None) -> list[str]:
        """The greedy continuation of each prompt of a language, cut at an end token and at `stop`.

        `begun` are the tokens that are known already. Where these come to an end nothing is decoded; but what merges
        with its prompt is not the prompt's continuation.
        """
        model, rows, n_new = self.model, self.prompt_tokens[language], self._n_new[language]
        found: dict[int, str] = {}
        for example, (known, merged) in enumerate(zip(begun, self.merged[language], strict=True)):
            text = None if merged else self._finished(known[:n_new], n_new)
            if text is not None:
                found[example] = text
        left = [example for example in range(len(rows)) if example not in found]
        packing = verification.packing(model)
        crosses = any(packing.crosses(len(rows[example]), n_new) for example in left)
        for batch in plan_batches(
            [(len(rows[example]) + n_new,) for example in left],
            self.batch_size,
            packing=replace(packing, pads=packing.pads and not crosses, tokens_a_pass=n_new * packing.tokens_a_pass),
        ):
            examples = [left[number] for number in batch]
            of_batch = [rows[example] for example in examples]
            tokens, _ = left_padded(of_batch)
            hooks = hooks_for(fwd_hooks, language, examples, tokens)
            with models.all_firing(model, hooks):
                new = decoding.greedy(
                    model,
                    of_batch,
                    n_new,
                    cached=verification.caches(model) and not crosses,
                    is_finished=lambda row, new: self._finished(new, n_new) is not None,
                )
            for example, tokens_of_row in zip(examples, new, strict=True):
                found[example] = self._finished(tokens_of_row, n_new) or ""
        return [found[example] for example in range(len(rows))]

    def _finished(self, new: Sequence[int], n_new: int) -> str | None:
        """The text of new tokens where it is complete: at an end token, a text of `stop`, or so many tokens."""
        end = next((number for number, token in enumerate(new) if token in self._ends), None)
        text: str = self.model.tokenizer.decode(new[:end])
        cuts = [place for cut in self.stop if (place := text.find(cut)) >= 0]
        if cuts:
            return text[: min(cuts)]
        return text if end is not None or len(new) >= n_new else None


def _check_scoring(prompts: ParallelPrompts, scoring: Any, length_normalised: Any, n_new: Any, stop: Any) -> None:
    if scoring not in get_args(Scoring):
        raise NeuronShareError(f"scoring={scoring!r} is unknown; use one of {', '.join(get_args(Scoring))}.")
    if prompts.answers is None:
        raise NeuronShareError(f"{prompts!r} has no answers; give ParallelPrompts(..., answers={{language: [...]}}).")
    if scoring == "choice" and prompts.choices is None:
        raise NeuronShareError(
            f'{prompts!r} has no choices; give ParallelPrompts(..., choices=...), or use scoring="exact" or "number".'
        )
    if not isinstance(length_normalised, bool) or (length_normalised and scoring != "choice"):
        raise NeuronShareError(
            f"length_normalised={length_normalised!r}; use True with scoring='choice' only, or False."
        )
    if n_new is not None and (
        scoring == "choice" or isinstance(n_new, bool) or not isinstance(n_new, Integral) or n_new < 1
    ):
        raise NeuronShareError(f"max_new_tokens={n_new!r}; give a number of tokens, and not for scoring='choice'.")
    if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
        raise NeuronShareError(f"stop={stop!r}; give a list of texts that are not empty.")
    for language, answers in prompts.answers.items() if scoring != "choice" else ():
        for example, answer in zip(prompts.examples, answers, strict=True):
            if scoring == "number" and last_number(answer) is None:
                raise NeuronShareError(
                    f"Language {language!r}, example {example!r}: the answer {answer!r} has no number; use "
                    'scoring="exact".'
                )
            if any(text in answer for text in stop):
                raise NeuronShareError(
                    f"Language {language!r}, example {example!r}: the answer {answer!r} contains a text of "
                    f"stop={stop!r}, and so could never be given; choose other texts."
                )


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


def _same(prediction: str, answer: str, scoring: Scoring) -> bool:
    if scoring == "number":
        return last_number(prediction) == last_number(answer)
    return normalised(prediction) == normalised(answer)


def normalised(text: str) -> str:
    """A text without differences of case, width and white space, quotes and brackets around it, and a sentence's end.

    Characters that cannot be seen (marks of direction, zero-width joiners, soft hyphens ...) are left out.

    Example:
        >>> normalised(" „Ｐaris“.") == normalised("paris"), normalised("-.5 %"), normalised("C#")
        (True, '-.5 %', 'c#')
    """
    text = "".join(char for char in unicodedata.normalize("NFKC", text) if unicodedata.category(char) != "Cf")
    text = " ".join(text.casefold().split())
    around = "".join(char for char in set(text) if unicodedata.category(char) in ("Ps", "Pe", "Pi", "Pf")) + "\"' "
    return text.lstrip(around + "¿¡").rstrip(around + _SENTENCE_ENDS) or text

"""Find the tokens of an answer after its prompt.

Prompt and answer are tokenised as one text, because some tokenizers merge them where they meet. The scored tokens begin
after the prefix that this text has in common with the prompt alone. For choices this is the shortest such prefix, so
that all of them are scored from the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from tl_neuronshare import models
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.models.tokens import check_length, tokenised
from tl_neuronshare.prompts import ParallelPrompts


@dataclass(frozen=True)
class Continuation:
    """The tokens to score for one example, and the tokens before them: the prompt, or an encoder-decoder's source."""

    example: int
    before: tuple[int, ...]
    scored: tuple[int, ...]


@dataclass(frozen=True)
class Continuations:
    """What may follow each prompt of a language.

    Attributes:
        each: one continuation for each text, in the order of the examples and of their texts.
        prompts: the tokens of each prompt, if it is tokenised alone.
        merged: for each prompt, whether its tokens change if a text follows.
    """

    each: list[Continuation]
    prompts: list[list[int]]
    merged: list[bool]


def continuations(
    model: LensModel,
    prompts: ParallelPrompts,
    language: str,
    texts: Sequence[Sequence[str]],
    *,
    prepend_bos: bool | None = None,
) -> Continuations:
    """Tokenise the texts that may follow each prompt of a language.

    Raises:
        NeuronShareError: a text adds no token, is longer than the context together with its prompt, or merges with the
            first token of a prompt without BOS.

    Examples:
        >>> prompts = ns.demo.prompts()[9:10]
        >>> continuation = continuations(model, prompts, "en", [prompts.answers["en"]]).each[0]
        >>> model.tokenizer.decode(continuation.before), model.tokenizer.decode(continuation.scored)
        ('Sum of 12 and 10 →', ' 22')
    """
    of_language = prompts.prompts[language]
    alone = tokenised(model, of_language, language, prompts.examples, prepend_bos=prepend_bos)
    if models.architecture_of(model) == "encoder-decoder":
        return _after_the_decoder_prompt(model, prompts, language, alone, texts)
    whole = models.tokenise(
        model,
        [prompt + text for prompt, of_prompt in zip(of_language, texts, strict=True) for text in of_prompt],
        prepend_bos=prepend_bos,
    )
    each: list[Continuation] = []
    merged = []
    for example, (prompt, of_prompt) in enumerate(zip(alone, texts, strict=True)):
        where = f"Language {language!r}, example {prompts.examples[example]!r}"
        full = whole[len(each) : len(each) + len(of_prompt)]
        start = min(_common(prompt, tokens) for tokens in full)
        if start == 0:
            raise NeuronShareError(
                f"{where}: prompt and answer merge from the first token on, so no token comes before what is scored; "
                "write them so that the tokenizer keeps them apart, or use prepend_bos=True."
            )
        for text, tokens in zip(of_prompt, full, strict=True):
            check_length(model, len(tokens), where, f"the prompt with {text!r}")
            if len(tokens) <= start:
                raise NeuronShareError(f"{where}: {text!r} adds no token to the prompt; write another answer.")
            each.append(Continuation(example, tuple(tokens[:start]), tuple(tokens[start:])))
        merged.append(start < len(prompt))
    return Continuations(each, alone, merged)


def _after_the_decoder_prompt(
    model: LensModel, prompts: ParallelPrompts, language: str, sources: list[list[int]], texts: Sequence[Sequence[str]]
) -> Continuations:
    """The continuations of an encoder-decoder: the prompt is its source, with which no text can merge."""
    each = []
    start = models.decoder_prompt(model)
    for example, (source, of_prompt) in enumerate(zip(sources, texts, strict=True)):
        where = f"Language {language!r}, example {prompts.examples[example]!r}"
        for text, tokens in zip(of_prompt, models.answer_tokens(model, of_prompt), strict=True):
            check_length(model, len(start) + len(tokens), where, f"{text!r}")
            if not tokens:
                raise NeuronShareError(f"{where}: {text!r} has no token; write another answer.")
            each.append(Continuation(example, tuple(source), tuple(tokens)))
    return Continuations(each, sources, [False] * len(sources))


def _common(prompt: Sequence[int], whole: Sequence[int]) -> int:
    """How many first tokens both have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))

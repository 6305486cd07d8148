"""Where prompt and answer meet, in tokens.

Prompt and answer are tokenised as one text, for some tokenizers merge them where they meet. What is scored begins at
the end of the prefix that this text and the prompt alone have in common; for choices at the shortest such prefix, so
that all are scored from the same place.
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
    """Tokens to score after others, for one example."""

    example: int
    before: tuple[int, ...]
    scored: tuple[int, ...]


@dataclass(frozen=True)
class Continuations:
    """What may follow each prompt of a language: for every example as many as it has texts, in their order."""

    each: list[Continuation]
    prompts: list[list[int]]  # each prompt's tokens, when it is tokenised alone
    merged: list[bool]  # whether some of these are other tokens when a text follows


def continuations(
    model: LensModel,
    prompts: ParallelPrompts,
    language: str,
    texts: Sequence[Sequence[str]],
    *,
    prepend_bos: bool | None = None,
) -> Continuations:
    """The texts after each prompt of a language, as tokens.

    Raises:
        NeuronShareError: a text that adds no token, is longer with its prompt than the context, or merges with the
            whole prompt where that begins with no BOS.

    Example:
        >>> prompts = ns.demo.prompts()[9:10]
        >>> of_one = continuations(model, prompts, "en", [prompts.answers["en"]]).each[0]
        >>> model.tokenizer.decode(of_one.before), model.tokenizer.decode(of_one.scored)
        ('Sum of 12 and 10 →', ' 22')
    """
    of_language = prompts.prompts[language]
    alone = tokenised(model, of_language, language, prompts.examples, prepend_bos=prepend_bos)
    whole = models.tokenise(
        model,
        [prompt + text for prompt, of_one in zip(of_language, texts, strict=True) for text in of_one],
        prepend_bos=prepend_bos,
    )
    found = Continuations([], alone, [])
    for example, (prompt, of_one) in enumerate(zip(alone, texts, strict=True)):
        where = f"Language {language!r}, example {prompts.examples[example]!r}"
        full = whole[len(found.each) : len(found.each) + len(of_one)]
        start = min(_common(prompt, tokens) for tokens in full)
        if start == 0:
            raise NeuronShareError(
                f"{where}: prompt and answer merge from the first token on, so that nothing comes before what is "
                "to be scored; write them so that the tokenizer keeps them apart, or use prepend_bos=True."
            )
        for text, tokens in zip(of_one, full, strict=True):
            check_length(model, len(tokens), where, f"the prompt with {text!r}")
            if len(tokens) <= start:
                raise NeuronShareError(f"{where}: {text!r} adds no token to the prompt; write another answer.")
            found.each.append(Continuation(example, tuple(tokens[:start]), tuple(tokens[start:])))
        found.merged.append(start < len(prompt))
    return found


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))

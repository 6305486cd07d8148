"""From texts to tokens: checked, never truncated, and padded so that texts can share a forward pass."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models.lens import LensModel, architecture_of, name_of, nested, tensor_of


def tokenise(
    model: LensModel, texts: Sequence[str], *, prepend_bos: bool | None = None, language: str | None = None
) -> list[list[int]]:
    """Return the token ids of each text, without padding and never truncated.

    Args:
        model: the model whose tokenizer is used.
        texts: the texts to tokenise.
        prepend_bos: whether each text begins with the BOS token; None is the model's `cfg.default_prepend_bos`. A text
            that already begins with one, for example from a chat template, does not get a second. For an encoder or an
            encoder-decoder it must be None: the tokenizer adds the special tokens that it was made to add.
        language: the language of the texts, for tokenizers that mark it with a token; None leaves the tokenizer's.

    Raises:
        NeuronShareError: BOS is asked for and the tokenizer has none, or the model does not have one of the tokens; or
            the tokenizer does not know the language that it must mark.
    """
    bos = resolve_prepend_bos(model, prepend_bos)
    if bos is None:
        _check_special_tokens(model)
        with _speaking(model, language):
            rows = [list(row) for row in model.tokenizer(_copies(texts)).input_ids]
        return _known(model, rows, "Use the tokenizer that the model was trained with.")
    if bos and model.tokenizer.bos_token_id is None:
        raise NeuronShareError(f"The tokenizer of {name_of(model)} has no BOS token; use prepend_bos=False.")
    # BOS is put there by hand: which special tokens a tokenizer adds by itself differs between classes and versions.
    ids: list[list[int]] = model.tokenizer(_copies(texts), add_special_tokens=False).input_ids
    start = [model.tokenizer.bos_token_id]
    rows = [row if row[:1] == start else start + row for row in ids] if bos else ids
    is_new = bos and start[0] >= vocabulary_size(model)
    return _known(
        model,
        rows,
        "TransformerLens adds special tokens to a tokenizer that has none; use prepend_bos=False."
        if is_new
        else "Use the tokenizer that the model was trained with.",
    )


def _copies(texts: Sequence[str]) -> list[str]:
    """Return equal strings: one that a tokenizer reads keeps a UTF-8 copy of itself, so that prompts would grow."""
    return [text[:1] + text[1:] for text in texts]


def _check_special_tokens(model: LensModel) -> None:
    """Refuse a tokenizer of a generic class whose special tokens TransformerLens has replaced by a BOS.

    TransformerLens sets `add_bos_token`, and a tokenizer of a generic class (PreTrainedTokenizerFast) then loses what
    it adds by itself. A class such as T5Tokenizer keeps it.
    """
    tokenizer = model.tokenizer
    is_generic = type(tokenizer).__name__ in ("PreTrainedTokenizerFast", "TokenizersBackend")
    ids = tokenizer("a a").input_ids or [None]
    first, last = ids[0], ids[-1]
    # Encoders are trained with a token at the end of a text, and not with one at its beginning only.
    if is_generic and first == tokenizer.bos_token_id and last not in tokenizer.all_special_ids:
        raise NeuronShareError(
            f"TransformerLens has replaced the special tokens of {name_of(model)}'s tokenizer by a BOS; load the "
            "model with load_model, which keeps them."
        )


def _known(model: LensModel, rows: list[list[int]], advice: str) -> list[list[int]]:
    """Return the rows, after checking that the model has each of their tokens."""
    last = max((max(row) for row in rows if row), default=0)
    if last >= vocabulary_size(model):
        token = model.tokenizer.convert_ids_to_tokens(last)
        raise NeuronShareError(
            f"The tokenizer of {name_of(model)} gives token {last} ({token!r}), but the model has only "
            f"{vocabulary_size(model)} tokens. {advice}"
        )
    return rows


@contextmanager
def _speaking(model: LensModel, language: str | None) -> Iterator[None]:
    """Let a tokenizer that marks the source's language mark this one, for as long as the context lasts."""
    tokenizer = model.tokenizer
    if not hasattr(tokenizer, "src_lang"):
        yield
        return
    before = tokenizer.src_lang, getattr(tokenizer, "tgt_lang", None)
    if language is not None:
        tokenizer.src_lang = _code_of(model, language)
    try:
        yield
    finally:
        # A tokenizer without a target language takes the source's while it tokenises a target, and keeps it.
        tokenizer.src_lang, tokenizer.tgt_lang = before


def _codes(tokenizer: Any) -> list[str]:
    """Return the codes of the languages that a tokenizer marks with a token, such as de, de_DE or deu_Latn."""
    known = getattr(tokenizer, "lang_code_to_id", None) or {}
    special = map(str, tokenizer.all_special_tokens)
    return list(known) or [token for token in special if re.fullmatch(r"[a-z]{2,3}_[A-Za-z]{2,4}", token)]


def _code_of(model: LensModel, language: str) -> str:
    """Return the tokenizer's code of a language, which may be called by its first part: de for de_DE."""
    codes = _codes(model.tokenizer)
    found = [code for code in codes if code == language] or [code for code in codes if code.split("_")[0] == language]
    if len(found) != 1:
        raise NeuronShareError(
            f"Language {language!r}: the tokenizer of {name_of(model)} marks each text with its language, and has "
            + (f"{' and '.join(found)} for it" if found else "none of this name")
            + f"; call the language by one of the tokenizer's codes, such as {', '.join(codes[:3])}."
        )
    return found[0]


def decoder_prompt(model: LensModel) -> list[int]:
    """Return the tokens that the decoder of an encoder-decoder begins with.

    They are its start token and, where there is one, the token that is forced to come first (the target language). Both
    are settings of the model for generation. The target language can also be the tokenizer's `tgt_lang`; where there is
    no start token, as in the first mBART, the decoder begins with the language.

    Raises:
        NeuronShareError: the model has no start token, or it translates into several languages and none is set.
    """
    hugging_face: Any = model.original_model  # type: ignore[attr-defined]

    def setting(name: str) -> int | None:
        owners = (getattr(hugging_face, "generation_config", None), hugging_face.config)
        return next((value for owner in owners if (value := getattr(owner, name, None)) is not None), None)

    start, forced = setting("decoder_start_token_id"), setting("forced_bos_token_id")
    tokenizer = model.tokenizer
    ids = {code: _id_of(tokenizer, code) for code in _codes(tokenizer)} if hasattr(tokenizer, "tgt_lang") else {}
    if forced is None and ids:
        if tokenizer.tgt_lang is not None:
            forced = ids[_code_of(model, tokenizer.tgt_lang)]
        elif start not in ids.values():
            raise NeuronShareError(
                f"{name_of(model)} writes several languages, and does not say which; set model.tokenizer.tgt_lang to "
                f"one of its codes, such as {', '.join(list(ids)[:3])}."
            )
    if start is None and forced is None:
        raise NeuronShareError(
            f"{name_of(model)} does not say with which token its decoder begins; set "
            "model.original_model.generation_config.decoder_start_token_id."
        )
    return [token for token in (start, forced) if token is not None]


def _id_of(tokenizer: Any, code: str) -> int:
    """Return the token that marks a language."""
    token = tokenizer.get_lang_token(code) if hasattr(tokenizer, "get_lang_token") else code
    return int(tokenizer.convert_tokens_to_ids(token))


def answer_tokens(model: LensModel, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of texts that an encoder-decoder writes, without special tokens.

    Nothing of a text comes before them, so that a space with which they begin is left out.
    """
    with _speaking(model, None):
        rows = model.tokenizer(text_target=[text.lstrip() for text in texts], add_special_tokens=False).input_ids
    return _known(model, [list(row) for row in rows], "Use the tokenizer that the model was trained with.")


def vocabulary_size(model: LensModel) -> int:
    """Return how many tokens the model's embedding has; `cfg.d_vocab` may be the tokenizer's number."""
    embedding = tensor_of(nested(model, "embed"), "W_E")
    return int(model.cfg.d_vocab) if embedding is None else len(embedding)


def knows_bos(model: LensModel) -> bool:
    """Return whether the tokenizer has a BOS token that the model also has."""
    bos = model.tokenizer.bos_token_id
    return bos is not None and bos < vocabulary_size(model)


def resolve_prepend_bos(model: LensModel, prepend_bos: bool | None) -> bool | None:
    """Return True or False for `prepend_bos`, in which None means the model's default.

    It stays None for an encoder or an encoder-decoder, whose tokenizer adds the special tokens.

    Raises:
        NeuronShareError: True or False is asked for, and the tokenizer decides.
    """
    if (architecture := architecture_of(model)) == "decoder":
        return bool(model.cfg.default_prepend_bos) if prepend_bos is None else prepend_bos
    if prepend_bos is not None:
        raise NeuronShareError(
            f"{name_of(model)} is an {architecture}, whose tokenizer adds its own special tokens; leave prepend_bos "
            "out."
        )
    return None


def special_tokens(model: LensModel) -> list[int]:
    """Return the ids of the special tokens, except the unknown token: it stands for a part of a prompt's text."""
    tokenizer = model.tokenizer
    others = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return sorted(set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - others))


def is_text(model: LensModel, tokens: Int[Tensor, "row position"]) -> Bool[Tensor, "row position"]:
    """Return which tokens are not special tokens, on the CPU.

    Examples:
        >>> is_text(model, torch.tensor([[model.tokenizer.bos_token_id, 77]]))
        tensor([[False,  True]])
    """
    special = torch.tensor(special_tokens(model), dtype=torch.long, device="cpu")
    return ~torch.isin(tokens.cpu(), special)


def end_tokens(model: LensModel) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's, and those in the model's settings for generation."""
    settings = nested(model, "original_model.generation_config") or nested(model, "generation_config")
    named = getattr(settings, "eos_token_id", None)
    others = named if isinstance(named, Sequence) else [named]
    return sorted({int(token) for token in (model.tokenizer.eos_token_id, *others) if token is not None})


def tokenised(
    model: LensModel, texts: Sequence[str], language: str, examples: Sequence[Hashable], *, prepend_bos: bool | None
) -> list[list[int]]:
    """Return the tokens of each text of one language, after checking that each text has some and fits into the context.

    Raises:
        NeuronShareError: a text has no token, or more tokens than the model's context.

    Examples:
        >>> len(tokenised(model, ["Country code of Peru →"], "en", [0], prepend_bos=None)[0])
        5
    """
    for example, text in zip(examples, texts, strict=True):
        if not isinstance(text, str):
            raise NeuronShareError(f"Language {language!r}, example {example!r}: {text!r} is not a text; give strings.")
    rows = tokenise(model, texts, prepend_bos=prepend_bos, language=language)
    unreadable, bos = set(model.tokenizer.all_special_ids), model.tokenizer.bos_token_id
    for example, text, tokens in zip(examples, texts, rows, strict=True):
        where = f"Language {language!r}, example {example!r}"
        if not tokens:
            raise NeuronShareError(f"{where}: the prompt has no token; write one that the tokenizer can read.")
        read = tokens[1:] if tokens[:1] == [bos] else tokens
        if read and unreadable.issuperset(read):
            raise NeuronShareError(
                f"{where}: the tokenizer, which has {len(model.tokenizer)} tokens, knows nothing of "
                f"{shorten(text, 40)!r}: all its tokens are special or unknown. Load the model's own tokenizer; is "
                "tokenizer.json missing in its directory?"
            )
        check_length(model, len(tokens), where)
    return rows


def check_length(model: LensModel, n_tokens: int, where: str, what: str = "the prompt") -> None:
    """Refuse a text that is longer than the model's context."""
    if n_tokens > model.cfg.n_ctx:
        raise NeuronShareError(
            f"{where}: {what} has {n_tokens} tokens, but the model's context is {model.cfg.n_ctx}; "
            "shorten it, or leave it out (where texts are parallel, in every language)."
        )


def left_padded(
    rows: Sequence[Sequence[int]],
) -> tuple[Int[Tensor, "prompt position"], Int[Tensor, "prompt position"] | None]:
    """Return the tokens of all prompts, padded on the left, and their mask; None instead of a mask without padding.

    The mask is made from the lengths. A mask made from the token ids would hide a prompt's own BOS or end token where
    that token is also the padding.

    Examples:
        >>> left_padded([[5, 6, 7], [8]])
        (tensor([[5, 6, 7],
                [0, 0, 8]]), tensor([[1, 1, 1],
                [0, 0, 1]]))
    """
    return padded_apart(rows, [()] * len(rows))


def padded_apart(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> tuple[Int[Tensor, "prompt position"], Int[Tensor, "prompt position"] | None]:
    """Return prompts padded on the left and answers padded on the right, and their mask; all prompts end at one place.

    Examples:
        >>> padded_apart([[5, 6], [7]], [[8], [9, 9]])
        (tensor([[5, 6, 8, 0],
                [0, 7, 9, 9]]), tensor([[1, 1, 1, 0],
                [0, 1, 1, 1]]))
    """
    end, longest_answer = max(map(len, prompts)), max(map(len, answers))
    # Any token can be the padding, since the mask hides it.
    tokens = torch.tensor(
        [
            [0] * (end - len(prompt)) + list(prompt) + list(answer) + [0] * (longest_answer - len(answer))
            for prompt, answer in zip(prompts, answers, strict=True)
        ],
        device="cpu",
    )
    places = torch.arange(end + longest_answer, device="cpu")
    first = torch.tensor([[end - len(prompt)] for prompt in prompts], device="cpu")
    last = torch.tensor([[end + len(answer)] for answer in answers], device="cpu")
    mask = (places >= first) & (places < last)
    return tokens, None if mask.all() else mask.long()

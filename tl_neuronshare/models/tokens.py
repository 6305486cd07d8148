"""From texts to tokens: checked, never truncated, and padded so that texts can share a forward pass."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models.lens import LensModel, name_of, nested, tensor_of


def tokenise(model: LensModel, texts: Sequence[str], *, prepend_bos: bool | None = None) -> list[list[int]]:
    """Return the token ids of each text, without padding and never truncated.

    Args:
        model: the model whose tokenizer is used.
        texts: the texts to tokenise.
        prepend_bos: whether each text begins with the BOS token; None is the model's `cfg.default_prepend_bos`. A text
            that already begins with one, for example from a chat template, does not get a second.

    Raises:
        NeuronShareError: BOS is asked for and the tokenizer has none, or the model does not have one of the tokens.
    """
    bos = resolve_prepend_bos(model, prepend_bos)
    if bos and model.tokenizer.bos_token_id is None:
        raise NeuronShareError(f"The tokenizer of {name_of(model)} has no BOS token; use prepend_bos=False.")
    # BOS is put there by hand: which special tokens a tokenizer adds by itself differs between classes and versions.
    ids: list[list[int]] = model.tokenizer(list(texts), add_special_tokens=False).input_ids
    start = [model.tokenizer.bos_token_id]
    rows = [row if row[:1] == start else start + row for row in ids] if bos else ids
    last = max((max(row) for row in rows if row), default=0)
    if last >= vocabulary_size(model):
        token = model.tokenizer.convert_ids_to_tokens(last)
        raise NeuronShareError(
            f"The tokenizer of {name_of(model)} gives token {last} ({token!r}), but the model has only "
            f"{vocabulary_size(model)} tokens. "
            + (
                "TransformerLens adds special tokens to a tokenizer that has none; use prepend_bos=False."
                if bos and [last] == start
                else "Use the tokenizer that the model was trained with."
            )
        )
    return rows


def vocabulary_size(model: LensModel) -> int:
    """Return how many tokens the model's embedding has; `cfg.d_vocab` may be the tokenizer's number."""
    embedding = tensor_of(nested(model, "embed"), "W_E")
    return int(model.cfg.d_vocab) if embedding is None else len(embedding)


def knows_bos(model: LensModel) -> bool:
    """Return whether the tokenizer has a BOS token that the model also has."""
    bos = model.tokenizer.bos_token_id
    return bos is not None and bos < vocabulary_size(model)


def resolve_prepend_bos(model: LensModel, prepend_bos: bool | None) -> bool:
    """Return True or False for `prepend_bos`, in which None means the model's default."""
    return bool(model.cfg.default_prepend_bos) if prepend_bos is None else prepend_bos


def special_tokens(model: LensModel) -> list[int]:
    """Return the ids of the special tokens, except the unknown token: it stands for a part of a prompt's text."""
    tokenizer = model.tokenizer
    others = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return sorted(set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - others))


def is_text(model: LensModel, tokens: Int[Tensor, "row position"]) -> Bool[Tensor, "row position"]:
    """Return which tokens are not special tokens, on the CPU.

    Example:
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

    Example:
        >>> len(tokenised(model, ["Country code of Peru →"], "en", [0], prepend_bos=None)[0])
        5
    """
    for example, text in zip(examples, texts, strict=True):
        if not isinstance(text, str):
            raise NeuronShareError(f"Language {language!r}, example {example!r}: {text!r} is not a text; give strings.")
    rows = tokenise(model, texts, prepend_bos=prepend_bos)
    for example, tokens in zip(examples, rows, strict=True):
        where = f"Language {language!r}, example {example!r}"
        if not tokens:
            raise NeuronShareError(f"{where}: the prompt has no token; write one that the tokenizer can read.")
        check_length(model, len(tokens), where)
    return rows


def check_length(model: LensModel, n_tokens: int, where: str, what: str = "the prompt") -> None:
    """Refuse a text that is longer than the model's context."""
    if n_tokens > model.cfg.n_ctx:
        raise NeuronShareError(
            f"{where}: {what} has {n_tokens} tokens, but the model's context is {model.cfg.n_ctx}; "
            "shorten it or drop that example in every language."
        )


def left_padded(
    rows: Sequence[Sequence[int]],
) -> tuple[Int[Tensor, "prompt position"], Int[Tensor, "prompt position"] | None]:
    """Return the tokens of all prompts, padded on the left, and their mask; None instead of a mask without padding.

    The mask is made from the lengths. A mask made from the token ids would hide a prompt's own BOS or end token where
    that token is also the padding.

    Example:
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

    Example:
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

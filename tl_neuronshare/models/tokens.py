"""Texts as tokens: checked, never cut off, and padded so that they can share a forward pass."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models.lens import LensModel, name_of, nested, tensor_of


def tokenise(model: LensModel, texts: Sequence[str], *, prepend_bos: bool | None = None) -> list[list[int]]:
    """The token ids of each text alone, without padding and never truncated.

    Args:
        model: whose tokenizer to use.
        texts: what to tokenise.
        prepend_bos: whether each begins with the BOS token; None is the model's own `cfg.default_prepend_bos`. A text
            that has one already, as from a chat template, gets no second.

    Raises:
        NeuronShareError: BOS was asked for and the tokenizer has none, or a token that the model does not have.
    """
    bos = resolve_prepend_bos(model, prepend_bos)
    if bos and model.tokenizer.bos_token_id is None:
        raise NeuronShareError(f"The tokenizer of {name_of(model)} has no BOS token; use prepend_bos=False.")
    # Special tokens that a tokenizer adds by itself differ between classes and versions: BOS is put there by hand.
    ids: list[list[int]] = model.tokenizer(list(texts), add_special_tokens=False).input_ids
    start = [model.tokenizer.bos_token_id]
    rows = [row if row[:1] == start else start + row for row in ids] if bos else ids
    last = max((max(row) for row in rows if row), default=0)
    if last >= vocabulary_size(model):
        token = model.tokenizer.convert_ids_to_tokens(last)
        raise NeuronShareError(
            f"The tokenizer of {name_of(model)} gives token {last} ({token!r}), and the model has only "
            f"{vocabulary_size(model)}. "
            + (
                "TransformerLens adds special tokens to a tokenizer that has none; use prepend_bos=False."
                if bos and [last] == start
                else "Use the tokenizer that the model was trained with."
            )
        )
    return rows


def vocabulary_size(model: LensModel) -> int:
    """How many tokens the model knows: rows of its embedding, since `cfg.d_vocab` may be the tokenizer's."""
    embedding = tensor_of(nested(model, "embed"), "W_E")
    return int(model.cfg.d_vocab) if embedding is None else len(embedding)


def knows_bos(model: LensModel) -> bool:
    """Whether the tokenizer has a BOS token that the model has too."""
    bos = model.tokenizer.bos_token_id
    return bos is not None and bos < vocabulary_size(model)


def resolve_prepend_bos(model: LensModel, prepend_bos: bool | None) -> bool:
    """What prepend_bos=None means for this model."""
    return bool(model.cfg.default_prepend_bos) if prepend_bos is None else prepend_bos


def special_tokens(model: LensModel) -> list[int]:
    """The ids of the tokenizer's special tokens, which belong to no prompt's text; an unknown token stands for text."""
    tokenizer = model.tokenizer
    others = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return sorted(set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - others))


def end_tokens(model: LensModel) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and all that the model's own settings for generation name."""
    settings = nested(model, "original_model.generation_config") or nested(model, "generation_config")
    named = getattr(settings, "eos_token_id", None)
    others = named if isinstance(named, Sequence) else [named]
    return sorted({int(token) for token in (model.tokenizer.eos_token_id, *others) if token is not None})


def tokenised(
    model: LensModel, texts: Sequence[str], language: str, examples: Sequence[Hashable], *, prepend_bos: bool | None
) -> list[list[int]]:
    """Each text of one language as tokens, checked against the context; nothing is cut off.

    Raises:
        NeuronShareError: a text without a token, or with more than the model's context.

    Example:
        >>> len(tokenised(model, ["Country code of Peru →"], "en", [0], prepend_bos=None)[0])
        5
    """
    rows = tokenise(model, texts, prepend_bos=prepend_bos)
    for example, tokens in zip(examples, rows, strict=True):
        where = f"Language {language!r}, example {example!r}"
        if not tokens:
            raise NeuronShareError(f"{where}: the prompt has no token; write one that the tokenizer can read.")
        check_length(model, len(tokens), where)
    return rows


def check_length(model: LensModel, n_tokens: int, where: str, what: str = "the prompt") -> None:
    """Refuse what is longer than the context."""
    if n_tokens > model.cfg.n_ctx:
        raise NeuronShareError(
            f"{where}: {what} has {n_tokens} tokens, the model's context {model.cfg.n_ctx}; "
            "shorten it or drop that example in every language."
        )


def left_padded(
    rows: Sequence[Sequence[int]],
) -> tuple[Int[Tensor, "prompt position"], Int[Tensor, "prompt position"] | None]:
    """Tokens and their mask; no mask where nothing is padded.

    The mask is made from the lengths: one made from the token ids would hide a prompt's own BOS or end token
    where that is also the padding.

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
    """Prompts padded on the left and answers on the right, so that all prompts end at the same place; and the mask.

    Example:
        >>> padded_apart([[5, 6], [7]], [[8], [9, 9]])
        (tensor([[5, 6, 8, 0],
                [0, 7, 9, 9]]), tensor([[1, 1, 1, 0],
                [0, 1, 1, 1]]))
    """
    end, after = max(map(len, prompts)), max(map(len, answers))
    # Any token will do: the mask hides it.
    tokens = torch.tensor(
        [
            [0] * (end - len(prompt)) + list(prompt) + list(answer) + [0] * (after - len(answer))
            for prompt, answer in zip(prompts, answers, strict=True)
        ],
        device="cpu",
    )
    places = torch.arange(end + after, device="cpu")
    first = torch.tensor([[end - len(prompt)] for prompt in prompts], device="cpu")
    last = torch.tensor([[end + len(answer)] for answer in answers], device="cpu")
    mask = (places >= first) & (places < last)
    return tokens, None if mask.all() else mask.long()

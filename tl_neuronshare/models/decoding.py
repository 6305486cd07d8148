"""Greedy decoding, token by token: with the key-value cache, or by running the whole text again for each token.

TransformerLens's own `generate` is not used, for two reasons. It finds padding by the padding token, which may also be
a prompt's BOS. And where Transformers renames an argument, as 5.24 did, a bridge loses its cache without a warning.
Here prompts are padded on the left with a mask made from their lengths, and the cache is used only where
`verification.caches` has shown that it is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.models.caches import Cache, empty_cache
from tl_neuronshare.models.inputs import Inputs, inputs_of
from tl_neuronshare.models.lens import LensModel


def greedy(
    model: LensModel,
    rows: Sequence[Sequence[int]],
    n_new: int,
    *,
    cached: bool,
    is_finished: Callable[[int, list[int]], bool] = lambda row, new: False,
) -> list[list[int]]:
    """Decode up to `n_new` tokens after each row, each time the likeliest next token.

    Hooks first see the rows, padded. Then they see one token at a time with the cache, and all tokens so
    far without it, as `ablation_hooks` expects. A finished row stays in the batch, so that the batch keeps its shape;
    the tokens after its end are not returned.

    Args:
        model: a HookedTransformer or TransformerBridge.
        rows: the prompts' tokens; of equal length where the model cannot be padded. An encoder-decoder encodes them,
            and what is decoded follows its decoder's own prompt.
        n_new: how many tokens to decode at most.
        cached: whether to use the key-value cache.
        is_finished: a function of a row's number and its new tokens that says whether the row needs no more tokens.

    Returns:
        Each row's new tokens.

    Examples:
        >>> prompt = model.to_tokens("Sum of 12 and 10 →")[0].tolist()
        >>> model.tokenizer.decode(greedy(model, [prompt], 1, cached=True)[0])
        ' 22'
    """
    new: list[list[int]] = [[] for _ in rows]
    running = set(range(len(rows)))
    with next_logits(model, inputs_of(model, rows), cached=cached) as step:
        for _ in range(n_new):
            likeliest = step().argmax(-1).cpu()
            for row in sorted(running):
                new[row].append(int(likeliest[row]))
                if is_finished(row, new[row]):
                    running.remove(row)
            if not running:
                break
            step.append(likeliest)
    return new


class Step(Protocol):
    """A decoding in progress: called, it gives the logits after all tokens so far; `append` adds the next ones."""

    def __call__(self) -> Float[Tensor, "row vocabulary"]:
        """Return the logits after all tokens so far."""
        ...

    def append(self, new: Int[Tensor, " row"]) -> None:
        """Add each row's next token."""
        ...


@contextmanager
def next_logits(model: LensModel, inputs: Inputs, *, cached: bool) -> Iterator[Step]:
    """Give the `Step` that decodes after prompts, all of which end at the last position."""
    with ExitStack() as stack:
        stack.enter_context(models.last_positions_only(model, 1))
        if cached:
            yield _Cached(stack.enter_context(empty_cache(model, len(inputs))), inputs)
        else:
            yield _Recomputing(model, inputs)


class _Recomputing:
    """A step that runs the whole text again for every token."""

    def __init__(self, model: LensModel, inputs: Inputs) -> None:
        self.model, self.inputs = model, inputs

    def __call__(self) -> Float[Tensor, "row vocabulary"]:
        logits: Tensor = models.forward(self.model, self.inputs)
        return logits[:, -1]

    def append(self, new: Int[Tensor, " row"]) -> None:
        """Add each row's next token, which is run with all tokens before it."""
        tokens = torch.cat([self.inputs.tokens, new[:, None]], dim=1)
        self.inputs = replace(self.inputs, tokens=tokens, mask=_longer(self.inputs.mask))


class _Cached:
    """A step that runs only the tokens that the cache does not hold."""

    def __init__(self, cache: Cache, inputs: Inputs) -> None:
        self.cache, self.inputs = cache, inputs

    def __call__(self) -> Float[Tensor, "row vocabulary"]:
        return self.cache(self.inputs)[:, -1]

    def append(self, new: Int[Tensor, " row"]) -> None:
        """Add each row's next token, which is run alone."""
        self.inputs = Inputs(new[:, None])


def _longer(mask: Int[Tensor, "row position"] | None) -> Int[Tensor, "row longer"] | None:
    """Return the mask with one more position."""
    return None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)

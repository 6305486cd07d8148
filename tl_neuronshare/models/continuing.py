"""Prompts that are run once, and then the texts that follow them.

Where several texts follow a prompt, as choices do, each needs no more of it than its keys and values. These are kept
from the prompts' forward pass; every text is run on those of its own prompt, and adds nothing to them. Used only where
`verification.shared_up_to` has shown that it is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_neuronshare.models.caches import Cache, empty_cache
from tl_neuronshare.models.forward import last_positions_only
from tl_neuronshare.models.hooks import hooked
from tl_neuronshare.models.inputs import Inputs
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.models.tokens import padded_apart


class Continuing:
    """A forward pass of prompts, and others of texts that follow them; `continuing` makes it."""

    def __init__(self, model: LensModel, prompts: Inputs, cache: Cache) -> None:
        self._model, self._prompts, self._cache = model, prompts, cache

    def prompts(self) -> Float[Tensor, "prompt vocabulary"]:
        """Run the prompts, and return the logits after each; to be called once, before `texts`."""
        with last_positions_only(self._model, 1):
            return self._cache(self._prompts)[:, -1]

    def texts(self, after: Sequence[int], texts: Sequence[Sequence[int]]) -> Float[Tensor, "token vocabulary"]:
        """Run texts, each after one of the prompts, and return the logits after every token of the first, the second...

        Args:
            after: the number of each text's prompt, which may stand there several times.
            texts: the tokens of each text, at least one.
        """
        tokens, mask = padded_apart([()] * len(texts), texts)
        inputs = Inputs(tokens, mask)
        row, column = inputs.shown().nonzero().T

        def keep_tokens(residual: Tensor, hook: Any) -> Tensor:
            return residual[row.to(residual.device), column.to(residual.device)][None]

        cache = self._cache.of_rows(torch.tensor(after, device="cpu"))
        with hooked(self._model, [("unembed.hook_in", keep_tokens)]):
            return cache(inputs)[0]


@contextmanager
def continuing(model: LensModel, prompts: Inputs) -> Iterator[Continuing]:
    """Give what runs prompts once, and then the texts that follow them.

    Args:
        model: a decoder.
        prompts: the prompts' tokens, which all end at the last position.

    Examples:
        >>> from tl_neuronshare.models import inputs_of
        >>> rows = [model.to_tokens(prompt)[0].tolist() for prompt in ("Sum of 12 and 10 →", "Country code of Peru →")]
        >>> with continuing(model, inputs_of(model, rows)) as run:
        ...     first, later = run.prompts(), run.texts([0, 1, 1], [[5, 6], [7], [8, 9, 10]])
        >>> first.shape, later.shape
        (torch.Size([2, 4000]), torch.Size([6, 4000]))
    """
    with empty_cache(model, len(prompts)) as cache:
        yield Continuing(model, prompts, cache)

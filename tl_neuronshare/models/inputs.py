"""What one forward pass runs: the tokens of some rows, padded as the model needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_neuronshare.models.lens import LensModel, architecture_of
from tl_neuronshare.models.neurons import Stack
from tl_neuronshare.models.tokens import decoder_prompt, padded_apart


@dataclass(frozen=True)
class Inputs:
    """The tokens of some rows that share a forward pass.

    Attributes:
        tokens: the tokens of each row; in an encoder-decoder, those of the decoder.
        mask: 1 at tokens and 0 at padding; None if nothing is padded, or if it comes after everything that is read.
        source: in an encoder-decoder, the tokens of the encoder; None in other models.
    """

    tokens: Int[Tensor, "row position"]
    mask: Int[Tensor, "row position_so_far"] | None = None
    source: Inputs | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def seen_by(self, stack: Stack) -> Inputs:
        """Return the tokens that the layers of a stack see."""
        return self.source if self.source is not None and stack == "encoder" else self

    def until(self, stop: int) -> Inputs:
        """Return the same rows, cut off before this position; the source of an encoder-decoder stays whole."""
        return replace(self, tokens=self.tokens[:, :stop], mask=None if self.mask is None else self.mask[:, :stop])

    def shown(self) -> Bool[Tensor, "row position"]:
        """Return True at the tokens that are not padding."""
        return torch.ones_like(self.tokens, dtype=torch.bool) if self.mask is None else self.mask.bool()


def inputs_of(
    model: LensModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]] | None = None
) -> Inputs:
    """Return the inputs for prompts, and for the answers that follow them, padded in the way that is right.

    A decoder's prompts are padded on the left and its answers on the right. An encoder's prompts are padded on the
    right: its positions count from the first place, whatever the mask says. It always gets the mask, without which some
    encoders take an end token for padding. In an encoder-decoder the prompts are the source; the decoder sees its own
    prompt, which is the same in all rows, and then the answer. Its padding comes after everything and needs no mask.

    Examples:
        >>> inputs = inputs_of(model, [[5, 6, 7], [8]])
        >>> inputs.tokens, inputs.mask
        (tensor([[5, 6, 7],
                [0, 0, 8]]), tensor([[1, 1, 1],
                [0, 0, 1]]))
    """
    none: list[Sequence[int]] = [()] * len(prompts)
    architecture = architecture_of(model)
    if architecture == "decoder":
        return Inputs(*padded_apart(prompts, none if answers is None else answers))
    tokens, mask = padded_apart(none, prompts)
    source = Inputs(tokens, torch.ones_like(tokens) if mask is None else mask)
    if architecture == "encoder":
        return source
    tokens, _ = padded_apart([decoder_prompt(model)] * len(prompts), none if answers is None else answers)
    return Inputs(tokens, source=source)

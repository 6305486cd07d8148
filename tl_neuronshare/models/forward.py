"""Forward passes that make no more than is needed of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models.hooks import hooked
from tl_neuronshare.models.layers import NeuronLayer
from tl_neuronshare.models.lens import LensModel, device_of, is_bridge, left_as_found


def run(model: LensModel, tokens: Int[Tensor, "prompt position"], mask: Int[Tensor, "prompt position"] | None) -> None:
    """One forward pass without the vocabulary, for what the hooks see of it."""
    forward(model, tokens, mask, **_without_vocabulary(model))


def last_logits(
    model: LensModel, tokens: Int[Tensor, "row position"], mask: Int[Tensor, "row position"] | None, keep: int
) -> Float[Tensor, "row {keep} vocabulary"]:
    """The logits at the last so many positions; others are not made.

    Example:
        >>> last_logits(model, model.to_tokens("Country code of Peru →"), None, 2).shape
        torch.Size([1, 2, 4000])
    """
    with last_positions_only(model, keep):
        logits: Tensor = forward(model, tokens, mask)
    return logits


@contextmanager
def last_positions_only(model: LensModel, keep: int) -> Iterator[None]:
    """Unembed only the last so many positions of every forward pass, in `generate` too, for as long as this lasts."""

    def cut(residual: Tensor, hook: Any) -> Tensor:
        return residual[:, -keep:].contiguous()  # else matmul would take one row at a time

    with hooked(model, [("unembed.hook_in", cut)]):
        yield


def forward(
    model: LensModel,
    tokens: Int[Tensor, "row position"],
    mask: Int[Tensor, "row position_so_far"] | None,
    **options: Any,
) -> Any:
    """One forward pass, with whatever else the model's own takes; with a cache, `mask` may be of all tokens so far."""
    device = device_of(model)
    masked = {} if mask is None else {"attention_mask": mask.to(device)}
    return model(tokens.to(device), **masked, **options)


def _without_vocabulary(model: LensModel) -> dict[str, Any]:
    """Arguments of the forward pass that keep it from making logits for every position."""
    if not is_bridge(model):
        return {"stop_at_layer": model.cfg.n_layers}
    forward = inspect.signature(model.original_model.forward)  # type: ignore[attr-defined]
    return {"logits_to_keep": 1} if "logits_to_keep" in forward.parameters else {}


@contextmanager
def reading(model: LensModel, layers: Sequence[NeuronLayer], read: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Hand each layer's number and tensor to `read` in every forward pass, for as long as the context lasts."""

    def hand_over(tensor: Tensor, hook: Any, *, number: int) -> None:
        read(number, tensor)

    with hooked(model, [(layer.hook, partial(hand_over, number=number)) for number, layer in enumerate(layers)]):
        yield


def values_of(
    model: LensModel,
    layers: Sequence[NeuronLayer],
    tokens: Int[Tensor, "prompt position"],
    mask: Int[Tensor, "prompt position"] | None,
    position: int | Bool[Tensor, "prompt position"] | tuple[Tensor, Tensor],
) -> list[Float[Tensor, "value neuron"]]:
    """Each layer's values in one forward pass without the vocabulary, in at least float32.

    Of each prompt: at an index from the end, or the mean over the chosen positions; or at places (prompt, position).

    Raises:
        NeuronShareError: a layer's hook has not fired.
    """
    read: dict[int, Tensor] = {}

    def keep(layer: int, tensor: Tensor) -> None:
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        if isinstance(position, int):
            read[layer] = tensor[:, position].to(dtype)
        elif isinstance(position, tuple):
            read[layer] = tensor[position].to(dtype)
        else:
            chosen = position.to(tensor.device)
            summed = tensor.to(dtype).masked_fill(~chosen[..., None], 0).sum(1)
            read[layer] = summed / chosen.sum(1, keepdim=True)

    with left_as_found(model), reading(model, layers, keep):
        run(model, tokens, mask)
    for number, layer in enumerate(layers):
        if number not in read:
            raise NeuronShareError(
                f"{layer.hook} did not fire; do hooks of yours replace its module, or does this model not run it?"
            )
    return [read[number] for number in range(len(layers))]

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

Tokens = Int[Tensor, "prompt position"]


def run(model: LensModel, tokens: Tokens, mask: Tokens | None) -> None:
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


def layer_hooks(
    layers: Sequence[NeuronLayer], read: Callable[[int, tuple[Tensor, ...]], None]
) -> list[tuple[str, Callable[..., None]]]:
    """Hooks that hand each layer's number and the tensors of its hooks to `read`, as soon as the last of them fires."""

    def collector(number: int, n_tensors: int) -> Callable[..., None]:
        tensors: dict[int, Tensor] = {}

        def collect(tensor: Tensor, hook: Any, *, place: int) -> None:
            if place == 0:  # a forward pass that stopped half-way may have left some
                tensors.clear()
            tensors[place] = tensor
            if len(tensors) == n_tensors:
                complete = tuple(tensors[place] for place in range(n_tensors))
                tensors.clear()
                read(number, complete)

        return collect

    return [
        (hook.name, partial(collect, place=place))
        for number, layer in enumerate(layers)
        for collect in [collector(number, len(layer.hooks))]
        for place, hook in enumerate(layer.hooks)
    ]


@contextmanager
def reading(
    model: LensModel, layers: Sequence[NeuronLayer], read: Callable[[int, tuple[Tensor, ...]], None]
) -> Iterator[Callable[[Tokens, Tokens | None], None]]:
    """Hand each layer's number and the tensors of its hooks to `read`, for as long as the context lasts.

    Gives a function that runs one forward pass on tokens and their mask, without the vocabulary.

    Raises:
        NeuronShareError: a layer was not read in that pass.
    """
    seen: set[int] = set()

    def hand_over(number: int, tensors: tuple[Tensor, ...]) -> None:
        seen.add(number)
        read(number, tensors)

    def run_once(tokens: Tokens, mask: Tokens | None) -> None:
        seen.clear()
        run(model, tokens, mask)
        for number, layer in enumerate(layers):
            if number not in seen:
                raise NeuronShareError(
                    f"{layer.name} did not fire; do hooks or settings of yours replace the MLP, or does this model "
                    "skip it? Remove these, or use another site."
                )

    with hooked(model, layer_hooks(layers, hand_over)):
        yield run_once


def values_of(
    model: LensModel,
    layers: Sequence[NeuronLayer],
    tokens: Tokens,
    mask: Tokens | None,
    position: int | Bool[Tensor, "prompt position"] | tuple[Tensor, Tensor],
) -> list[Float[Tensor, "value neuron"]]:
    """Each layer's values in one forward pass without the vocabulary, in at least float32.

    They are read of each prompt at an index from the end; or their mean over the positions that a mask chooses; or at
    single places, given as a pair of tensors (prompt, position).

    Raises:
        NeuronShareError: a layer's hook has not fired.
    """
    values: dict[int, Tensor] = {}

    def keep(number: int, tensors: tuple[Tensor, ...]) -> None:
        dtype = torch.promote_types(tensors[0].dtype, torch.float32)
        if isinstance(position, Tensor):
            chosen = position.to(tensors[0].device)
            summed = layers[number].read(tensors).to(dtype).masked_fill(~chosen[..., None], 0).sum(1)
            values[number] = summed / chosen.sum(1, keepdim=True)
        else:
            places = (slice(None), position) if isinstance(position, int) else position
            values[number] = layers[number].read(tensors, places).to(dtype)

    with left_as_found(model), reading(model, layers, keep) as run_once:
        run_once(tokens, mask)
    return [values[number] for number in range(len(layers))]

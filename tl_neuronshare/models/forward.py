"""Forward passes that compute only what is needed."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import nth_from_the_end
from tl_neuronshare.models.hooks import hooked
from tl_neuronshare.models.inputs import Inputs
from tl_neuronshare.models.lens import LensModel, blocks_of, device_of, is_bridge, left_as_found
from tl_neuronshare.models.neurons import NeuronLayer, Stack

_CHUNK = 1 << 26  # values of one layer that are summed at a time


def run(model: LensModel, inputs: Inputs) -> None:
    """Run one forward pass for the hooks on the model, without logits for the whole vocabulary where it is possible."""
    forward(model, inputs, **_without_vocabulary(model))


def last_logits(model: LensModel, inputs: Inputs, keep: int) -> Float[Tensor, "row {keep} vocabulary"]:
    """Return the logits at the last `keep` positions; the logits at other positions are not computed.

    Examples:
        >>> last_logits(model, Inputs(model.to_tokens("Country code of Peru →")), 2).shape
        torch.Size([1, 2, 4000])
    """
    with last_positions_only(model, keep):
        logits: Tensor = forward(model, inputs)
    return logits


@contextmanager
def last_positions_only(model: LensModel, keep: int) -> Iterator[None]:
    """Unembed only the last `keep` positions of every forward pass, also in `generate`, for as long as this lasts."""

    def cut(residual: Tensor, hook: Any) -> Tensor:
        return residual[:, -keep:].contiguous()  # otherwise matmul would take one row at a time

    with hooked(model, [("unembed.hook_in", cut)]):
        yield


def forward(model: LensModel, inputs: Inputs, **options: Any) -> Any:
    """Run one forward pass, with other options of the model; with a cache, the mask may cover all tokens so far."""
    tokens, arguments = arguments_of(inputs, device_of(model))
    if not is_bridge(model):
        _forget_longer_texts(model)
    return model(tokens, **arguments, **options)


def _forget_longer_texts(model: LensModel) -> None:
    """Let a HookedTransformer make its ALiBi biases anew.

    It keeps those of the longest text so far, and takes a part of them that is shifted. The shift changes nothing but
    rounding, so that what a batch gives would depend on what was run before it.
    """
    if model.cfg.positional_embedding_type == "alibi":
        for _, block in blocks_of(model):
            block.attn.alibi = None


def arguments_of(inputs: Inputs, device: torch.device) -> tuple[Int[Tensor, "row position"], dict[str, Tensor]]:
    """Return the tokens and the named arguments that a bridge, a HookedTransformer and a Hugging Face model take."""
    named: dict[str, Tensor] = {}
    if inputs.source is not None:
        # Without these, a bridge would give the decoder the source, shifted by one token.
        named["decoder_input_ids"] = inputs.tokens.to(device)
    encoded = inputs.seen_by("encoder")
    if encoded.mask is not None:
        named["attention_mask"] = encoded.mask.to(device)
    return encoded.tokens.to(device), named


def _without_vocabulary(model: LensModel) -> dict[str, Any]:
    """Return arguments that keep the model from computing logits at every position."""
    if not is_bridge(model):
        return {"stop_at_layer": model.cfg.n_layers}
    forward = inspect.signature(model.original_model.forward)  # type: ignore[attr-defined]
    return {"logits_to_keep": 1} if "logits_to_keep" in forward.parameters else {}


def layer_hooks(
    layers: Sequence[NeuronLayer], read: Callable[[int, tuple[Tensor, ...]], None]
) -> list[tuple[str, Callable[..., None]]]:
    """Return hooks that call `read` with a layer's number and its tensors, once all its hook points have fired.

    The tensors are in the order of the layer's `names`; the hook points may fire in any order.
    """
    return [
        (name, partial(collector, name=name))
        for number, layer in enumerate(layers)
        for collector in [_Collector(layer, partial(read, number))]
        for name in layer.names
    ]


class _Collector:
    """Collects the tensors of a layer's hook points until it has them all."""

    def __init__(self, layer: NeuronLayer, read: Callable[[tuple[Tensor, ...]], None]) -> None:
        self.names, self.read = layer.names, read
        self._tensors: dict[str, Tensor] = {}
        self._handed_over: dict[str, weakref.ref[Tensor]] = {}

    def __call__(self, tensor: Tensor, hook: Any, *, name: str) -> None:
        # A bridge's compatibility mode calls a hook once for each name of its hook point. With one hook point, reading
        # twice gives the same; with several, the second call must not begin a new set.
        if len(self.names) > 1 and (
            tensor is self._tensors.get(name) or tensor is self._handed_over.get(name, lambda: None)()
        ):
            return
        if name in self._tensors:  # of a forward pass that stopped half-way
            self._tensors.clear()
        self._tensors[name] = tensor
        if len(self._tensors) == len(self.names):
            complete = tuple(self._tensors[each] for each in self.names)
            self._handed_over = {each: weakref.ref(self._tensors[each]) for each in self.names}
            self._tensors.clear()
            self.read(complete)


@contextmanager
def reading(
    model: LensModel, layers: Sequence[NeuronLayer], read: Callable[[int, tuple[Tensor, ...]], None]
) -> Iterator[Callable[[Inputs], None]]:
    """Install `layer_hooks` for as long as the context lasts.

    The context gives a function that runs one forward pass without the vocabulary.

    Raises:
        NeuronShareError: that function did not reach one of the layers.
    """
    seen: set[int] = set()

    def hand_over(number: int, tensors: tuple[Tensor, ...]) -> None:
        seen.add(number)
        read(number, tensors)

    def run_once(inputs: Inputs) -> None:
        seen.clear()
        run(model, inputs)
        for number, layer in enumerate(layers):
            if number not in seen:
                raise NeuronShareError(
                    f"{layer.name} did not fire; do your hooks or settings replace the MLP, or does this model skip "
                    "it? Remove them, or use a different site."
                )

    with hooked(model, [*layer_hooks(layers, hand_over), *_unembedding_nothing(model)]):
        yield run_once


def _unembedding_nothing(model: LensModel) -> list[tuple[str, Callable[..., Any]]]:
    """Return a hook that leaves no position to a bridge's unembedding, which cannot be left out otherwise.

    One position of each row would be enough to double the time of a small model with a large vocabulary. If the user
    has hooks there, they see that position.
    """
    points = model.hook_dict if is_bridge(model) else {}
    ends = [points[name] for name in ("unembed.hook_in", "unembed.hook_out") if name in points]
    if not ends or points.get("unembed.hook_in") is None or any(point.fwd_hooks for point in ends):
        return []
    return [("unembed.hook_in", lambda residual, hook: residual[:0])]


def values_of(
    model: LensModel,
    layers: Sequence[NeuronLayer],
    inputs: Inputs,
    position: int | Mapping[Stack, Bool[Tensor, "prompt position"]] | tuple[Tensor, Tensor],
) -> list[Float[Tensor, "value neuron"]]:
    """Return each layer's values in one forward pass without the vocabulary, in at least float32.

    Args:
        model: the model to run.
        layers: the layers to read.
        inputs: the prompts' tokens.
        position: an index that counts from the end of each prompt, for its value there; or a mask for each stack, for
            each prompt's mean over the positions that it chooses; or a pair of tensors (prompt, position), for the
            values at these places.

    Raises:
        NeuronShareError: a layer's hook does not fire.
    """
    values: dict[int, Tensor] = {}

    def keep(number: int, tensors: tuple[Tensor, ...]) -> None:
        dtype = torch.promote_types(tensors[-1].dtype, torch.float32)
        if isinstance(position, Mapping):
            chosen = position[layers[number].stack].to(tensors[-1].device)
            step = max(1, _CHUNK // (chosen.shape[1] * layers[number].width))
            sums = [
                layers[number].read(tensors, rows).to(dtype).masked_fill(~chosen[rows, :, None], 0).sum(1)
                for rows in (slice(start, start + step) for start in range(0, len(chosen), step))
            ]
            values[number] = torch.cat(sums) / chosen.sum(1, keepdim=True)
        else:
            places = _at(inputs.seen_by(layers[number].stack), position) if isinstance(position, int) else position
            values[number] = layers[number].read(tensors, places).to(dtype)

    with left_as_found(model), reading(model, layers, keep) as run_once:
        run_once(inputs)
    return [values[number] for number in range(len(layers))]


class OnDevices:
    """A tensor that is copied once to each device on which it is needed, since a model may be spread over several.

    Examples:
        >>> OnDevices(torch.tensor([1, 2])).on(torch.device("cpu"))
        tensor([1, 2])
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._copies = {tensor.device: tensor}

    def on(self, device: torch.device) -> Tensor:
        """Return the tensor on a device."""
        if device not in self._copies:
            self._copies[device] = self._tensor.to(device)
        return self._copies[device]


def on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors on the CPU. All those of a device are copied at once, since each copy waits for its work.

    Examples:
        >>> on_cpu([torch.tensor([True, False]), torch.tensor([[3]])])
        [tensor([ True, False]), tensor([[3]])]
    """
    copies = list(tensors)
    for device in {tensor.device for tensor in tensors if tensor.device.type != "cpu"}:
        places = [place for place, tensor in enumerate(tensors) if tensor.device == device]
        for place, copy in zip(places, _in_one_copy([tensors[place] for place in places]), strict=True):
            copies[place] = copy
    return copies


def _in_one_copy(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Copy tensors of one device to the CPU, all in a single transfer of their bytes."""
    # Those with the largest numbers come first, so that each begins where its dtype may begin.
    order = sorted(range(len(tensors)), key=lambda place: tensors[place].element_size(), reverse=True)
    as_bytes = [tensors[place].flatten().view(torch.uint8) for place in order]
    parts = torch.split(torch.cat(as_bytes).cpu(), [len(each) for each in as_bytes])
    copies = dict(zip(order, parts, strict=True))
    for place, tensor in enumerate(tensors):
        yield copies[place].view(tensor.dtype).view(tensor.shape)


def _at(inputs: Inputs, position: int) -> tuple[Any, Any]:
    """Return the place of each prompt's token at an index that counts from its end."""
    if inputs.mask is None or bool(inputs.mask[:, -1].all()):
        return slice(None), position
    return torch.arange(len(inputs), device="cpu"), nth_from_the_end(inputs.shown(), -position)

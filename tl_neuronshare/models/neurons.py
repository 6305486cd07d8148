"""What a layer of neurons is: where its values are, how they are read and edited, and what they write.

A layer has hooks, from which values are read, and writers, the parts of the model that turn values into what is added
to the residual stream. A dense MLP has one of each. A mixture of experts has two where it also has a shared expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor, nn

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.impact import lengths
from tl_neuronshare.models.lens import dequantised, loaded, tensor_of
from tl_neuronshare.results.routing import named

Site = Literal["post", "gate", "up"]
Stack = Literal["encoder", "decoder"]
# A selection from [row, position]: a slice of rows, a pair of index tensors or slices, or `...` for everything.
Places = Any


@dataclass(frozen=True)
class NeuronHook:
    """A hook point and the neurons that its tensor holds.

    This class is for tensors of [row, position, neuron], the layout of a dense MLP. For a different layout, a subclass
    overrides `shape`, `read` and `like`, which are all that depends on it. They get the tensors of the hook points in
    `names`, in this order.

    Attributes:
        name: the name of the hook point.
        width: how many neurons the tensor holds.
        activation: the function that turns the tensor's numbers into the neurons' values; None where they already are
            the values.
        context: the names of hook points that fire earlier, whose tensors say what this one's mean.
    """

    name: str
    width: int
    activation: Callable[[Tensor], Tensor] | None = None
    context: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all hook points that are needed, the one with the values last."""
        return (*self.context, self.name)

    def shape(self, tensors: Sequence[Tensor]) -> tuple[int, int] | None:
        """Return how many rows and positions the tensors have; None where they do not fit these neurons."""
        tensor = tensors[-1]
        return (tensor.shape[0], tensor.shape[1]) if tensor.ndim == 3 and tensor.shape[2] == self.width else None

    def read(
        self, tensors: Sequence[Tensor], places: Places = ..., *, absent: float = 0.0
    ) -> Float[Tensor, "*places neuron"]:
        """Return the neurons' values at the selected places; by default at all, as [row, position, neuron].

        `absent` is the value of neurons that are not computed there. A dense MLP computes all of its neurons.
        """
        values = tensors[-1][places]
        return values if self.activation is None else self.activation(values)

    def like(
        self, by_neuron: Shaped[Tensor, "#row #position #neuron"], tensors: Sequence[Tensor]
    ) -> Shaped[Tensor, ...]:
        """Lay out entries for [row, position, neuron] as the hook's tensor is, or so that they broadcast to it."""
        return by_neuron

    def routed(self, tensors: Sequence[Tensor], places: Places = ...) -> Bool[Tensor, "*places expert"] | None:
        """Return which experts compute their neurons at the selected places; None where there are no experts."""
        return None

    def n_computed(self, tensors: Sequence[Tensor]) -> int:
        """Return how many of the neurons are computed for each token."""
        return self.width

    def weighted(self) -> NeuronHook:
        """Return the hook that reads each value times the weight with which the model uses it, if it has one."""
        return self


@runtime_checkable
class Writer(Protocol):
    """A part of the model that turns the values of some neurons into what it writes to the residual stream."""

    @property
    def width(self) -> int:
        """How many neurons it reads."""
        ...

    def W_out(self) -> Float[Tensor, "neuron d_model"]:  # noqa: N802  # TransformerLens's name
        """Return the output weights: row j is what neuron j writes for each unit of its value."""
        ...

    def watched(self, zeroed: Bool[Tensor, " neuron"] | None) -> AbstractContextManager[list[Tensor]]:
        """Collect the values of one row with which Hugging Face's module computes, and set some neurons to zero there.

        This works inside `models.unwrapped`. The list gets one tensor [position, neuron] for each forward pass; none if
        the values of this site are not to be had there.
        """
        ...

    def written(self) -> AbstractContextManager[list[Tensor]]:
        """Collect what the part writes in a run of the model, without what it writes besides its neurons."""
        ...


@dataclass(frozen=True)
class NeuronLayer:
    """The neurons of one layer: where their values are, and what they write to the residual stream.

    Attributes:
        hooks: the hook points that hold the neurons. The layer's first neurons are those of the first hook, followed by
            those of the next.
        writers: the parts that write the neurons' values, in the order of the neurons; none for a tensor that is read
            like a layer without being an MLP.
        experts: how many routed experts the layer has, and how many neurons each of them; None where it has none.
            Their neurons come first, expert by expert.
        stack: whether the layer is in the encoder or in the decoder. In an encoder-decoder, the encoder's layers see
            other tokens than the decoder's.
    """

    hooks: tuple[NeuronHook, ...]
    writers: tuple[Writer, ...] = ()
    experts: tuple[int, int] | None = None
    stack: Stack = "decoder"

    @property
    def name(self) -> str:
        """The names of the hooks that hold the neurons, for messages and metadata."""
        return " + ".join(hook.name for hook in self.hooks)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all hook points that are needed to read the layer, each once."""
        return tuple(dict.fromkeys(name for hook in self.hooks for name in hook.names))

    @property
    def width(self) -> int:
        """How many neurons the layer has."""
        return sum(hook.width for hook in self.hooks)

    @property
    def is_editable(self) -> bool:
        """Whether the neurons' values can be replaced; they cannot where an activation function follows the hook."""
        return all(hook.activation is None for hook in self.hooks)

    def shape(self, tensors: Sequence[Tensor]) -> tuple[int, int] | None:
        """Return how many rows and positions the tensors of `names` have; None where they do not fit these neurons."""
        shapes = {hook.shape(own) for hook, own in self._each(tensors)}
        return shapes.pop() if len(shapes) == 1 else None

    def read(
        self, tensors: Sequence[Tensor], places: Places = ..., *, absent: float = 0.0
    ) -> Float[Tensor, "*places neuron"]:
        """Return the neurons' values from the tensors of `names`; by default at all places, as [row, position, neuron].

        Neurons of experts that a token is not routed to have the value `absent`.

        Examples:
            >>> from tl_neuronshare.models import neuron_layers
            >>> layer = neuron_layers(model, "post")[0]
            >>> _, cache = model.run_with_cache("Country code of Peru →")
            >>> layer.read([cache[name] for name in layer.names], (0, slice(-2, None))).shape
            torch.Size([2, 512])
        """
        values = [hook.read(own, places, absent=absent) for hook, own in self._each(tensors)]
        return values[0] if len(values) == 1 else torch.cat(values, dim=-1)

    def routed(self, tensors: Sequence[Tensor], places: Places = ...) -> Bool[Tensor, "*places expert"] | None:
        """Return which experts the tokens at the selected places are routed to; None where there are no experts."""
        routed = (hook.routed(own, places) for hook, own in self._each(tensors))
        return next((experts for experts in routed if experts is not None), None)

    def n_computed(self, tensors: Sequence[Tensor]) -> int:
        """Return how many of the layer's neurons are computed for each token; with routed experts, not all."""
        return sum(hook.n_computed(own) for hook, own in self._each(tensors))

    def weighted(self) -> NeuronLayer:
        """Return the layer whose values are multiplied by routing weights: times W_out, they are what is written."""
        return replace(self, hooks=tuple(hook.weighted() for hook in self.hooks))

    def _each(self, tensors: Sequence[Tensor]) -> Iterator[tuple[NeuronHook, list[Tensor]]]:
        """Iterate over the hooks, each with its own tensors."""
        by_name = dict(zip(self.names, tensors, strict=True))
        for hook in self.hooks:
            yield hook, [by_name[name] for name in hook.names]

    def misfit(self, tensors: Sequence[Tensor], expected: tuple[Any, Any]) -> str:
        """Return the message for tensors that do not have the expected numbers of rows, positions and neurons."""
        shapes = " and ".join(str(tuple(own[-1].shape)) for _, own in self._each(tensors))
        return (
            f"{self.name} gave a tensor of shape {shapes}, not {(*expected, self.width)} (rows, positions, neurons); "
            "does one of your hooks change it?"
        )

    def split(self, by_neuron: Shaped[Tensor, "*batch neuron"]) -> tuple[Shaped[Tensor, "*batch part"], ...]:
        """Split a tensor of one entry for each neuron into one part for each hook; entries beyond the width are cut."""
        return torch.split(by_neuron[..., : self.width], [hook.width for hook in self.hooks], dim=-1)

    def W_out(self) -> Float[Tensor, "neuron d_model"]:  # noqa: N802  # TransformerLens's name
        """Return the output weights: row j is what neuron j writes to the residual stream for each unit of its value.

        In a mixture of experts this value is multiplied by the routing weight first (`weighted`).

        Raises:
            NeuronShareError: the MLP does not end in one linear map.
        """
        weights = [writer.W_out() for writer in self.writers]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    @cached_property
    def lengths(self) -> Float[Tensor, " neuron"]:
        """The length of each row of `W_out`, which is computed once for this object."""
        return lengths(self.W_out())

    def columns(self, neurons: Int[Tensor, " neuron"]) -> dict[str, NDArray[np.int64]]:
        """Return the table columns that name these neurons; the first is `neuron`, the place in the layer.

        In a mixture, `expert` and `index` follow: the expert, and the neuron's place in it. The expert is -1 for
        neurons that every token uses, whose index is counted from the first of them.
        """
        places = neurons.numpy(force=True)
        return {"neuron": places} | ({} if self.experts is None else named(places, self.experts))


@dataclass(frozen=True)
class LinearWriter:
    """A down projection that is a module of its own in Hugging Face's model.

    Attributes:
        linear: the module.
        width: how many neurons it reads.
        is_watched: whether its input are the values of the site that is read; those of a gate or an up branch are not.
    """

    linear: nn.Module
    width: int
    is_watched: bool = True

    def W_out(self) -> Float[Tensor, "neuron d_model"]:  # noqa: N802
        """Return the output weights; quantised ones are dequantised."""
        with loaded(self.linear):
            weights = tensor_of(self.linear, "weight")
            if weights is None:
                raise NeuronShareError(no_output_weights(type(self.linear).__name__))
            if weights.ndim == 2 and weights.is_floating_point():
                return weights.T.detach()
            unpacked = dequantised(self.linear)
            if unpacked is None:
                raise NeuronShareError(no_output_weights(type(self.linear).__name__))
            return unpacked.detach()

    @contextmanager
    def watched(self, zeroed: Bool[Tensor, " neuron"] | None) -> Iterator[list[Tensor]]:
        """Watch the module's input; see `Writer`."""
        if zeroed is None and not self.is_watched:
            yield []
            return
        with watched_module(self.linear, is_input=True, zeroed=zeroed) as seen:
            yield seen

    @contextmanager
    def written(self) -> Iterator[list[Tensor]]:
        """Collect the module's output without its bias."""
        seen: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            bias = tensor_of(module, "bias")
            seen.append(output if bias is None else output - bias)

        with hooked_module(self.linear, keep):
            yield seen


def no_output_weights(what: str) -> str:
    """Return the message for a part whose output weights cannot be read."""
    return (
        f"{what} has no W_out with one row for each neuron; use a model whose MLPs end in one linear map, with weights "
        "that are not quantised or can be dequantised."
    )


@contextmanager
def hooked_module(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """Install a forward hook of torch for as long as the context lasts."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def watched_module(
    module: nn.Module, *, is_input: bool, zeroed: Bool[Tensor, " neuron"] | None
) -> Iterator[list[Tensor]]:
    """Collect what a module gets or gives for one row, as [position, neuron], and set some neurons to zero there."""
    seen: list[Tensor] = []

    def of_output(module: nn.Module, inputs: Any, tensor: Tensor) -> Tensor | None:
        seen.append(tensor.detach().reshape(-1, tensor.shape[-1]))  # OPT flattens rows and positions into one axis
        return None if zeroed is None else tensor.masked_fill(zeroed.to(tensor.device), 0)

    def of_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
        new = of_output(module, inputs, inputs[0])
        return None if new is None else (new, *inputs[1:])

    handle = module.register_forward_pre_hook(of_input) if is_input else module.register_forward_hook(of_output)
    try:
        yield seen
    finally:
        handle.remove()

"""Where a model keeps the neurons of its MLPs, how their values are read and edited, and what they write."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor, nn

from tl_neuronshare.checks import one_of
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models.lens import (
    LensModel,
    architecture_of,
    block_of,
    check_model,
    loaded,
    name_of,
    nested,
    stacks_of,
    tensor_of,
)

Site = Literal["post", "gate", "up"]
Stack = Literal["encoder", "decoder"]
# The names that gated MLPs in Hugging Face and in TransformerLens give to their activation function.
_ACTIVATION_NAMES = ("act_fn", "activation_fn", "act")

# A selection from [row, position]: a pair of index tensors or slices, or `...` for everything.
Places = Any


@dataclass(frozen=True)
class NeuronHook:
    """One hook point and the neurons that its tensor holds.

    This class is for tensors of [row, position, neuron], the layout of a dense MLP. For a different layout, a subclass
    overrides `shape`, `read` and `write`, which are all that depends on it.

    Attributes:
        name: the name of the hook point.
        width: how many neurons the tensor holds.
        activation: the function that turns the tensor's numbers into the neurons' values; None where they already are
            the values.
    """

    name: str
    width: int
    activation: Callable[[Tensor], Tensor] | None = None

    def shape(self, tensor: Tensor) -> tuple[int, int] | None:
        """Return how many rows and positions the tensor has; None where it does not fit these neurons."""
        return (tensor.shape[0], tensor.shape[1]) if tensor.ndim == 3 and tensor.shape[2] == self.width else None

    def read(self, tensor: Tensor, places: Places = ...) -> Float[Tensor, "*places neuron"]:
        """Return the neurons' values at the selected places; by default at all, as [row, position, neuron]."""
        values = tensor[places]
        return values if self.activation is None else self.activation(values)

    def write(
        self,
        tensor: Tensor,
        new: Float[Tensor, "row position neuron"],
        where: Bool[Tensor, "#row #position neuron"],
    ) -> Tensor:
        """Return a copy of the tensor, with the new values at the neurons that `where` selects."""
        return torch.where(where, new, tensor)


@dataclass(frozen=True)
class NeuronLayer:
    """The neurons of one MLP: where their values are, and what they write to the residual stream.

    Attributes:
        hooks: the hook points that hold the neurons, in the order in which a forward pass reaches them. The layer's
            first neurons are those of the first hook, followed by those of the next.
        mlp: TransformerLens's module of the MLP; None for a tensor that is read like a layer without being an MLP.
        source: the Hugging Face module, inside a bridge, that receives the same values (True) or returns them (False).
        stack: whether the layer is in the encoder or in the decoder. In an encoder-decoder, the encoder's layers see
            other tokens than the decoder's.
    """

    hooks: tuple[NeuronHook, ...]
    mlp: Any = field(default=None, repr=False)
    source: tuple[nn.Module, bool] | None = field(default=None, repr=False)
    stack: Stack = "decoder"

    @property
    def name(self) -> str:
        """The names of the layer's hooks, for messages and metadata."""
        return " + ".join(hook.name for hook in self.hooks)

    @property
    def width(self) -> int:
        """How many neurons the layer has."""
        return sum(hook.width for hook in self.hooks)

    @property
    def is_editable(self) -> bool:
        """Whether the neurons' values can be replaced; they cannot where an activation function follows the hook."""
        return all(hook.activation is None for hook in self.hooks)

    def shape(self, tensors: Sequence[Tensor]) -> tuple[int, int] | None:
        """Return how many rows and positions the hooks' tensors have; None where they do not fit these neurons."""
        shapes = {hook.shape(tensor) for hook, tensor in zip(self.hooks, tensors, strict=True)}
        return shapes.pop() if len(shapes) == 1 else None

    def read(self, tensors: Sequence[Tensor], places: Places = ...) -> Float[Tensor, "*places neuron"]:
        """Return the neurons' values from the hooks' tensors; by default at all places, as [row, position, neuron].

        Example:
            >>> layer = neuron_layers(model, "post")[0]
            >>> _, cache = model.run_with_cache("Country code of Peru →")
            >>> layer.read([cache[hook.name] for hook in layer.hooks], (0, slice(-2, None))).shape
            torch.Size([2, 512])
        """
        values = [hook.read(tensor, places) for hook, tensor in zip(self.hooks, tensors, strict=True)]
        return values[0] if len(values) == 1 else torch.cat(values, dim=-1)

    def misfit(self, tensors: Sequence[Tensor], expected: tuple[Any, Any]) -> str:
        """Return the message for tensors that do not have the expected numbers of rows, positions and neurons."""
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
        return (
            f"{self.name} gave a tensor of shape {shapes}, not {(*expected, self.width)} (rows, positions, neurons); "
            "does one of your hooks change it?"
        )

    def split(self, by_neuron: Shaped[Tensor, "*batch neuron"]) -> tuple[Shaped[Tensor, "*batch part"], ...]:
        """Split a tensor of one entry for each neuron into one part for each hook; entries beyond the width are cut."""
        return torch.split(by_neuron[..., : self.width], [hook.width for hook in self.hooks], dim=-1)

    def W_out(self) -> Float[Tensor, "neuron d_model"]:  # noqa: N802  # TransformerLens's name
        """Return the output weights: row j is what neuron j writes to the residual stream for each unit of its value.

        Raises:
            NeuronShareError: the MLP does not end in one linear map.
        """
        with loaded(self.mlp):
            weights = tensor_of(self.mlp, "W_out")
            if weights is None or weights.ndim != 2:
                raise NeuronShareError(
                    f"The MLP of {self.name} has no W_out with one row for each neuron; use a model whose MLPs end in "
                    "one linear map."
                )
            return weights.detach()

    def b_out(self) -> Float[Tensor, " d_model"] | float:
        """Return the output bias, which the MLP writes besides its neurons; 0 where it has none."""
        with loaded(self.mlp):
            bias = tensor_of(self.mlp, "b_out")
            return 0.0 if bias is None else bias.detach()

    def columns(self, neurons: Int[Tensor, " neuron"]) -> dict[str, NDArray[np.int64]]:
        """Return the table columns that name these neurons; the first is `neuron`, the place in the layer."""
        return {"neuron": neurons.numpy(force=True)}


# (the MLP's module, its block such as "blocks.3", the site, the model's hook points by name) -> the MLP's neurons
Kind = Callable[[Any, str, Site, Mapping[str, Any]], NeuronLayer | None]


def neuron_layers(model: LensModel, site: Site) -> list[NeuronLayer]:
    """Return each layer's neurons at a site, in the order of the layers; an encoder's before a decoder's.

    `post` is the input of the down projection. `gate` is act(gate) on gated MLPs and the same as `post` on others.
    `up` is the up branch, which is multiplied by act(gate); only gated MLPs have one.

    Raises:
        NeuronShareError: the site is unknown, the model is not a TransformerLens model, it has no MLP hooks, an MLP's
            neurons cannot be read (a mixture of experts), or `up` is asked for without a gate.
    """
    one_of("site", site, get_args(Site))
    check_model(model)
    hooks = model.hook_dict
    is_encoder = architecture_of(model) == "encoder"
    layers = []
    for stack, block in _blocks_with_mlp(model, hooks):
        mlp = block_of(model, block).mlp
        layer = next((layer for kind in KINDS if (layer := kind(mlp, block, site, hooks)) is not None), None)
        if layer is None:
            raise NeuronShareError(
                f"{block}.mlp has no hook_post, so that its neurons cannot be read; "
                "use a model in which every MLP has one (see model.hook_dict)."
            )
        layers.append(replace(layer, stack="encoder" if is_encoder or stack == "encoder_blocks" else "decoder"))
    if not layers:
        raise NeuronShareError(
            f"{name_of(model)} has no MLP: none of its {len(hooks)} hooks is named blocks.N.mlp.hook_post. "
            "Use a model with MLP layers."
        )
    return layers


def _blocks_with_mlp(model: LensModel, hooks: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Iterate over the stacks' names and the names of their blocks that have an MLP, such as blocks.3, in order."""
    for stack in stacks_of(model):
        pattern = re.compile(rf"{stack}\.(\d+)\.mlp\.")
        for number in sorted({int(match[1]) for name in hooks if (match := pattern.match(name))}):
            yield stack, f"{stack}.{number}"


def final_residual(model: LensModel) -> NeuronLayer:
    """Return the residual stream after the last block, which can be read like a layer."""
    last = len(stacks_of(model)["blocks"]) - 1
    return NeuronLayer((NeuronHook(f"blocks.{last}.hook_resid_post", model.cfg.d_model),))


def is_gated(model: LensModel) -> bool:
    """Return whether each neuron is the product of a gate and an up branch, both with hooks."""
    return any(re.fullmatch(r"(\w+_)?blocks\.\d+\.mlp\.hook_pre_linear", name) for name in model.hook_dict)


def _mixture(mlp: Any, block: str, site: Site, hooks: Mapping[str, Any]) -> NeuronLayer | None:
    """Refuse a mixture of experts: its `hook_post` holds the output of the block and not its neurons."""
    post = hooks.get(f"{block}.mlp.hook_post")
    if f"{block}.mlp.experts.0.hook_post" in hooks or (post is not None and hooks.get(f"{block}.mlp.hook_out") is post):
        raise NeuronShareError(
            f"{block}.mlp is a mixture of experts, whose neurons cannot be read yet; use a dense model."
        )
    return None


def _dense(mlp: Any, block: str, site: Site, hooks: Mapping[str, Any]) -> NeuronLayer | None:
    """Return the neurons of an MLP, gated or not, whose hook holds all of them; None for other kinds."""
    if f"{block}.mlp.hook_post" not in hooks:
        return None
    gated = f"{block}.mlp.hook_pre_linear" in hooks
    post = NeuronLayer((NeuronHook(f"{block}.mlp.hook_post", 0),), mlp)
    width, d_model = post.W_out().shape
    if site != "post" and not gated and _has_hidden_gate(mlp, width, d_model):
        raise NeuronShareError(f'{block}.mlp has a gate, but no hook for it (see model.hook_dict); use site="post".')
    if site == "up" and not gated:
        raise NeuronShareError(f'{block}.mlp has no gate, and so no up branch; use site="post".')
    if site == "up":
        return NeuronLayer((NeuronHook(f"{block}.mlp.hook_pre_linear", width),), mlp, _inside(mlp, "in", gives=True))
    if site == "gate" and gated:
        hook = NeuronHook(f"{block}.mlp.hook_pre", width, _activation_function(mlp, block))
        return NeuronLayer((hook,), mlp, _inside_gate(mlp))
    return NeuronLayer((NeuronHook(f"{block}.mlp.hook_post", width),), mlp, _inside(mlp, "out", gives=False))


# Each function knows one kind of layer and returns None for others; the first that does not return None decides.
KINDS: list[Kind] = [_mixture, _dense]


def _has_hidden_gate(mlp: Any, width: int, d_model: int) -> bool:
    """Return whether an MLP computes more than one number for each neuron, though it has no hook for a gate.

    Without a gate, the map into the neurons has one output for each neuron.
    """
    parts = getattr(nested(mlp, "original_component"), "_modules", {}).values()
    weights = [weight for part in parts if (weight := tensor_of(part, "weight")) is not None and weight.ndim == 2]
    n_vectors: int = sum(weight.numel() // d_model for weight in weights)
    return n_vectors > 2 * width  # each neuron has one in the map into the neurons and one in the map out of them


def _inside(mlp: Any, name: str, *, gives: bool) -> tuple[nn.Module, bool] | None:
    """Return the Hugging Face module of a bridge's projection, and whether the values are its input; None if absent."""
    module = nested(mlp, f"{name}.original_component")
    return None if module is None else (module, not gives)


def _inside_gate(mlp: Any) -> tuple[nn.Module, bool] | None:
    """Return the Hugging Face module of a bridge whose output is the activated gate; None where there is none."""
    owner = nested(mlp, "original_component")
    functions = (getattr(owner, name, None) for name in _ACTIVATION_NAMES)
    module = next((function for function in functions if function is not None), None)
    return (module, False) if isinstance(module, nn.Module) else None


def _activation_function(mlp: Any, block: str) -> Callable[[Tensor], Tensor]:
    """Return the activation function of a gated MLP, read off its module: cfg.act_fn is wrong for many models."""
    for holder in (mlp, getattr(mlp, "original_component", None)):
        for name in _ACTIVATION_NAMES:
            function = getattr(holder, name, None)
            if callable(function):
                scale = getattr(holder, "gate_multiplier", 1.0)  # Falcon-H1 scales the gate before it is activated
                return lambda gate: function(gate * scale)
    raise NeuronShareError(f'{block}.mlp does not say what its activation function is; use site="post".')

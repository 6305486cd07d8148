"""Where a model keeps the neurons of its MLPs, how their values are read, and what they write."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    block_of,
    check_model,
    loaded,
    name_of,
    nested,
    tensor_of,
)

Site = Literal["post", "gate", "up"]
# What Hugging Face's gated MLPs and TransformerLens's own call their activation function.
_ACTIVATION_NAMES = ("act_fn", "activation_fn", "act")


# What is selected of [row, position]: a pair of index tensors or slices; `...` is everything.
Places = Any


@dataclass(frozen=True)
class NeuronHook:
    """One hook point and the neurons that its tensor holds.

    Here that is [row, position, neuron], the layout of a dense MLP. A kind of layer that keeps its neurons otherwise
    overrides `shape`, `read` and `write`: nothing else knows what the tensor looks like.

    Attributes:
        name: of the hook point.
        width: how many neurons it holds.
        activation: what makes the tensor's numbers the neurons' values; None where they are the values already.
    """

    name: str
    width: int
    activation: Callable[[Tensor], Tensor] | None = None

    def shape(self, tensor: Tensor) -> tuple[int, int] | None:
        """How many rows and positions the tensor is of; None where it cannot be a tensor of these neurons."""
        return (tensor.shape[0], tensor.shape[1]) if tensor.ndim == 3 and tensor.shape[2] == self.width else None

    def read(self, tensor: Tensor, places: Places = ...) -> Float[Tensor, "*places neuron"]:
        """The neurons' values at some places; by default at all, [row, position, neuron]."""
        values = tensor[places]
        return values if self.activation is None else self.activation(values)

    def write(
        self,
        tensor: Tensor,
        new: Float[Tensor, "row position neuron"],
        where: Bool[Tensor, "#row #position neuron"],
    ) -> Tensor:
        """A tensor like this with new values where that is asked for; the one that is given stays as it is."""
        return torch.where(where, new, tensor)


@dataclass(frozen=True)
class NeuronLayer:
    """The neurons of one MLP: where their values are, and what they write to the residual stream.

    Attributes:
        hooks: the hook points that hold its neurons, in the order in which a forward pass reaches them; the layer's
            neurons are those of the first, then those of the next.
        mlp: TransformerLens's module of the MLP; None for what is read like a layer and is not one.
        source: the Hugging Face module inside a bridge that receives the same values (True) or gives them (False).
    """

    hooks: tuple[NeuronHook, ...]
    mlp: Any = field(default=None, repr=False)
    source: tuple[nn.Module, bool] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The names of its hooks, for messages and metadata."""
        return " + ".join(hook.name for hook in self.hooks)

    @property
    def width(self) -> int:
        """How many neurons it has."""
        return sum(hook.width for hook in self.hooks)

    @property
    def is_editable(self) -> bool:
        """Whether values can be put there, which is not so where an activation function follows the hook."""
        return all(hook.activation is None for hook in self.hooks)

    def shape(self, tensors: Sequence[Tensor]) -> tuple[int, int] | None:
        """How many rows and positions the hooks' tensors are of; None where they cannot be of these neurons."""
        shapes = {hook.shape(tensor) for hook, tensor in zip(self.hooks, tensors, strict=True)}
        return shapes.pop() if len(shapes) == 1 else None

    def read(self, tensors: Sequence[Tensor], places: Places = ...) -> Float[Tensor, "*places neuron"]:
        """The neurons' values, from the tensors of its hooks; by default at all places, [row, position, neuron].

        Example:
            >>> layer = neuron_layers(model, "post")[0]
            >>> _, cache = model.run_with_cache("Country code of Peru →")
            >>> layer.read([cache[hook.name] for hook in layer.hooks], (0, slice(-2, None))).shape
            torch.Size([2, 512])
        """
        values = [hook.read(tensor, places) for hook, tensor in zip(self.hooks, tensors, strict=True)]
        return values[0] if len(values) == 1 else torch.cat(values, dim=-1)

    def misfit(self, tensors: Sequence[Tensor], expected: tuple[Any, Any]) -> str:
        """What to say of tensors whose rows and positions are not those that are expected."""
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
        return (
            f"{self.name} gave a tensor of shape {shapes}, not {(*expected, self.width)} (rows, positions, neurons); "
            "does a hook of yours change it?"
        )

    def split(self, of_neurons: Shaped[Tensor, "*batch neuron"]) -> tuple[Shaped[Tensor, "*batch part"], ...]:
        """What is said of each of the layer's neurons, hook by hook; what goes beyond the layer's width is left out."""
        return torch.split(of_neurons[..., : self.width], [hook.width for hook in self.hooks], dim=-1)

    def W_out(self) -> Float[Tensor, "neuron d_model"]:  # noqa: N802  # TransformerLens's name
        """The output weights: row j is what neuron j writes to the residual stream for each unit of its value.

        Raises:
            NeuronShareError: the MLP does not end in one linear map.
        """
        with loaded(self.mlp):
            weights = tensor_of(self.mlp, "W_out")
            if weights is None or weights.ndim != 2:
                raise NeuronShareError(
                    f"The MLP of {self.name} has no W_out of one row a neuron; use a model whose MLPs end in one "
                    "linear map."
                )
            return weights.detach()

    def b_out(self) -> Float[Tensor, " d_model"] | float:
        """What the MLP writes besides its neurons; 0 where that is nothing."""
        with loaded(self.mlp):
            bias = tensor_of(self.mlp, "b_out")
            return 0.0 if bias is None else bias.detach()

    def columns(self, neurons: Int[Tensor, " neuron"]) -> dict[str, NDArray[np.int64]]:
        """What names these neurons in a table, column by column; the first is `neuron`, the place in the layer."""
        return {"neuron": neurons.numpy(force=True)}


# (the MLP's module, its block such as "blocks.3", the site, the model's hook points by name) -> its neurons
Kind = Callable[[Any, str, Site, Mapping[str, Any]], NeuronLayer | None]


def neuron_layers(model: LensModel, site: Site) -> list[NeuronLayer]:
    """Where to read each layer's neurons, in the order of the layers.

    `post` is the input of the down projection. `gate` is act(gate) on gated MLPs and the same as `post` on others.
    `up` is the up branch, which act(gate) is multiplied with; only gated MLPs have one.

    Raises:
        NeuronShareError: an unknown site, no TransformerLens model, no decoder, no MLP hooks, an MLP
            whose neurons cannot be read there (a mixture of experts), or `up` where there is no gate.
    """
    one_of("site", site, get_args(Site))
    check_model(model)
    hooks = model.hook_dict
    blocks = sorted({int(match[1]) for name in hooks if (match := re.match(r"blocks\.(\d+)\.mlp\.", name))})
    layers = []
    for block in (f"blocks.{number}" for number in blocks):
        mlp = block_of(model, block).mlp
        layer = next((layer for kind in KINDS if (layer := kind(mlp, block, site, hooks)) is not None), None)
        if layer is None:
            raise NeuronShareError(
                f"{block}.mlp has no hook_post, so that its neurons cannot be read; "
                "use a model whose every MLP has one (see model.hook_dict)."
            )
        layers.append(layer)
    if not layers:
        raise NeuronShareError(
            f"{name_of(model)} has no MLP: none of its {len(hooks)} hooks is named blocks.N.mlp.hook_post. "
            "Use a model with MLP layers."
        )
    return layers


def final_residual(model: LensModel) -> NeuronLayer:
    """The residual stream after the last block, to be read like a layer."""
    return NeuronLayer((NeuronHook(f"blocks.{len(model.blocks) - 1}.hook_resid_post", model.cfg.d_model),))


def is_gated(model: LensModel) -> bool:
    """Whether the neurons are a product of a gate and an up branch, each of which has a hook."""
    return any(re.fullmatch(r"blocks\.\d+\.mlp\.hook_pre_linear", name) for name in model.hook_dict)


def _mixture(mlp: Any, block: str, site: Site, hooks: Mapping[str, Any]) -> NeuronLayer | None:
    """Refuses a mixture of experts, whose `hook_post` is the output of the block."""
    post = hooks.get(f"{block}.mlp.hook_post")
    if f"{block}.mlp.experts.0.hook_post" in hooks or (post is not None and hooks.get(f"{block}.mlp.hook_out") is post):
        raise NeuronShareError(
            f"{block}.mlp is a mixture of experts, whose neurons are not read yet; use a dense model."
        )
    return None


def _dense(mlp: Any, block: str, site: Site, hooks: Mapping[str, Any]) -> NeuronLayer | None:
    """An MLP, gated or not, whose hooks hold all its neurons."""
    if f"{block}.mlp.hook_post" not in hooks:
        return None
    gated = f"{block}.mlp.hook_pre_linear" in hooks
    post = NeuronLayer((NeuronHook(f"{block}.mlp.hook_post", 0),), mlp)
    width, d_model = post.W_out().shape
    if site != "post" and not gated and _has_hidden_gate(mlp, width, d_model):
        raise NeuronShareError(
            f'{block}.mlp has a gate, and no hook for it (see model.hook_dict): only site="post" can be read.'
        )
    if site == "up" and not gated:
        raise NeuronShareError(f'{block}.mlp has no gate and so no up branch; use site="post".')
    if site == "up":
        return NeuronLayer((NeuronHook(f"{block}.mlp.hook_pre_linear", width),), mlp, _inside(mlp, "in", gives=True))
    if site == "gate" and gated:
        hook = NeuronHook(f"{block}.mlp.hook_pre", width, _activation_function(mlp, block))
        return NeuronLayer((hook,), mlp, _inside_gate(mlp))
    return NeuronLayer((NeuronHook(f"{block}.mlp.hook_post", width),), mlp, _inside(mlp, "out", gives=False))


# Each knows one kind of layer and gives None for others; the first that knows a layer is asked no further.
KINDS: list[Kind] = [_mixture, _dense]


def _has_hidden_gate(mlp: Any, width: int, d_model: int) -> bool:
    """Whether more than one number is computed for each neuron, though the model has no hooks for a gate.

    The maps into an MLP without a gate have as many outputs as it has neurons.
    """
    parts = getattr(nested(mlp, "original_component"), "_modules", {}).values()
    weights = [weight for part in parts if (weight := tensor_of(part, "weight")) is not None and weight.ndim == 2]
    numbers: int = sum(weight.numel() // d_model for weight in weights)
    return numbers > 2 * width  # of the map into the neurons and of the one out of them


def _inside(mlp: Any, name: str, *, gives: bool) -> tuple[nn.Module, bool] | None:
    """The Hugging Face module of a bridge's projection, and whether it receives the values rather than gives them."""
    module = nested(mlp, f"{name}.original_component")
    return None if module is None else (module, not gives)


def _inside_gate(mlp: Any) -> tuple[nn.Module, bool] | None:
    """The Hugging Face module of a bridge that gives the activated gate."""
    owner = nested(mlp, "original_component")
    functions = (getattr(owner, name, None) for name in _ACTIVATION_NAMES)
    module = next((function for function in functions if function is not None), None)
    return (module, False) if isinstance(module, nn.Module) else None


def _activation_function(mlp: Any, block: str) -> Callable[[Tensor], Tensor]:
    """The true activation function of a gated MLP; cfg.act_fn is wrong for many models."""
    for holder in (mlp, getattr(mlp, "original_component", None)):
        for name in _ACTIVATION_NAMES:
            function = getattr(holder, name, None)
            if callable(function):
                scale = getattr(holder, "gate_multiplier", 1.0)  # Falcon-H1 scales the gate before it is activated
                return lambda gate: function(gate * scale)
    raise NeuronShareError(f'{block}.mlp does not say what its activation function is; use site="post".')

"""Where a model keeps the neurons of its MLPs, how their values are read, and what they write."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

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


@dataclass(frozen=True)
class NeuronLayer:
    """One MLP's neurons: the hook to read, how many there are, and what turns the hook's tensor into their values."""

    hook: str
    width: int
    activation: Callable[[Tensor], Tensor] | None = None

    def values(self, tensor: Float[Tensor, "*batch neuron"]) -> Float[Tensor, "*batch neuron"]:
        """The neurons' values from what the hook gave."""
        return tensor if self.activation is None else self.activation(tensor)


def neuron_layers(model: LensModel, site: Site) -> list[NeuronLayer]:
    """Where to read each layer's neurons, in the order of the layers.

    `post` is the input of the down projection. `gate` is act(gate) on gated MLPs and the same as `post` on others.
    `up` is the up branch, which act(gate) is multiplied with; only gated MLPs have one.

    Raises:
        NeuronShareError: an unknown site, no TransformerLens model, no decoder, no MLP hooks, an MLP
            whose neurons are not to be had there (mixture of experts), or `up` where there is no gate.
    """
    if site not in get_args(Site):
        raise NeuronShareError(f"site={site!r} is unknown; use one of {', '.join(get_args(Site))}.")
    check_model(model)
    hooks = model.hook_dict
    layers = []
    for block in _mlp_blocks(hooks):
        post = f"{block}.mlp.hook_post"
        if f"{block}.mlp.experts.0.hook_post" in hooks or (
            post in hooks and hooks.get(f"{block}.mlp.hook_out") is hooks[post]
        ):
            raise NeuronShareError(
                f"{block}.mlp is a mixture of experts, whose neurons are not read yet; use a dense model."
            )
        if post not in hooks:
            raise NeuronShareError(
                f"{block}.mlp has no hook_post, so that its neurons cannot be read; "
                "use a model whose every MLP has one (see model.hook_dict)."
            )
        layers.append(_neuron_layer(model, block, site, gated=f"{block}.mlp.hook_pre_linear" in hooks))
    if not layers:
        raise NeuronShareError(
            f"{name_of(model)} has no MLP: none of its {len(hooks)} hooks is named blocks.N.mlp.hook_post. "
            "Use a model with MLP layers."
        )
    return layers


def _neuron_layer(model: LensModel, block: str, site: Site, *, gated: bool) -> NeuronLayer:
    width = output_weights(model, f"{block}.mlp.hook_post").shape[0]
    if site != "post" and not gated and _has_hidden_gate(model, block, width):
        raise NeuronShareError(
            f'{block}.mlp has a gate, and no hook for it (see model.hook_dict): only site="post" can be read.'
        )
    if site == "up" and not gated:
        raise NeuronShareError(f'{block}.mlp has no gate and so no up branch; use site="post".')
    if site == "up":
        return NeuronLayer(f"{block}.mlp.hook_pre_linear", width)
    if site == "gate" and gated:
        return NeuronLayer(f"{block}.mlp.hook_pre", width, _activation_function(model, block))
    return NeuronLayer(f"{block}.mlp.hook_post", width)


def _has_hidden_gate(model: LensModel, block: str, width: int) -> bool:
    """Whether more than one number is computed for each neuron, though the model has no hooks for a gate.

    The maps into an MLP without a gate have as many outputs as it has neurons.
    """
    parts = getattr(nested(block_of(model, block).mlp, "original_component"), "_modules", {}).values()
    weights = [weight for part in parts if (weight := tensor_of(part, "weight")) is not None and weight.ndim == 2]
    numbers: int = sum(weight.numel() // model.cfg.d_model for weight in weights)
    return numbers > 2 * width  # of the map into the neurons and of the one out of them


def _mlp_blocks(hooks: Mapping[str, Any]) -> list[str]:
    """The blocks with an MLP, in numerical order: bridges list their hooks in the order of the alphabet."""
    found = {int(match[1]) for name in hooks if (match := re.match(r"blocks\.(\d+)\.mlp\.", name))}
    return [f"blocks.{index}" for index in sorted(found)]


def is_gated(model: LensModel) -> bool:
    """Whether the neurons are a product of a gate and an up branch, each of which has a hook."""
    return any(f"{block}.mlp.hook_pre_linear" in model.hook_dict for block in _mlp_blocks(model.hook_dict))


def hugging_face_place(model: LensModel, hook: str, site: Site) -> tuple[torch.nn.Module, bool] | None:
    """The Hugging Face module of a bridge that receives (True) or gives (False) the values of a site; None without."""
    mlp = block_of(model, hook).mlp
    if site == "gate" and is_gated(model):
        owner = nested(mlp, "original_component")
        module = next((found for name in _ACTIVATION_NAMES if (found := getattr(owner, name, None)) is not None), None)
        return (module, False) if isinstance(module, torch.nn.Module) else None
    module = nested(mlp, "in.original_component" if site == "up" else "out.original_component")
    return None if module is None else (module, site != "up")


def _activation_function(model: LensModel, block: str) -> Callable[[Tensor], Tensor]:
    """The true activation function of a gated MLP; cfg.act_fn is wrong for many models."""
    mlp = block_of(model, block).mlp
    for holder in (mlp, getattr(mlp, "original_component", None)):
        for name in _ACTIVATION_NAMES:
            function = getattr(holder, name, None)
            if callable(function):
                scale = getattr(holder, "gate_multiplier", 1.0)  # Falcon-H1 scales the gate before it is activated
                return lambda gate: function(gate * scale)
    raise NeuronShareError(f'{block}.mlp does not say what its activation function is; use site="post".')


def output_weights(model: LensModel, hook: str) -> Float[Tensor, "neuron d_model"]:
    """W_out of the MLP that this hook belongs to: row j is what neuron j writes to the residual stream."""
    mlp = block_of(model, hook).mlp
    with loaded(mlp):
        weights = tensor_of(mlp, "W_out")
        if weights is None or weights.ndim != 2:
            raise NeuronShareError(
                f"The MLP of {hook} has no W_out of one row a neuron; use a model whose MLPs end in one linear map."
            )
        return weights.detach()


def output_bias(model: LensModel, hook: str) -> Float[Tensor, " d_model"] | float:
    """What the MLP that this hook belongs to writes besides its neurons; 0 where that is nothing."""
    mlp = block_of(model, hook).mlp
    with loaded(mlp):
        bias = tensor_of(mlp, "b_out")
        return 0.0 if bias is None else bias.detach()


def final_residual(model: LensModel) -> NeuronLayer:
    """The residual stream after the last block, to be read like a layer."""
    return NeuronLayer(f"blocks.{len(model.blocks) - 1}.hook_resid_post", model.cfg.d_model)

"""Which layers of neurons a model has, in the order of its blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

from tl_neuronshare.checks import one_of
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models import points
from tl_neuronshare.models.dense import dense, pointed
from tl_neuronshare.models.experts import mixture
from tl_neuronshare.models.lens import LensModel, architecture_of, block_of, check_model, name_of, stacks_of
from tl_neuronshare.models.neurons import NeuronHook, NeuronLayer, Site
from tl_neuronshare.models.points import MLPS

# (the block's module, its name such as "blocks.3", the site, the model's hook points by name) -> the block's neurons
Kind = Callable[[Any, str, Site, Mapping[str, Any]], NeuronLayer | None]
# Each function knows one kind of layer and returns None for others; the first that does not return None decides.
KINDS: list[Kind] = [mixture, pointed, dense]
# Components of a block whose hook points are in an MLP or a mixture of experts.
_OF_MLP = f"(?:routed|down|{'|'.join(MLPS)})"


def neuron_layers(model: LensModel, site: Site) -> list[NeuronLayer]:
    """Return each layer's neurons at a site, in the order of the layers; an encoder's before a decoder's.

    `post` is the input of the down projection. `gate` is act(gate) on gated MLPs and the same as `post` on others.
    `up` is the up branch, which is multiplied by act(gate); only gated MLPs have one. A mixture of experts gets hook
    points for its experts first (`models.points`), which stay on the model.

    Raises:
        NeuronShareError: the site is unknown, the model is not a TransformerLens model, it has no MLP hooks, an MLP's
            neurons cannot be read, or `up` is asked for without a gate.
    """
    one_of("site", site, get_args(Site))
    check_model(model)
    points.install(model)
    hooks = model.hook_dict
    is_encoder = architecture_of(model) == "encoder"
    layers = []
    for stack, name in _blocks_with_mlp(model, hooks):
        block = block_of(model, name)
        layer = next((layer for kind in KINDS if (layer := kind(block, name, site, hooks)) is not None), None)
        if layer is None:
            raise NeuronShareError(
                f"{name}.mlp has no hook_post, so that its neurons cannot be read; "
                "use a model in which every MLP has one (see model.hook_dict)."
            )
        layers.append(replace(layer, stack="encoder" if is_encoder or stack == "encoder_blocks" else "decoder"))
    if not stacks_of(model):
        raise NeuronShareError(
            f"{name_of(model)} does not keep its layers in model.blocks, so that their neurons cannot be found; use a "
            "different model."
        )
    if not layers:
        raise NeuronShareError(
            f"{name_of(model)} has no MLP: none of its {len(hooks)} hooks is named blocks.N.mlp.hook_post. "
            "Use a model with MLP layers."
        )
    return layers


def _blocks_with_mlp(model: LensModel, hooks: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Iterate over the stacks' names and the names of their blocks that have an MLP or experts, in order."""
    for stack in stacks_of(model):
        pattern = re.compile(rf"{stack}\.(\d+)\.{_OF_MLP}\.")
        for number in sorted({int(match[1]) for name in hooks if (match := pattern.match(name))}):
            yield stack, f"{stack}.{number}"


def residual_after(model: LensModel, layer: NeuronLayer) -> NeuronLayer:
    """Return the residual stream after the block of a layer, which can be read like a layer."""
    stack, number, *_ = layer.hooks[0].name.split(".")
    return NeuronLayer((NeuronHook(f"{stack}.{number}.hook_resid_post", model.cfg.d_model),))


def final_residual(model: LensModel) -> NeuronLayer:
    """Return the residual stream after the last block, which can be read like a layer."""
    last = len(stacks_of(model)["blocks"]) - 1
    return NeuronLayer((NeuronHook(f"blocks.{last}.hook_resid_post", model.cfg.d_model),))


def is_gated(model: LensModel) -> bool:
    """Return whether each neuron is the product of a gate and an up branch, both with hooks."""
    return any(re.fullmatch(rf"(\w+_)?blocks\.\d+\.{_OF_MLP}\.hook_pre_linear", name) for name in model.hook_dict)


def why_name_a_site(model: LensModel) -> str | None:
    """Say what a user should know who names no site of a gated model; None where there is nothing to choose."""
    if not is_gated(model):
        return None
    return (
        f"The MLPs of {name_of(model)} are gated, and no site was named, so that post is read: act(gate) x up, whose "
        'sign is positive for about half of the neurons whatever the prompt says. site="gate" asks instead which '
        'neurons the gate opens, and is what we recommend; site="post" keeps this one without a warning.'
    )

"""From the residual stream to the logits: the final norm and the unembedding."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.impact import FinalNorm
from tl_neuronshare.models.forward import reading
from tl_neuronshare.models.hooks import Editing, hooked, without_hooks
from tl_neuronshare.models.inputs import Inputs
from tl_neuronshare.models.layers import neuron_layers
from tl_neuronshare.models.lens import (
    LensModel,
    block_of,
    device_of,
    is_bridge,
    left_as_found,
    loaded,
    name_of,
    tensor_of,
)
from tl_neuronshare.models.neurons import NeuronHook, NeuronLayer, hooked_module
from tl_neuronshare.models.tokens import vocabulary_size

_N_TOKENS = 8
_ROWS = 32
_NEAR = 0.02
_SCALE = 8.0  # half precision must see the change beside a large residual stream, and it must not overflow


def unembedding(model: LensModel, tokens: Int[Tensor, " token"] | slice) -> Float[Tensor, "d_model token"]:
    """Return the unembedding's column for each of the tokens.

    Raises:
        NeuronShareError: the model has no unembedding.

    Example:
        >>> unembedding(model, torch.tensor([7, 8, 9])).shape
        torch.Size([128, 3])
    """
    part = getattr(model, "unembed", None)
    with loaded(part) if part is not None else nullcontext():
        weights = tensor_of(part, "W_U")
        if weights is None:
            raise NeuronShareError(f"{name_of(model)} has no unembedding W_U; use a language model with its head.")
        return weights[:, tokens].detach()


def check_unembedding(model: LensModel) -> None:
    """Refuse a model whose unembedding does not read what its MLPs write.

    Raises:
        NeuronShareError: there is no unembedding, or its width is not that of the MLPs' output.
    """
    width = neuron_layers(model, "post")[0].W_out().shape[1]
    read = len(unembedding(model, slice(1)))
    if width != read:
        raise NeuronShareError(
            f"The MLPs of {name_of(model)} write {width} numbers and its unembedding reads {read}: the map between "
            "them is not known here; use a different model."
        )


def changes_mlp_output(model: LensModel) -> str | None:
    """Return what the model does to its MLPs' output besides adding it to the residual stream; None if nothing.

    It is measured: in a short batch, each row has the values of one layer's neurons scaled, and the residual stream
    after that layer must change by what these neurons then write in addition.

    Raises:
        NeuronShareError: an MLP has no W_out.

    Example:
        >>> changes_mlp_output(model) is None
        True
    """
    layers = neuron_layers(model, "post")
    tokens = torch.arange(1, _N_TOKENS + 1, device="cpu").remainder(vocabulary_size(model))
    factors = []
    with left_as_found(model), without_hooks(model):
        for start in range(0, len(layers), _ROWS):
            factors += _factors(model, layers[start : start + _ROWS], tokens)
    for layer, (factor, rest) in enumerate(factors):
        if not (isfinite(factor) and isfinite(rest)):
            return f"may change what its MLPs write: layer {layer} overflows in this dtype, which hides it"
        if rest > _NEAR or abs(factor) < _NEAR:  # after a norm, a multiple is the same
            return f"normalises what its MLPs write (layer {layer}), before or after it is added to the residual stream"
        if abs(factor - 1) > _NEAR:
            return f"multiplies what its MLPs write (layer {layer}: by {factor:.3g})"
    return None


def _factors(
    model: LensModel, layers: Sequence[NeuronLayer], tokens: Int[Tensor, " position"]
) -> list[tuple[float, float]]:
    """Return, for each layer, by which factor the residual stream takes in more from its neurons, and what is left.

    What is left is the share of the change that is not a multiple of what the neurons write.
    """
    written: dict[int, Tensor] = {}  # by each layer's neurons, in the last row, which is not edited
    changes: dict[int, Tensor] = {}  # of the residual stream after each layer, from the last row to the layer's own
    weighted = [layer.weighted() for layer in layers]

    def note(row: int, tensors: tuple[Tensor, ...]) -> None:
        values = weighted[row].read(tensors, slice(-1, None))[0]
        written[row] = (values.float() @ layers[row].W_out().to(values.device, torch.float32)).double().cpu()

    def scale(tensors: list[Tensor], *, row: int, neurons: NeuronHook) -> Tensor:
        where = torch.zeros(len(layers) + 1, 1, 1, dtype=torch.bool, device=tensors[-1].device)
        where[row] = True
        return torch.where(neurons.like(where, tensors), _SCALE * tensors[-1], tensors[-1])

    def keep(block: torch.nn.Module, inputs: Any, output: Any, *, row: int) -> None:
        after = output if isinstance(output, Tensor) else output[0]
        changes[row] = (after[row].double() - after[-1].double()).cpu()

    edits = [
        hook
        for row, layer in enumerate(layers)
        for neurons in layer.hooks
        for hook in Editing(neurons.names, partial(scale, row=row, neurons=neurons)).hooks
    ]
    with ExitStack() as stack:
        for row, layer in enumerate(layers):
            stack.enter_context(hooked_module(block_of(model, layer.hooks[0].name), partial(keep, row=row)))
        run_once = stack.enter_context(reading(model, weighted, note))
        stack.enter_context(hooked(model, edits))
        run_once(Inputs(tokens.expand(len(layers) + 1, -1)))
    pairs = []
    for row in range(len(layers)):
        change, expected = changes[row], (_SCALE - 1) * written[row]
        factor = (change * expected).sum() / expected.square().sum().clamp(min=1e-30)
        rest = (change - factor * expected).square().sum() / change.square().sum().clamp(min=1e-30)
        pairs.append((factor.item(), rest.item()))
    return pairs


def final_norm(model: LensModel) -> FinalNorm:
    """Return the norm before the unembedding.

    A bridge's configuration does not say reliably what its norm is. So each formula is tried, and the one whose result
    is nearest to the module's is returned.

    Raises:
        NeuronShareError: the norm is neither a LayerNorm nor an RMSNorm.

    Example:
        >>> final_norm(model).centres  # a LayerNorm
        True
    """
    norm = getattr(model, "ln_final", None)
    module = getattr(norm, "original_component", norm)
    if module is None or isinstance(module, torch.nn.Identity):
        return FinalNorm(is_none=True)
    if not is_bridge(model):
        return FinalNorm(_as_weight(tensor_of(module, "w")), "RMS" not in type(module).__name__, model.cfg.eps)
    with loaded(module), torch.no_grad():
        parameter = next(module.parameters(), torch.zeros((), device=device_of(model), dtype=torch.float32))
        weight = tensor_of(module, "weight")
        eps = [getattr(module, name) for name in ("eps", "variance_epsilon") if hasattr(module, name)]
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(8, model.cfg.d_model, generator=generator, dtype=torch.float32, device="cpu")
        probe = (1 + noise).to(parameter.device, parameter.dtype)  # a mean of 1 shows whether the norm takes it away
        expected = (module(probe) - module(torch.zeros_like(probe))).float()
        candidates = [
            FinalNorm(_as_weight(weight) + offset, centres, *eps[:1])
            for offset in (0.0, 1.0)  # Gemma stores its weights minus 1
            for centres in (True, False)
        ]
        # The nearest, since large weights hardly differ from 1 more; it is near in half precision too.
        errors = [(candidate(probe.float()) - expected).norm() / expected.norm() for candidate in candidates]
        if min(errors) < _NEAR:
            return candidates[errors.index(min(errors))]
    raise NeuronShareError(
        f"The final norm of {name_of(model)}, a {type(module).__name__}, is neither a LayerNorm nor an RMSNorm; "
        'use norm="none".'
    )


def _as_weight(weight: Tensor | None) -> Tensor | float:
    return 1.0 if weight is None else weight.detach().float()

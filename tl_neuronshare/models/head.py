"""From the residual stream to the logits: the final norm and the unembedding."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.impact import NormFormula
from tl_neuronshare.models.layers import neuron_layers
from tl_neuronshare.models.lens import LensModel, device_of, is_bridge, loaded, name_of, tensor_of

_NEAR = 0.02


def unembedding(model: LensModel, tokens: Int[Tensor, " token"] | slice) -> Float[Tensor, "d_model token"]:
    """Return the unembedding's column for each of the tokens.

    Raises:
        NeuronShareError: the model has no unembedding.

    Examples:
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


def final_norm(model: LensModel) -> NormFormula:
    """Return the norm before the unembedding.

    Raises:
        NeuronShareError: the norm is neither a LayerNorm nor an RMSNorm.

    Examples:
        >>> final_norm(model).centres  # a LayerNorm
        True
    """
    norm = getattr(model, "ln_final", None)
    module = getattr(norm, "original_component", norm)
    if module is None or isinstance(module, nn.Identity):
        return NormFormula.times(1.0)
    formula = formula_of(model, module)
    if formula is None:
        raise NeuronShareError(
            f"The final norm of {name_of(model)}, a {type(module).__name__}, is neither a LayerNorm nor an RMSNorm; "
            'use norm="none".'
        )
    return formula


def formula_of(model: LensModel, module: nn.Module) -> NormFormula | None:
    """Return the formula of one of the model's norms of d_model numbers; None if it is not such a norm.

    A bridge's configuration does not say reliably what its norms are. So each formula is tried, and the one whose
    result is nearest to the module's is returned.
    """
    weight = tensor_of(module, "weight" if is_bridge(model) else "w")
    if weight is not None and weight.shape != (model.cfg.d_model,):
        return None
    if not is_bridge(model):
        return NormFormula(_as_weight(weight), "RMS" not in type(module).__name__, model.cfg.eps)
    with loaded(module), torch.no_grad():
        parameter = next(module.parameters(), torch.zeros((), device=device_of(model), dtype=torch.float32))
        weight = tensor_of(module, "weight")
        eps = [getattr(module, name) for name in ("eps", "variance_epsilon") if hasattr(module, name)]
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(8, model.cfg.d_model, generator=generator, dtype=torch.float32, device="cpu")
        probe = (1 + noise).to(parameter.device, parameter.dtype)  # a mean of 1 shows whether the norm takes it away
        expected = (module(probe) - module(torch.zeros_like(probe))).float()
        candidates = [
            NormFormula(_as_weight(weight) + offset, centres, *eps[:1])
            for offset in (0.0, 1.0)  # Gemma stores its weights minus 1
            for centres in (True, False)
        ]
        # The nearest, since large weights hardly differ from 1 more; it is near in half precision too.
        errors = [(candidate(probe.float()) - expected).norm() / expected.norm() for candidate in candidates]
        return candidates[errors.index(min(errors))] if min(errors) < _NEAR else None


def _as_weight(weight: Tensor | None) -> Tensor | float:
    return 1.0 if weight is None else weight.detach().float()

"""From what an MLP's neurons write to what the model adds to the residual stream.

Most models add it as it is. Gemma 2 and 3, OLMo 2 and 3, and others normalise it first; Granite and Falcon-H1 multiply
it. This is measured on the model at hand, since no configuration says it reliably.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_neuronshare.maths.impact import NormFormula
from tl_neuronshare.models.forward import reading
from tl_neuronshare.models.head import formula_of
from tl_neuronshare.models.hooks import Editing, hooked, without_hooks
from tl_neuronshare.models.inputs import Inputs
from tl_neuronshare.models.layers import neuron_layers
from tl_neuronshare.models.lens import LensModel, block_of, dtype_of, left_as_found, nested
from tl_neuronshare.models.neurons import NeuronHook, NeuronLayer, hooked_module
from tl_neuronshare.models.tokens import vocabulary_size

_N_TOKENS = 8
_ROWS = 32
_NEAR = 0.02  # of factors
_SCALE = 8.0  # half precision must see the change beside a large residual stream, and it must not overflow
_LEFT, _LEFT_IN_HALF = 1e-4, 0.02  # shares of squares, in float32 and in half precision
# Where Hugging Face's configurations keep the numbers by which an MLP's output is multiplied.
_MULTIPLIERS = ("residual_multiplier", "mlp_multipliers")


@dataclass(frozen=True)
class Added:
    """What happens to each layer's output between its MLP and the residual stream.

    Attributes:
        formulas: a norm after the MLP or a multiplier, for each layer; the identity where neither is there, and where
            it is not known what happens.
        change: what the model does besides adding the output, for messages; None if nothing.
        is_known: whether the formulas describe the change of every layer.
    """

    formulas: tuple[NormFormula, ...]
    change: str | None = None
    is_known: bool = True

    @property
    def unknown(self) -> str | None:
        """What the model does that the formulas do not describe; None if they describe it."""
        return None if self.is_known else self.change


def added_through(model: LensModel) -> Added:
    """Find what the model does to its MLPs' output before it adds it to the residual stream.

    In a short batch, each row has the values of a random half of one layer's neurons scaled. The change of the residual
    stream after that layer is compared with what follows from each formula: the output as it is, times a number, or
    through one of the norms of the block.

    Raises:
        NeuronShareError: an MLP has no W_out.

    Examples:
        >>> added_through(model).change is None
        True
    """
    layers = neuron_layers(model, "post")
    tokens = torch.arange(1, _N_TOKENS + 1, device="cpu").remainder(vocabulary_size(model))
    found: list[_Explained] = []
    with left_as_found(model), without_hooks(model):
        for start in range(0, len(layers), _ROWS):
            part = layers[start : start + _ROWS]
            for layer, changed in zip(part, _changed(model, part, tokens), strict=True):
                found.append(_explained(model, block_of(model, layer.hooks[0].name), changed))
    changes = [(each.is_known, number) for number, each in enumerate(found) if each.change is not None]
    change = None
    if changes:
        _, number = min(changes)  # the first that is not known, if there is one
        change = (found[number].change or "").format(layer=f"layer {number}")
    return Added(tuple(each.formula for each in found), change, all(each.is_known for each in found))


@dataclass(frozen=True)
class _Explained:
    """The formula of one layer, what it does to the output (None if nothing), and whether the formula is known."""

    formula: NormFormula
    change: str | None = None
    is_known: bool = True


@dataclass(frozen=True)
class _Changed:
    """What one layer's neurons write at the last token, without and with the edit, and how the residual changes."""

    before: Float[Tensor, " d_model"]
    after: Float[Tensor, " d_model"]
    residual: Float[Tensor, " d_model"]

    def by(self, formula: NormFormula) -> tuple[float, float]:
        """By which factor the residual changes more than the formula says, and what share of the change is left.

        What is left is the part of the change that is not a multiple of what the formula says.
        """
        formula = formula.to(self.before)
        expected = formula(self.after) - formula(self.before)
        factor = (self.residual * expected).sum() / expected.square().sum().clamp(min=1e-30)
        left = (self.residual - factor * expected).square().sum() / self.residual.square().sum().clamp(min=1e-30)
        return factor.item(), left.item()


def _changed(model: LensModel, layers: Sequence[NeuronLayer], tokens: Int[Tensor, " position"]) -> list[_Changed]:
    """Scale half of each layer's neurons in a row of its own, and note what they write and what changes."""
    written: dict[int, Tensor] = {}  # by each layer's neurons without and with the edit, from the last row
    changes: dict[int, Tensor] = {}  # of the residual stream after each layer, from the last row to the layer's own
    weighted = [layer.weighted() for layer in layers]
    generator = torch.Generator().manual_seed(0)
    factors = [
        torch.where(torch.rand(layer.width, generator=generator, device="cpu") < 0.5, _SCALE, 1.0) for layer in layers
    ]

    def note(row: int, tensors: tuple[Tensor, ...]) -> None:
        values = weighted[row].read(tensors, slice(-1, None))[0, -1].float()
        pair = torch.stack([values, values * factors[row].to(values.device)])
        written[row] = (pair @ layers[row].W_out().to(pair)).double().cpu()

    def scale(tensors: list[Tensor], *, row: int, neurons: NeuronHook, by: Tensor) -> Tensor:
        rows = torch.ones(len(layers) + 1, 1, len(by), dtype=by.dtype, device=by.device)
        rows[row] = by
        return tensors[-1] * neurons.like(rows.to(tensors[-1]), tensors)

    def keep(block: nn.Module, inputs: Any, output: Any, *, row: int) -> None:
        after = output if isinstance(output, Tensor) else output[0]
        changes[row] = (after[row, -1].double() - after[-1, -1].double()).cpu()

    edits = [
        hook
        for row, layer in enumerate(layers)
        for neurons, by in zip(layer.hooks, layer.split(factors[row]), strict=True)
        for hook in Editing(neurons.names, partial(scale, row=row, neurons=neurons, by=by)).hooks
    ]
    with ExitStack() as stack:
        for row, layer in enumerate(layers):
            stack.enter_context(hooked_module(block_of(model, layer.hooks[0].name), partial(keep, row=row)))
        run_once = stack.enter_context(reading(model, weighted, note))
        stack.enter_context(hooked(model, edits))
        run_once(Inputs(tokens.expand(len(layers) + 1, -1)))
    pairs = [written[row].unbind() for row in range(len(layers))]
    return [_Changed(before, after, changes[row]) for row, (before, after) in enumerate(pairs)]


def _explained(model: LensModel, block: nn.Module, changed: _Changed) -> _Explained:
    """Find the formula that explains how the residual stream changes after one layer."""
    as_it_is = NormFormula.times(1.0)
    factor, left = changed.by(as_it_is)
    if not (isfinite(factor) and isfinite(left)):
        change = "may change what its MLPs write: {layer} overflows in this dtype, which hides it"
        return _Explained(as_it_is, change, is_known=False)
    most = _LEFT if dtype_of(model) == torch.float32 else _LEFT_IN_HALF
    if left <= most and abs(factor) >= _NEAR:
        if abs(factor - 1) <= _NEAR:
            return _Explained(as_it_is)
        multiplier = _multiplier(model, factor)
        change = f"multiplies what its MLPs write ({{layer}}: by {factor:.3g})"
        formula = as_it_is if multiplier is None else NormFormula.times(multiplier)
        return _Explained(formula, change, is_known=multiplier is not None)
    change = "normalises what its MLPs write ({layer}), before or after it is added to the residual stream"
    norms = [norm for module in _norms_in(block) if (norm := formula_of(model, module)) is not None]
    fits = [(left, norm) for norm in norms for factor, left in [changed.by(norm)] if abs(factor - 1) <= _NEAR]
    left, norm = min(fits, key=lambda fit: fit[0], default=(1.0, as_it_is))
    if left > most:
        return _Explained(as_it_is, change, is_known=False)
    return _Explained(norm, "normalises what its MLPs write ({layer}) before it adds it to the residual stream")


def _norms_in(block: nn.Module) -> list[nn.Module]:
    """The modules of a block that may be norms, without a bridge's wrappers."""
    return [
        module
        for module in block.modules()
        if "norm" in type(module).__name__.lower() and not hasattr(module, "original_component")
    ]


def _multiplier(model: LensModel, factor: float) -> float | None:
    """The number of the configuration by which the outputs are multiplied; None if none of its numbers fits.

    A number that only the measurement shows may also multiply the residual stream after later layers.
    """
    config = nested(model, "original_model.config")
    numbers: list[Any] = []
    for name in _MULTIPLIERS:
        value = nested(config, name)
        numbers += value if isinstance(value, list | tuple) else [value]
    fits = [float(number) for number in numbers if isinstance(number, float) and abs(factor / number - 1) <= _NEAR]
    return fits[0] if fits else None

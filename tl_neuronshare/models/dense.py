"""Dense MLPs as layers of neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models.lens import dequantised, loaded, nested, tensor_of
from tl_neuronshare.models.neurons import (
    LinearWriter,
    NeuronHook,
    NeuronLayer,
    Site,
    hooked_module,
    no_output_weights,
    watched_module,
)
from tl_neuronshare.models.points import MLPS, mlp_of

# The names that gated MLPs in Hugging Face and in TransformerLens give to their activation function.
_ACTIVATION_NAMES = ("act_fn", "activation_fn", "act")


@dataclass(frozen=True)
class DenseWriter:
    """The down projection of a dense MLP.

    Attributes:
        mlp: TransformerLens's module of the MLP.
        width: how many neurons it has.
        source: the Hugging Face module, inside a bridge, that receives the same values (True) or returns them (False).
    """

    mlp: Any
    width: int
    source: tuple[nn.Module, bool] | None = None

    def W_out(self) -> Float[Tensor, "neuron d_model"]:  # noqa: N802
        """Return the output weights; quantised ones are dequantised."""
        with loaded(self.mlp):
            weights = _readable(self.mlp)
            if weights is None and (down := nested(_part(self.mlp, "out"), "original_component")) is not None:
                weights = dequantised(down)
            if weights is None:
                raise NeuronShareError(no_output_weights(f"{type(self.mlp).__name__} {getattr(self.mlp, 'name', '')}"))
            return weights.detach()

    @contextmanager
    def watched(self, zeroed: Bool[Tensor, " neuron"] | None) -> Iterator[list[Tensor]]:
        """Watch the input or the output of the Hugging Face module; nothing is collected where there is none."""
        if self.source is None:
            yield []
            return
        module, is_input = self.source
        with watched_module(module, is_input=is_input, zeroed=zeroed) as seen:
            yield seen

    @contextmanager
    def written(self) -> Iterator[list[Tensor]]:
        """Collect the output without its bias.

        It is that of the down projection where that runs as a module, since BLOOM's MLP also adds the residual stream.
        """
        seen: list[Tensor] = []
        has_run = False  # whether the down projection has run as a module in this forward pass

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            nonlocal has_run
            if module is not self.mlp or not has_run:
                with loaded(self.mlp):
                    bias = tensor_of(self.mlp, "b_out")
                    seen.append(output if bias is None else output - bias)
            has_run = module is not self.mlp

        with ExitStack() as stack:
            for module in (_part(self.mlp, "out"), self.mlp):
                if isinstance(module, nn.Module):
                    stack.enter_context(hooked_module(module, keep))
            yield seen


def dense(block: Any, name: str, site: Site, hooks: Mapping[str, Any]) -> NeuronLayer | None:
    """Return the neurons of an MLP, gated or not, whose hook holds all of them; None for other kinds.

    Raises:
        NeuronShareError: the MLP has no such site.
    """
    part = next((part for part in MLPS if f"{name}.{part}.hook_post" in hooks), None)
    if part is None:
        return None
    mlp, place = getattr(block, part), f"{name}.{part}"
    gated = f"{place}.hook_pre_linear" in hooks
    width, d_model = _size(mlp)
    has_gate = gated or _has_hidden_gate(mlp, width, d_model)
    if site != "post" and has_gate and not gated:
        raise hidden_gate(place)
    if site == "up" and not gated:
        raise no_gate(place)
    if site == "up":
        hook, source = NeuronHook(f"{place}.hook_pre_linear", width), _inside(mlp, "in", gives=True)
    elif site == "gate" and gated:
        hook = NeuronHook(f"{place}.hook_pre", width, activation_of(mlp, place))
        source = _inside_gate(mlp)
    else:
        hook, source = NeuronHook(f"{place}.hook_post", width), _inside(mlp, "out", gives=False)
    return NeuronLayer((hook,), (DenseWriter(mlp, width, source),))


def pointed(block: Any, name: str, site: Site, hooks: Mapping[str, Any]) -> NeuronLayer | None:
    """Return the neurons of an MLP that has a hook point of `models.points` at its down projection; None for others.

    Raises:
        NeuronShareError: the MLP has no such site.
    """
    found = mlp_of(block) if f"{name}.down.hook_post" in hooks else None
    if found is None:
        return None
    mlp, down = found
    if site != "post" and (hasattr(mlp, "gate_proj") or hasattr(mlp, "gate_up_proj")):
        raise hidden_gate(name)
    if site == "up":
        raise no_gate(name)
    width = int(down.in_features)
    return NeuronLayer((NeuronHook(f"{name}.down.hook_post", width),), (LinearWriter(down, width),))


def hidden_gate(place: str) -> NeuronShareError:
    """Return the error for a gate that cannot be read."""
    return NeuronShareError(f'{place} has a gate, but no hook for it (see model.hook_dict); use site="post".')


def no_gate(place: str) -> NeuronShareError:
    """Return the error for an up branch that does not exist."""
    return NeuronShareError(f'{place} has no gate, and so no up branch; use site="post".')


def activation_of(mlp: Any, name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation function of a gated MLP, read off its module: cfg.act_fn is wrong for many models."""
    for holder in (mlp, getattr(mlp, "original_component", None)):
        for attribute in _ACTIVATION_NAMES:
            function = getattr(holder, attribute, None)
            if callable(function):
                # Falcon-H1 scales the gate before it is activated, and some layers of Gemma 3n keep only the largest.
                scale = getattr(holder, "gate_multiplier", 1.0)
                sparsity = nested(holder, "activation_sparsity")
                cut: Any = nested(holder, "_gaussian_topk") if sparsity else lambda gate: gate
                return lambda gate: function(cut(gate * scale))
    raise NeuronShareError(f'{name} does not say what its activation function is; use site="post".')


def _size(mlp: Any) -> tuple[int, int]:
    """Return how many neurons an MLP has and how many numbers it writes; quantised weights have no shape to tell."""
    down = nested(_part(mlp, "out"), "original_component")
    with loaded(mlp):
        weights = _readable(mlp)
    if weights is None and hasattr(down, "in_features"):
        return int(down.in_features), int(down.out_features)
    width, d_model = DenseWriter(mlp, 0).W_out().shape
    return width, d_model


def _readable(mlp: Any) -> Float[Tensor, "neuron d_model"] | None:
    """Return the output weights as TransformerLens gives them; None if it cannot read them."""
    weights = tensor_of(mlp, "W_out")
    return weights if weights is not None and weights.ndim == 2 and weights.is_floating_point() else None


def _has_hidden_gate(mlp: Any, width: int, d_model: int) -> bool:
    """Return whether an MLP computes more than one number for each neuron, though it has no hook for a gate.

    Without a gate, the map into the neurons has one output for each neuron.
    """
    parts = getattr(nested(mlp, "original_component"), "_modules", {}).values()
    # RWKV's receptance, which weighs what the MLP writes, is a map from d_model to d_model.
    n_vectors = sum(n for part in parts if (n := _n_weights(part) // d_model) >= width)
    return n_vectors > 2 * width  # each neuron has one in the map into the neurons and one in the map out of them


def _n_weights(part: Any) -> int:
    """Return how many weights a linear map has, quantised or not; 0 for other modules."""
    sizes = nested(part, "in_features"), nested(part, "out_features")
    weight = tensor_of(part, "weight")
    if weight is None or weight.ndim != 2:
        return 0
    return weight.numel() if weight.is_floating_point() or None in sizes else int(sizes[0] * sizes[1])


def _part(mlp: Any, name: str) -> Any:
    """Return one of a bridge's projections; a dense layer between mixtures of experts has other names for them."""
    return nested(mlp, f"dense_{name}") or nested(mlp, name)


def _inside(mlp: Any, name: str, *, gives: bool) -> tuple[nn.Module, bool] | None:
    """Return the Hugging Face module of a bridge's projection, and whether the values are its input; None if absent."""
    module = nested(_part(mlp, name), "original_component")
    return None if module is None else (module, not gives)


def _inside_gate(mlp: Any) -> tuple[nn.Module, bool] | None:
    """Return the Hugging Face module of a bridge whose output is the activated gate; None where there is none."""
    owner = nested(mlp, "original_component")
    functions = (getattr(owner, name, None) for name in _ACTIVATION_NAMES)
    module = next((function for function in functions if function is not None), None)
    return (module, False) if isinstance(module, nn.Module) else None

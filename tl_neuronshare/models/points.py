"""Hook points where TransformerLens has none: inside the experts of a mixture, and at some down projections.

`install` gives a model's modules of these kinds a class that is derived from their own and calls hook points. These are
in `model.hook_dict` like all others, so they work in `run_with_cache`, `run_with_hooks` and `generate`:

`blocks.N.routed.hook_index` has the experts of each token [token, slot], `blocks.N.routed.hook_weights` their weights,
and `blocks.N.routed.hook_post` the values of their neurons [token, slot, neuron of the expert]. Gated experts also have
`hook_pre` (the gate before its activation) and `hook_pre_linear` (the up branch). Tokens are those of all rows, row by
row. `blocks.N.shared.hook_post` is the input of a shared expert's down projection, and
`blocks.N.down.hook_post` that of an MLP's in a block that TransformerLens runs as a whole.

As long as nothing is hooked there, the modules compute what they did before, in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from tl_neuronshare.models.lens import LensModel, blocks_of, is_bridge, tensor_of

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint

_POINTS = ("hook_index", "hook_weights", "hook_pre", "hook_pre_linear", "hook_post")
# The names that TransformerLens gives to a block's MLP.
MLPS = ("mlp", "shared_mlp", "channel_mix")
# The names that mixtures give to the expert that every token uses, and those of its down projection.
SHARED = ("shared_experts", "shared_expert", "shared_mlp")
_DOWN = ("down_proj", "output_linear", "w2")


class _Pointed(nn.Module):
    """A module with hook points of ours, which TransformerLens does not know."""

    def is_hooked(self) -> bool:
        """Return whether a hook is on one of the points."""
        return any(_has_hooks(self._modules[name]) for name in _POINTS if name in self._modules)


class PointedLinear(_Pointed):
    """A down projection with a hook point at its input."""

    hook_post: HookPoint

    def forward(self, values: Tensor) -> Any:
        """Project the values that the hook point hands on."""
        return super().forward(self.hook_post(values))


class PointedExperts(_Pointed):
    """Experts that are computed in one grouped product, with hook points for their routing and their neurons.

    Transformers runs them sorted by expert (`grouped_mm`) or by token (`batched_mm`), and calls `_apply_gate` (or the
    activation function of experts without a gate) once for all of them. Its other ways to run experts do not; while
    something is hooked, `grouped_mm` is used instead of these.
    """

    hook_index: HookPoint
    hook_weights: HookPoint
    hook_post: HookPoint
    config: Any
    n_slots: int
    order: Int[Tensor, " row"] | None  # which row of [token, slot] each computed row is; None: they are in this order
    is_running: bool = False  # whether hook points are to be called

    @property
    def hooked_implementation(self) -> str:
        """How the experts run while something is hooked; torch has no grouped product in double precision."""
        is_double = any(parameter.dtype == torch.float64 for parameter in self.parameters())
        return "batched_mm" if is_double or self.config._experts_implementation == "batched_mm" else "grouped_mm"

    def forward(self, *args: Any, **options: Any) -> Any:
        """Run the experts, and call the hook points if something is hooked there."""
        if not self.is_hooked():
            return super().forward(*args, **options)
        from transformers.integrations.moe import batched_mm_experts_forward, grouped_mm_experts_forward

        states, index, weights = (*args, *options.values())
        index, weights = self.hook_index(index), self.hook_weights(weights)
        self.n_slots, self.order = index.shape[-1], None
        run = batched_mm_experts_forward
        if self.hooked_implementation == "grouped_mm":
            # The same call as in `grouped_mm`, so that equal experts are in the same order.
            self.order, run = torch.sort(index.reshape(-1)).indices, grouped_mm_experts_forward
        self.is_running = True
        try:
            return run(self, states, index, weights)
        finally:
            self.is_running, self.order = False, None

    def at(self, name: str, rows: Shaped[Tensor, "row neuron"]) -> Shaped[Tensor, "row neuron"]:
        """Call a hook point with computed rows, in the order of tokens and slots, and return them as they came."""
        point: Any = self._modules[name]
        if not self.is_running or not _has_hooks(point):
            return rows
        if self.order is None:
            given = rows
        else:
            back = torch.empty_like(self.order)
            back[self.order] = torch.arange(len(self.order), device=back.device)
            given = rows[back]
        given = rearrange(given, "(token slot) neuron -> token slot neuron", slot=self.n_slots)
        returned: Tensor = point(given)
        if returned is given:
            return rows
        edited = rearrange(returned, "token slot neuron -> (token slot) neuron")
        return edited if self.order is None else edited[self.order]


class PointedGatedExperts(PointedExperts):
    """Experts with a gate."""

    def _apply_gate(self, rows: Float[Tensor, "row two_neurons"]) -> Float[Tensor, "row neuron"]:
        if "hook_pre" in self._modules:
            gate, up = rows.chunk(2, dim=-1)
            hooked = self.at("hook_pre", gate), self.at("hook_pre_linear", up)
            if hooked[0] is not gate or hooked[1] is not up:
                rows = torch.cat(hooked, dim=-1)
        post: Tensor = super()._apply_gate(rows)  # type: ignore[misc]  # the derived class has it
        return self.at("hook_post", post)


class PointedUngatedExperts(PointedExperts):
    """Experts without a gate, whose neurons are the output of the activation function."""

    @property
    def act_fn(self) -> Any:
        """The activation function; while something is hooked, it calls the hook point."""
        function = self._modules["act_fn"]
        return (lambda rows: self.at("hook_post", function(rows))) if self.is_running else function  # type: ignore[misc]


class PointedDenseExperts(_Pointed):
    """The experts of Llama 4, which all compute all tokens, whose input is zero where they are not routed to."""

    hook_index: HookPoint
    hook_weights: HookPoint
    hook_pre: HookPoint
    hook_pre_linear: HookPoint
    hook_post: HookPoint
    act_fn: Any
    n_slots: int

    def forward(self, states: Float[Tensor, "expert_token d_model"]) -> Any:
        """Run the experts; call the hook points if something is hooked there, and then compute step by step."""
        if not self.is_hooked():
            return super().forward(states)
        into, out = tensor_of(self, "gate_up_proj"), tensor_of(self, "down_proj")
        assert into is not None
        assert out is not None
        states = rearrange(states, "(expert token) d_model -> expert token d_model", expert=len(into))
        is_routed = states.detach().ne(0).any(-1).T  # token, expert
        index = self.hook_index(is_routed.int().topk(self.n_slots, dim=-1).indices)
        # The routing weight multiplies the input, so that what is written is not weighted again.
        self.hook_weights(torch.ones_like(index, dtype=states.dtype))
        token = torch.arange(len(index), device=index.device)[:, None]

        def at(point: Any, of_all: Tensor) -> Tensor:
            given = of_all[index, token]
            returned = point(given)
            return of_all if returned is given else of_all.index_put((index, token), returned)

        before, up = torch.bmm(states, into).chunk(2, dim=-1)
        before, up = at(self.hook_pre, before), at(self.hook_pre_linear, up)
        post = at(self.hook_post, up * self.act_fn(before))
        return rearrange(torch.bmm(post, out), "expert token d_model -> (expert token) d_model")


def _has_hooks(point: Any) -> bool:
    """Return whether anybody hooks a point."""
    return bool(point._forward_hooks or point._forward_pre_hooks or point._backward_hooks)


def install(model: LensModel) -> None:
    """Give a bridge's experts hook points, and shared experts that have none; a second time it has no effect."""
    registry: dict[str, HookPoint] | None = getattr(model, "_hook_registry", None)
    if not is_bridge(model) or registry is None:
        return
    for name, block in blocks_of(model):
        experts = experts_of(block)
        kind = None if experts is None else _kind_of(experts)
        if experts is None or kind is None:
            if not _has_mlp_hooks(block) and (mlp := mlp_of(block)) is not None:
                _add(mlp[1], PointedLinear, f"{name}.down", registry)
            continue
        _add(experts, kind, f"{name}.routed", registry)
        if isinstance(experts, PointedDenseExperts):
            owner: Any = next(module for module in block.modules() if experts in module.children())
            experts.n_slots = owner.top_k
        shared = shared_of(block)
        if shared is not None and "_original_component" not in (down := down_of(shared))._modules:
            _add(down, PointedLinear, f"{name}.shared", registry)


@contextmanager
def plainly(hugging_face: nn.Module) -> Iterator[None]:
    """Run experts one after the other, as Hugging Face's plainest code does, for as long as the context lasts.

    In half precision they run as they do while something is hooked. Otherwise rounding would send some tokens to
    different experts, and a comparison would find large differences where nothing is wrong.
    """
    seen: set[int] = set()
    with ExitStack() as stack:
        for module in hugging_face.modules():
            if isinstance(module, PointedExperts) and id(module.config) not in seen:
                seen.add(id(module.config))
                implementation = module.config._experts_implementation
                stack.callback(setattr, module.config, "_experts_implementation", implementation)
                is_half = any(parameter.element_size() < 4 for parameter in module.parameters())
                module.config._experts_implementation = module.hooked_implementation if is_half else "eager"
        yield


def _has_mlp_hooks(block: nn.Module) -> bool:
    """Return whether TransformerLens has a component of its own for the block's MLP."""
    return any(isinstance(getattr(block, name, None), nn.Module) for name in MLPS)


def mlp_of(block: nn.Module) -> tuple[nn.Module, Any] | None:
    """Return the MLP of a block that TransformerLens runs as a whole, and its down projection; None without one."""
    for module in block.modules():
        down = getattr(module, "down_proj", None)
        if isinstance(down, nn.Linear) and any(hasattr(module, name) for name in ("up_proj", "gate_up_proj")):
            return module, down
    return None


def experts_of(block: nn.Module) -> nn.Module | None:
    """Return the module of a block's routed experts, whose weights are stacked; None if there is none of this kind."""
    return next((module for module in block.modules() if _kind_of(module) is not None), None)


def shared_of(block: nn.Module) -> nn.Module | None:
    """Return Hugging Face's module of the expert that every token of a mixture uses; None if there is none."""
    for module in block.modules():
        for name in SHARED:
            if isinstance(found := getattr(module, name, None), nn.Module):
                return original(found)
    return None


def down_of(mlp: nn.Module) -> nn.Module:
    """Return the down projection of one of Hugging Face's MLPs."""
    return next(found for name in _DOWN if isinstance(found := getattr(mlp, name, None), nn.Module))


def original(module: nn.Module) -> nn.Module:
    """Return Hugging Face's module inside a bridge's component, or the module itself."""
    inside = module._modules.get("_original_component")
    return module if inside is None else inside


def _kind_of(module: nn.Module) -> type[_Pointed] | None:
    """Return which of the classes above a module of experts needs; None for other modules."""
    if isinstance(module, PointedLinear):
        return None
    if isinstance(module, _Pointed):
        return next(base for base in type(module).__mro__ if base.__module__ == __name__)
    weights = tensor_of(module, "down_proj")
    if weights is None or weights.ndim != 3:
        return None
    if hasattr(type(module), "_apply_gate") and hasattr(module, "has_gate"):
        return PointedGatedExperts if module.has_gate else PointedUngatedExperts
    return PointedDenseExperts if type(module).__name__ == "Llama4TextExperts" else None


def _add(module: nn.Module, kind: type[_Pointed], prefix: str, registry: dict[str, HookPoint]) -> None:
    """Derive the module's class from `kind` too, and register its hook points under their names."""
    from transformer_lens.hook_points import HookPoint

    own = type(module)
    if not isinstance(module, kind):
        for name in _names(module, kind):
            module.add_module(name, HookPoint())
        # It keeps its name and package, since it is still that class for whoever looks at the model.
        module.__class__ = type(own.__name__, (kind, own), {"__module__": own.__module__, "__doc__": own.__doc__})
        if "_old_forward" in vars(module):  # accelerate calls the method that it found, and not the class's
            vars(module)["_old_forward"] = MethodType(type(module).forward, module)
    for name in _POINTS:
        point: Any = module._modules.get(name)
        if point is not None:
            point.name = f"{prefix}.{name}"
            registry[point.name] = point


def _names(module: nn.Module, kind: type[_Pointed]) -> tuple[str, ...]:
    """Return the names of the hook points that a module gets."""
    if kind is PointedLinear:
        return ("hook_post",)
    from transformers.integrations.moe import _default_apply_gate

    own_gate = getattr(type(module), "_apply_gate", None)
    has_factors = kind is PointedDenseExperts or (kind is PointedGatedExperts and own_gate is _default_apply_gate)
    return _POINTS if has_factors else tuple(name for name in _POINTS if not name.startswith("hook_pre"))

"""Mixtures of experts as layers of neurons.

A neuron is one coordinate of one expert. Neuron j of expert e has the place e * (neurons of an expert) + j in its
layer; those of a shared expert, which every token uses, follow. The neurons of experts that a token is not routed to
are not computed for it, so they are not activated. Values are read at the hook points of `points.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models.dense import activation_of, dense, hidden_gate, no_gate
from tl_neuronshare.models.lens import loaded, tensor_of
from tl_neuronshare.models.neurons import (
    LinearWriter,
    NeuronHook,
    NeuronLayer,
    Places,
    Site,
    hooked_module,
    no_output_weights,
)
from tl_neuronshare.models.points import (
    SHARED,
    PointedUngatedExperts,
    down_of,
    experts_of,
    original,
    shared_of,
)

_HOOKS = {"post": "hook_post", "gate": "hook_pre", "up": "hook_pre_linear"}


@dataclass(frozen=True)
class RoutedHook(NeuronHook):
    """The neurons of all routed experts, in a tensor [token, slot, neuron of the expert] of those that are computed.

    Its context is the block's input, which has rows and positions, and the experts of each token [token, slot]; if the
    values are to be weighted, also the routing weights.

    Attributes:
        n_experts: how many experts there are.
        is_weighted: whether values are multiplied by the routing weight.
    """

    n_experts: int = 0
    is_weighted: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all hook points that are needed, the one with the values last."""
        weights = (self.context[1].replace("hook_index", "hook_weights"),) if self.is_weighted else ()
        return (*self.context, *weights, self.name)

    def shape(self, tensors: Sequence[Tensor]) -> tuple[int, int] | None:
        """Return how many rows and positions the block's input has; None where the other tensors do not fit it."""
        block, index, *_, values = tensors
        tokens = block.shape[0] * block.shape[1]
        fits = index.shape == values.shape[:2] and values.shape[::2] == (tokens, self.width // self.n_experts)
        return (block.shape[0], block.shape[1]) if fits else None

    def read(
        self, tensors: Sequence[Tensor], places: Places = ..., *, absent: float = 0.0
    ) -> Float[Tensor, "*places neuron"]:
        """Return the values of all experts' neurons; `absent` where the token is not routed to the expert."""
        index = _by_place(tensors, tensors[1])[places]
        values = _by_place(tensors, tensors[-1])[places]
        if self.activation is not None:
            values = self.activation(values)
        if self.is_weighted:
            values = values * _by_place(tensors, tensors[2])[places].unsqueeze(-1)
        spread = values.new_full((*index.shape[:-1], self.n_experts, values.shape[-1]), absent)
        spread.scatter_(-2, index.unsqueeze(-1).expand(values.shape), values)
        return rearrange(spread, "... expert neuron -> ... (expert neuron)")

    def like(
        self, by_neuron: Shaped[Tensor, "#row #position #neuron"], tensors: Sequence[Tensor]
    ) -> Shaped[Tensor, "#token #slot #expert_neuron"]:
        """Lay out entries for [row, position, neuron] as [token, slot, neuron of the expert]."""
        index = _by_place(tensors, tensors[1])
        n_rows, n_positions, _ = index.shape
        if by_neuron.shape[-1] == 1:
            return by_neuron.expand(n_rows, n_positions, 1).reshape(-1, 1, 1)
        entries = rearrange(by_neuron, "... (expert neuron) -> ... expert neuron", expert=self.n_experts)
        row = torch.arange(n_rows, device=index.device)[:, None, None] * (len(entries) > 1)
        position = torch.arange(n_positions, device=index.device)[None, :, None] * (entries.shape[1] > 1)
        chosen = entries.to(index.device)[row, position, index]
        return rearrange(chosen, "row position slot neuron -> (row position) slot neuron")

    def routed(self, tensors: Sequence[Tensor], places: Places = ...) -> Bool[Tensor, "*places expert"]:
        """Return which experts the tokens are routed to."""
        index = _by_place(tensors, tensors[1])[places]
        experts = index.new_zeros((*index.shape[:-1], self.n_experts), dtype=torch.bool)
        return experts.scatter(-1, index, value=True)

    def n_computed(self, tensors: Sequence[Tensor]) -> int:
        """Return how many neurons the experts of one token have together."""
        return tensors[-1].shape[1] * tensors[-1].shape[2]

    def weighted(self) -> NeuronHook:
        """Return the hook that reads values times routing weights."""
        return replace(self, is_weighted=True)


def _by_place(tensors: Sequence[Tensor], of_token: Shaped[Tensor, "token ..."]) -> Shaped[Tensor, "row position ..."]:
    """Give a tensor of all tokens the rows and positions of the first tensor, the block's input."""
    entries: Tensor = rearrange(of_token, "(row position) ... -> row position ...", row=len(tensors[0]))
    return entries


@dataclass(frozen=True)
class SharedHook(NeuronHook):
    """The neurons of an expert that every token uses, in a tensor [token, neuron]; its context is the block's input.

    Attributes:
        gate: the hook point of the gate that weighs the expert, before its sigmoid; None where there is none.
        is_weighted: whether values are multiplied by that gate.
    """

    gate: str | None = None
    is_weighted: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all hook points that are needed, the one with the values last."""
        gate = (self.gate,) if self.gate is not None and self.is_weighted else ()
        return (*self.context, *gate, self.name)

    def shape(self, tensors: Sequence[Tensor]) -> tuple[int, int] | None:
        """Return how many rows and positions the block's input has; None where the values do not fit it."""
        n_rows, n_positions, _ = tensors[0].shape
        return (n_rows, n_positions) if tensors[-1].numel() == n_rows * n_positions * self.width else None

    def read(
        self, tensors: Sequence[Tensor], places: Places = ..., *, absent: float = 0.0
    ) -> Float[Tensor, "*places neuron"]:
        """Return the neurons' values; each token has all of them."""
        shape = tensors[0].shape[:2]
        values = tensors[-1].reshape(*shape, self.width)[places]
        if self.activation is not None:
            values = self.activation(values)
        return values * tensors[1].reshape(*shape, 1)[places].sigmoid() if len(self.names) == 3 else values

    def like(
        self, by_neuron: Shaped[Tensor, "#row #position #neuron"], tensors: Sequence[Tensor]
    ) -> Shaped[Tensor, ...]:
        """Lay out entries for [row, position, neuron] as the tensor is."""
        if tensors[-1].ndim == 3:
            return by_neuron
        return by_neuron.expand(*tensors[0].shape[:2], by_neuron.shape[-1]).flatten(0, 1)

    def weighted(self) -> NeuronHook:
        """Return the hook that reads values times the gate."""
        return replace(self, is_weighted=True)


@dataclass(frozen=True)
class ExpertsWriter:
    """Routed experts whose weights are stacked in one tensor for each projection.

    Attributes:
        experts: Hugging Face's module.
        width: how many neurons all experts have together.
        is_watched: whether the values that are read are those of the neurons, and not of a gate or an up branch.
    """

    experts: Any
    width: int
    is_watched: bool = True

    def W_out(self) -> Float[Tensor, "neuron d_model"]:  # noqa: N802
        """Return the output weights of all experts, one below the other."""
        with loaded(self.experts):
            weights = tensor_of(self.experts, "down_proj")
            is_plain = weights is not None and weights.is_floating_point() and not weights.is_meta
            if weights is None or not is_plain or getattr(self.experts, "has_post_expert_norm", False):
                raise NeuronShareError(no_output_weights(type(self.experts).__name__))
            by_expert = (weights if is_transposed(self.experts) else weights.mT).detach()
            return rearrange(by_expert, "expert neuron d_model -> (expert neuron) d_model")

    @contextmanager
    def watched(self, zeroed: Bool[Tensor, " neuron"] | None) -> Iterator[list[Tensor]]:
        """Compute each token's neurons expert by expert from the module's input, and zero neurons by their weights.

        A neuron whose output weights are zero has the same effect as one whose value is zero.
        """
        seen: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            with loaded(module):
                seen.append(self._expert_by_expert(*inputs))

        weights = tensor_of(self.experts, "down_proj")
        if weights is None or (zeroed is None and not self.is_watched):
            yield seen
            return
        if zeroed is not None and weights.is_meta:
            raise NeuronShareError(
                "The weights of the experts are on disk or offloaded to the CPU, where an edit cannot be compared with "
                "Hugging Face's; load the model without offloading its experts, or with verify=False."
            )
        with hooked_module(self.experts, keep), ExitStack() as stack:
            if zeroed is not None:
                by_expert = rearrange(zeroed.to(weights.device), "(e n) -> e n 1", e=len(weights))
                where = by_expert if is_transposed(self.experts) else by_expert.mT
                stack.callback(self.experts._parameters.__setitem__, "down_proj", weights)
                self.experts._parameters["down_proj"] = nn.Parameter(
                    weights.detach().masked_fill(where, 0), requires_grad=False
                )
            yield seen

    @contextmanager
    def written(self) -> Iterator[list[Tensor]]:
        """Collect the module's output without the experts' biases."""
        seen: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            with loaded(module):
                bias = tensor_of(module, "down_proj_bias")
                if bias is not None:
                    _, index, weights = inputs
                    output = output - (bias[index] * weights[..., None]).sum(1)
            if len(inputs) == 1:  # Llama 4 gives what each expert writes
                n_experts = self.experts.num_experts
                output = rearrange(output, "(expert token) d_model -> expert token d_model", expert=n_experts).sum(0)
            seen.append(output)

        with hooked_module(self.experts, keep):
            yield seen

    def _expert_by_expert(
        self, states: Float[Tensor, "row d_model"], index: Any = None, weights: Any = None
    ) -> Float[Tensor, "token neuron"]:
        """Compute the neurons of one expert after the other, token by token; 0 where a token is not routed there."""
        into = tensor_of(self.experts, "gate_up_proj")
        into = tensor_of(self.experts, "up_proj") if into is None else into
        bias = tensor_of(self.experts, "gate_up_proj_bias")
        if into is None:
            raise NeuronShareError(f"The experts ({type(self.experts).__name__}) have no input weights that are known.")
        gate = getattr(self.experts, "_apply_gate", None) if getattr(self.experts, "has_gate", False) else None
        if index is None:  # Llama 4: the input of each expert in turn, which is zero for other tokens
            by_expert = rearrange(states, "(expert token) d_model -> expert token d_model", expert=len(into))
            before, up = (by_expert @ into).chunk(2, dim=-1)
            of_each: Tensor = self.experts.act_fn(before) * up
            return rearrange(of_each, "expert token neuron -> token (expert neuron)")
        values = states.new_zeros(len(states), len(into), self.width // len(into))
        for token, expert in ((token, int(e)) for token, row in enumerate(index) for e in row):
            one = states[token] @ (into[expert] if is_transposed(self.experts) else into[expert].T)
            if bias is not None:
                one = one + bias[expert]
            values[token, expert] = self.experts.act_fn(one) if gate is None else gate(one[None])[0]
        return rearrange(values, "token expert neuron -> token (expert neuron)")


@dataclass(frozen=True)
class SharedWriter(LinearWriter):
    """A shared expert, which may be weighed by a gate.

    Attributes:
        block: the module whose output is the sum of what the routed experts and the shared one write.
        routed: the writer of the routed experts.
    """

    block: Any = None
    routed: Any = None

    @contextmanager
    def written(self) -> Iterator[list[Tensor]]:
        """Collect the difference of the block's output and what the routed experts write."""
        seen: list[Tensor] = []
        with ExitStack() as stack:
            of_routed = stack.enter_context(self.routed.written())

            def keep(module: nn.Module, inputs: Any, output: Any) -> None:
                total: Tensor = output[0] if isinstance(output, tuple) else output
                seen.append(total.reshape(of_routed[-1].shape) - of_routed[-1])

            stack.enter_context(hooked_module(self.block, keep))
            yield seen


def mixture(block: nn.Module, name: str, site: Site, hooks: Mapping[str, Any]) -> NeuronLayer | None:
    """Return the neurons of a mixture of experts, and of an MLP beside the experts; None for a block without experts.

    Raises:
        NeuronShareError: the experts' neurons cannot be read.
    """
    if f"{name}.routed.hook_index" not in hooks:
        _refuse_other_mixtures(block, name, hooks)
        return None
    experts: Any = experts_of(block)
    if getattr(experts, "_is_expert_parallel", False):
        raise NeuronShareError(f"The experts of {name} are spread over several processes; load the model in one.")
    has_gate = not isinstance(experts, PointedUngatedExperts)
    if site == "up" and not has_gate:
        raise no_gate(f"{name}.routed")
    if site == "gate" and not has_gate:
        site = "post"
    if f"{name}.routed.{_HOOKS[site]}" not in hooks:
        raise hidden_gate(f"{name}.routed")
    n_experts, width = len(experts.down_proj), experts.down_proj.shape[1 if is_transposed(experts) else 2]
    writer = ExpertsWriter(experts, n_experts * width, is_watched=site == "post")
    # Some blocks keep several residual streams, so that the input of the mixture says better what rows there are.
    before = next(point for point in (f"{name}.mlp.hook_in", f"{name}.hook_in") if point in hooks)
    hook = RoutedHook(
        f"{name}.routed.{_HOOKS[site]}",
        writer.width,
        activation_of(experts, f"{name}.routed") if site == "gate" else None,
        (before, f"{name}.routed.hook_index"),
        n_experts,
    )
    routed = NeuronLayer((hook,), (writer,), (n_experts, width))
    beside = _shared(block, name, site, hooks, routed)
    if beside is None and not _is_inside(experts, getattr(block, "mlp", None)):
        beside = dense(block, name, site, hooks)
    if beside is None:
        return routed
    return replace(routed, hooks=(hook, *beside.hooks), writers=(writer, *beside.writers))


def _refuse_other_mixtures(block: Any, name: str, hooks: Mapping[str, Any]) -> None:
    """Refuse a mixture whose `hook_post` holds the output of the block, or whose experts are not stacked."""
    if f"{name}.mlp.experts.0.hook_post" in hooks:
        raise NeuronShareError(
            f"{name}.mlp is a mixture of experts in a HookedTransformer, whose neurons are not read here; "
            'load the model with backend="bridge".'
        )
    post = hooks.get(f"{name}.mlp.hook_post")
    if post is not None and hooks.get(f"{name}.mlp.hook_out") is post:
        kind = type(original(block.mlp)).__name__
        raise NeuronShareError(
            f"{name}.mlp is a mixture of experts of a kind that is not known here ({kind}), so that its neurons cannot "
            "be read; docs/models.md lists the kinds that can."
        )


def is_transposed(experts: Any) -> bool:
    """Return whether an expert's weights are kept as [input, output]."""
    return bool(getattr(experts, "is_transposed", True))  # Llama 4 does not say; it is


def _is_inside(module: nn.Module, owner: Any) -> bool:
    """Return whether a module is a part of another, at any depth."""
    return isinstance(owner, nn.Module) and any(part is module for part in owner.modules())


def _shared(block: Any, name: str, site: Site, hooks: Mapping[str, Any], routed: NeuronLayer) -> NeuronLayer | None:
    """Return the neurons of the expert that every token uses beside the routed ones; None if there is none."""
    mlp = shared_of(block)
    if mlp is None:
        return None
    names = [f"{name}.{where}{attribute}.{_HOOKS[site]}" for where in ("mlp.", "") for attribute in SHARED]
    point = next((each for each in (*names, f"{name}.shared.{_HOOKS[site]}") if each in hooks), None)
    if point is None:
        raise hidden_gate(f"The shared expert of {name}")
    linear = original(down_of(mlp))
    weights = tensor_of(linear, "weight")
    width = int(getattr(linear, "in_features", 0) or (0 if weights is None else weights.shape[-1]))
    gate = f"{name}.mlp.shared_expert_gate.hook_out"
    hook = SharedHook(
        point,
        width,
        activation_of(mlp, name) if site == "gate" else None,
        routed.hooks[0].context[:1],
        gate if gate in hooks else None,
    )
    experts: Any = routed.writers[0]
    is_post = site == "post"
    inside = _is_inside(experts.experts, getattr(block, "mlp", None))
    writer = (
        SharedWriter(linear, width, is_post, block.mlp, experts) if inside else LinearWriter(linear, width, is_post)
    )
    return NeuronLayer((hook,), (writer,))

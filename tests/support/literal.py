"""The neurons of any Hugging Face language model, read and edited with torch hooks, without this package.

One unpadded prompt at a time. A dense MLP is the input of its down projection. Experts are computed one by one from the
weights of their module, for each token that is routed to them; what they write must then add up to the module's output.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

_DOWN = (
    "down_proj",
    "fc2",
    "w2",
    "wo",
    "Wo",
    "c_proj",
    "dense_4h_to_h",
    "fc_out",
    "output_linear",
    "output.dense",
    "feed_forward.value",
)
_NOT_MLP = re.compile(r"attn|attention|temporal_block|mamba|\bconv\b|vision|visual|audio|image|tower|vqmodel|projector")
_ACTIVATIONS = ("act_fn", "activation_fn", "activation", "act", "hidden_act", "intermediate_act_fn")
_ACTED = "what the activation function gives"
_UP = ("up_proj", "wi_1", "w3", "fc3")
_SAME = {"rtol": 1e-4, "atol": 1e-5}


class NoReferenceError(Exception):
    """The literal reading does not know this module."""


@dataclass
class Read:
    """What a part did in one forward pass: each tensor is [token, neuron], and 0 where a token is not routed."""

    post: Tensor
    gate: Tensor | None = None
    up: Tensor | None = None
    weight: Tensor | float = 1.0  # the routing weight
    is_known: bool = True  # whether gate and up were found where there are some


class Dense:
    """An MLP that ends in one linear map, the module `down`."""

    def __init__(self, name: str, down: nn.Module, parent: nn.Module, scale: nn.Module | None = None) -> None:
        self.name, self.down, self.parent = name, down, parent
        self.scale = scale  # gives the logit of a factor, one a token: Qwen's gate of the shared expert
        self.reads: list[Read] = []
        self.mask: Tensor | None = None
        self.nudge: Tensor | None = None  # is added to what the MLP writes
        self._branches: dict[str, Tensor] = {}

    @property
    def W_out(self) -> Tensor:  # noqa: N802
        weight = self.down.weight.detach()
        return weight if isinstance(self.down, Conv1D) else weight.T

    @property
    def width(self) -> int:
        return self.W_out.shape[0]

    def hook(self) -> Iterator[Any]:
        yield self.down.register_forward_pre_hook(self._read)
        yield self.down.register_forward_hook(self._nudge)
        for name in _ACTIVATIONS:
            if isinstance(act := getattr(self.parent, name, None), nn.Module):
                yield act.register_forward_hook(lambda _m, _i, out: self._branches.update({_ACTED: out}))
        for name, module in self.parent.named_children():
            if module is not self.down and isinstance(module, nn.Linear | Conv1D):
                yield module.register_forward_hook(lambda _m, _i, out, name=name: self._branches.update({name: out}))
        if self.scale is not None:
            yield self.scale.register_forward_hook(self._scale)

    def _scale(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.reads[-1].weight = output.detach().sigmoid().reshape(-1, 1)

    def _read(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        post = inputs[0].detach()
        flat = {name: out.detach().reshape(-1, out.shape[-1]) for name, out in self._branches.items()}
        self.reads.append(self._split(post.reshape(-1, post.shape[-1]), flat))
        return inputs if self.mask is None else (post.masked_fill(self.mask, 0),)

    def _nudge(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output if self.nudge is None else output + self.nudge

    def _split(self, post: Tensor, branches: dict[str, Tensor]) -> Read:
        """Find the two factors of a gated MLP among what the MLP's other linear maps give."""
        act = next(
            (getattr(self.parent, name) for name in _ACTIVATIONS if callable(getattr(self.parent, name, None))), None
        )
        wide = [out for name, out in branches.items() if name != _ACTED and out.shape == post.shape]
        double = [out for out in branches.values() if out.shape == (len(post), 2 * self.width)]
        pairs = [tuple(wide), tuple(wide[::-1])] if len(wide) == 2 else []
        for out in double:
            first, second = out.chunk(2, dim=-1)
            pairs += [(first, second), (second, first)]
        for gate, up in pairs if act else ():
            if torch.allclose(act(gate) * up, post, **_SAME):
                return Read(post, act(gate), up)
        named = [out for name, out in branches.items() if name in _UP and out.shape == post.shape]
        if pairs and named:  # something else happens to the gate's branch: it is what is left
            return Read(post, torch.where(named[0] == 0, 0, post / named[0]), named[0])
        if pairs:
            acted = branches.get(_ACTED)  # something is added to the gate's branch before the activation function
            if acted is None or acted.shape != post.shape:
                return Read(post, is_known=False)
            return Read(post, acted, torch.where(acted == 0, 0, post / acted))
        return Read(post)


class Experts:
    """Experts side by side, whose weights are one tensor of [expert, ...]; neuron j of expert e is e * d_expert + j."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        self.reads: list[Read] = []
        self.mask: Tensor | None = None
        self.nudge: Tensor | None = None

    @property
    def n_experts(self) -> int:
        return len(self.out(slice(None)))

    def out(self, expert: Any) -> Tensor:
        """The weights [neuron, d_model] of an expert, or of all."""
        weight = self.module.down_proj.detach()[expert]
        return weight if self._transposed else weight.transpose(-1, -2)

    @property
    def W_out(self) -> Tensor:  # noqa: N802
        return torch.cat([self.out(expert) for expert in range(self.n_experts)])

    @property
    def width(self) -> int:
        return self.n_experts * self.out(0).shape[0]

    @property
    def _transposed(self) -> bool:
        return bool(getattr(self.module, "is_transposed", type(self.module).__name__ == "Llama4TextExperts"))

    def routes(self, inputs: tuple[Any, ...]) -> Iterator[tuple[int, int, Tensor, Tensor | float]]:
        """Each (token, expert, what the expert is given, routing weight)."""
        hidden, index, weights = inputs[:3]
        hidden = hidden.reshape(-1, hidden.shape[-1])
        for token, experts in enumerate(index.reshape(len(hidden), -1).tolist()):
            for place, expert in enumerate(experts):
                if 0 <= expert < self.n_experts:
                    yield token, expert, hidden[token], weights.reshape(len(hidden), -1)[token, place]

    def factors(self, expert: int, given: Tensor) -> Read:
        """What an expert computes for one token."""
        module, has_gate = self.module, getattr(self.module, "has_gate", True)
        name = "gate_up_proj" if has_gate else "up_proj"
        weight = getattr(module, name)[expert]
        pre = given @ weight if self._transposed else functional.linear(given, weight)
        if getattr(module, f"{name}_bias", None) is not None:
            pre = pre + getattr(module, f"{name}_bias")[expert]
        if not has_gate:
            return Read(module.act_fn(pre))
        own = type(module).__name__
        if own == "GptOssExperts":  # interleaved, and with a gate of its own
            gate, up = pre[::2].clamp(max=module.limit), pre[1::2].clamp(-module.limit, module.limit) + 1
            gate = gate * torch.sigmoid(gate * module.alpha)
        else:
            gate, up = pre.chunk(2)
            if own == "DeepseekV4Experts":
                gate, up = gate.clamp(max=module.limit), up.clamp(-module.limit, module.limit)
            gate = module.act_fn(gate)
        return Read(gate * up, gate, up)

    def write(self, expert: int, post: Tensor) -> Tensor:
        """What an expert gives for its neurons' values."""
        bias = getattr(self.module, "down_proj_bias", None)
        return post @ self.out(expert) + (0 if bias is None else bias[expert])

    def hook(self) -> Iterator[Any]:
        yield self.module.register_forward_hook(self._replace, with_kwargs=True)

    def _replace(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        read, whole = self._compute((*args, *kwargs.values()), output, mask=None)
        if not torch.allclose(whole, output, rtol=1e-3, atol=1e-4 * float(output.abs().max())):
            raise NoReferenceError(f"{self.name}: what its experts write does not add up to its output")
        self.reads.append(read)
        if self.mask is not None:
            output = self._compute((*args, *kwargs.values()), output, mask=self.mask)[1]
        return output if self.nudge is None else self._nudged(output)

    def _nudged(self, output: Tensor) -> Tensor:
        return output + self.nudge

    def _compute(self, inputs: tuple[Any, ...], output: Tensor, mask: Tensor | None) -> tuple[Read, Tensor]:
        n_tokens, size = self._n_tokens(inputs), self.width // self.n_experts
        tensors = {name: torch.zeros(n_tokens, self.width) for name in ("post", "gate", "up", "weight")}
        written = self._start(output).reshape(-1, output.shape[-1])
        gated = True
        for token, expert, given, weight in self.routes(inputs):
            place = slice(expert * size, (expert + 1) * size)
            found = self.factors(expert, given)
            gated = gated and found.gate is not None
            post = found.post if mask is None else found.post.masked_fill(mask[place], 0)
            tensors["post"][token, place], tensors["weight"][token, place] = post, weight
            if found.gate is not None:
                tensors["gate"][token, place], tensors["up"][token, place] = found.gate, found.up
            written[self._row(token, expert, n_tokens)] += weight * self.write(expert, post)
        read = Read(tensors["post"], weight=tensors["weight"])
        if gated:
            read.gate, read.up = tensors["gate"], tensors["up"]
        return read, written.reshape(output.shape)

    def _n_tokens(self, inputs: tuple[Any, ...]) -> int:
        return inputs[0].numel() // inputs[0].shape[-1]

    def _start(self, output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    def _row(self, token: int, _expert: int, _n_tokens: int) -> int:
        return token


class EveryExpert(Experts):
    """Llama 4's: every expert is given every token, times the token's score for it, which is 0 for most."""

    def routes(self, inputs: tuple[Any, ...]) -> Iterator[tuple[int, int, Tensor, Tensor | float]]:
        hidden = inputs[0].reshape(self.n_experts, -1, inputs[0].shape[-1])
        for expert, tokens in enumerate(hidden):
            for token, given in enumerate(tokens):
                if given.any():
                    yield token, expert, given, 1.0

    def _n_tokens(self, inputs: tuple[Any, ...]) -> int:
        return super()._n_tokens(inputs) // self.n_experts

    def _nudged(self, output: Tensor) -> Tensor:
        """Once for each token: what the experts give for it is added up."""
        once = output.reshape(self.n_experts, -1, output.shape[-1]).clone()
        once[0] += self.nudge
        return once.reshape(output.shape)

    def _row(self, token: int, expert: int, n_tokens: int) -> int:
        return expert * n_tokens + token


class ParallelExperts(Experts):
    """JetMoE's: the block's router sorts the tokens by expert."""

    @property
    def _transposed(self) -> bool:
        return False

    def out(self, expert: Any) -> Tensor:
        return self.module.output_linear.weight.detach()[expert].transpose(-1, -2)

    def routes(self, inputs: tuple[Any, ...]) -> Iterator[tuple[int, int, Tensor, Tensor | float]]:
        hidden = inputs[0].reshape(-1, inputs[0].shape[-1])
        router = self.module.router
        for token, given in enumerate(hidden):
            logits, experts = router.layer(given).topk(router.top_k)
            for expert, weight in zip(experts.tolist(), logits.softmax(-1), strict=True):
                yield token, expert, given, weight

    def factors(self, expert: int, given: Tensor) -> Read:
        first, up = functional.linear(given, self.module.input_linear.weight[expert]).chunk(2)
        return Read(self.module.activation(first) * up, self.module.activation(first), up)

    def write(self, expert: int, post: Tensor) -> Tensor:
        return post @ self.out(expert)

    def _start(self, output: Tensor) -> Tensor:
        return self.module.bias.detach().expand_as(output).clone()


class ListedExperts(Experts):
    """Switch Transformers': a module for each expert."""

    @property
    def n_experts(self) -> int:
        return len(self.module)

    def out(self, expert: Any) -> Tensor:
        return self.module[f"expert_{expert}"].wo.weight.detach().T

    def routes(self, inputs: tuple[Any, ...]) -> Iterator[tuple[int, int, Tensor, Tensor | float]]:
        hidden, selected, weights = inputs[:3]
        for token, chosen in enumerate(selected.reshape(len(hidden), -1)):
            for expert in chosen.nonzero().flatten().tolist():
                yield token, expert, hidden[token], weights.reshape(len(hidden), -1)[token, 0]

    def factors(self, expert: int, given: Tensor) -> Read:
        module = self.module[f"expert_{expert}"]
        return Read(module.act(module.wi(given)))

    def write(self, expert: int, post: Tensor) -> Tensor:
        return post @ self.out(expert)


@dataclass
class Block:
    """The parts of one layer that hold neurons: experts first, then what stands beside them."""

    name: str
    parts: list[Any] = field(default_factory=list)


def blocks(model: nn.Module) -> list[Block]:
    """Find the layers that hold neurons, in the order of a forward pass: an encoder's before a decoder's."""
    found: dict[str, Block] = {}
    modules = dict(model.named_modules())
    for name, module in modules.items():
        index = re.match(r"^(.*?\.\d+)\.", name)
        if index is None or _NOT_MLP.search(name):
            continue
        part = _part(name, module, modules)
        if part is not None:
            block = found.setdefault(index[1], Block(index[1]))
            block.parts.append(part)
            block.parts.sort(key=lambda part: not isinstance(part, Experts))
    return sorted(found.values(), key=lambda block: _natural(block.name))


def _natural(name: str) -> list[Any]:
    is_decoder = "decoder" in name and "encoder" not in name
    return [is_decoder, *(int(part) if part.isdigit() else 0 for part in name.split("."))]


def _part(name: str, module: nn.Module, modules: dict[str, nn.Module]) -> Any:
    kind = type(module).__name__
    if kind == "Llama4TextExperts":
        return EveryExpert(name, module)
    if kind == "JetMoeMoE":
        return ParallelExperts(name, module)
    if kind in ("SwitchTransformersExperts", "NllbMoeExperts"):
        return ListedExperts(name, module)
    if kind.endswith("Experts") and getattr(module, "down_proj", None) is not None:
        return Experts(name, module)
    is_down = name.endswith(tuple(f".{down}" for down in _DOWN)) or (
        kind == "Linear" and name.endswith("feed_forward.value")
    )
    if (
        not is_down
        or ".experts." in name
        or not isinstance(getattr(module, "weight", None), Tensor)
        or module.weight.ndim != 2
    ):
        return None
    parent = name.rsplit(".", 1)[0]
    beside = modules.get(parent.rsplit(".", 1)[0])
    scale = getattr(beside, "shared_expert_gate", None) if "shared_expert" in parent else None
    return Dense(name, module, modules[parent], scale)


@contextmanager
def hooked(layers: list[Block]) -> Iterator[None]:
    """Read every part, and edit those with a mask or a nudge, for as long as the context lasts."""
    handles = [handle for block in layers for part in block.parts for handle in part.hook()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def zeroed(layers: list[Block], masks: list[Tensor]) -> Iterator[None]:
    """Set the masked neurons of each layer to zero at every token, for as long as the context lasts."""
    for block, mask in zip(layers, masks, strict=True):
        start = 0
        for part in block.parts:
            part.mask = mask[start : start + part.width]
            start += part.width
    try:
        with hooked(layers):
            yield
    finally:
        for block in layers:
            for part in block.parts:
                part.mask = None


def width(block: Block) -> int:
    """How many neurons a layer has."""
    return sum(part.width for part in block.parts)


def read(layers: list[Block], run: Callable[[], Any]) -> tuple[Any, list[list[Read]]]:
    """Run a forward pass; return its result, and what each part of each layer did.

    Raises:
        NoReferenceError: a part ran more than once, or not at all.
    """
    for block in layers:
        for part in block.parts:
            part.reads = []
    with hooked(layers), torch.no_grad():
        result = run()
    for block in layers:
        for part in block.parts:
            if len(part.reads) != 1:
                raise NoReferenceError(f"{part.name} runs {len(part.reads)} times in a forward pass")
    return result, [[part.reads[0] for part in block.parts] for block in layers]


def writes_unchanged(model: nn.Module, layers: list[Block], run: Callable[[], Any]) -> bool:
    """Whether what the MLPs write is added to the residual stream as it is, by nudging it and looking at the layer."""
    modules = dict(model.named_modules())
    for block in layers:
        for part in block.parts:
            kept: list[Tensor] = []
            part.reads = []
            handle = modules[block.name].register_forward_hook(
                lambda _m, _i, out, kept=kept: kept.append((out[0] if isinstance(out, tuple) else out).detach().clone())
            )
            nudge = torch.randn(part.W_out.shape[1], generator=torch.Generator().manual_seed(1))
            try:
                with torch.no_grad(), hooked(layers):
                    run()
                    part.nudge = nudge
                    run()
            finally:
                part.nudge = None
                handle.remove()
            plain, nudged = (one.reshape(-1, one.shape[-1]) for one in kept)
            weight = part.reads[0].weight if isinstance(part, Dense) else 1.0  # experts' weights are in what they give
            if not torch.allclose(nudged - plain, nudge * weight, rtol=1e-2, atol=1e-2):
                return False
    return True

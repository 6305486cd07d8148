"""All that this package knows of TransformerLens: where the neurons are, how to tokenise, and how to run.

Both model classes serve: `HookedTransformer` (TransformerLens 3) and `TransformerBridge` (3 and 4). They differ
in how the unembedding is left out, in where the activation function lives, and in what they can pad.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.impact import FinalNorm

Site = Literal["post", "gate", "up"]
Hooks = Sequence[tuple[str | Callable[[str], bool], Callable[..., Any]]]
# Whose hooks on a model are part of it.
_LIBRARIES = ("transformers", "transformer_lens", "accelerate")
# What Hugging Face's gated MLPs and TransformerLens's own call their activation function.
_ACTIVATION_NAMES = ("act_fn", "activation_fn", "act")


@runtime_checkable
class LensModel(Protocol):
    """What is used of a TransformerLens model; any HookedTransformer or TransformerBridge fits."""

    cfg: Any
    tokenizer: Any
    blocks: Any

    if TYPE_CHECKING:  # TransformerLens 3's bridge makes it anew each time, and so for each check of a type too

        @property
        def hook_dict(self) -> Mapping[str, Any]:
            """Every hook point by name."""
            ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A forward pass."""
        ...

    def hooks(self, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
        """Hook functions for as long as the context lasts."""
        ...

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Tokens after a prompt."""
        ...

    def parameters(self) -> Iterator[Tensor]:
        """The model's weights."""
        ...

    def modules(self) -> Iterator[torch.nn.Module]:
        """The model's modules."""
        ...


@dataclass(frozen=True)
class NeuronLayer:
    """One MLP's neurons: the hook to read, how many there are, and what turns the hook's tensor into their values."""

    hook: str
    width: int
    activation: Callable[[Tensor], Tensor] | None = None

    def values(self, tensor: Float[Tensor, "*batch neuron"]) -> Float[Tensor, "*batch neuron"]:
        """The neurons' values from what the hook gave."""
        return tensor if self.activation is None else self.activation(tensor)


def has_hooked_transformer() -> bool:
    """Whether the installed TransformerLens still has HookedTransformer (4.0 removed it)."""
    return int(version_of_transformer_lens().split(".")[0]) < 4


def version_of_transformer_lens() -> str:
    """The installed version."""
    return version("transformer_lens")


def is_bridge(model: LensModel) -> bool:
    """Whether this is a TransformerBridge, which runs a Hugging Face model inside."""
    return hasattr(model, "original_model")


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
    parts = getattr(attribute(block_of(model, block).mlp, "original_component"), "_modules", {}).values()
    weights = [weight for part in parts if (weight := _tensor_of(part, "weight")) is not None and weight.ndim == 2]
    numbers: int = sum(weight.numel() // model.cfg.d_model for weight in weights)
    return numbers > 2 * width  # of the map into the neurons and of the one out of them


def check_model(model: object) -> None:
    """Refuse what is no TransformerLens model, has no tokenizer, or is no decoder.

    Raises:
        NeuronShareError: says which of the three, and what to load in its place.
    """
    if not all(hasattr(model, name) for name in ("cfg", "hooks", "run_with_hooks")):
        raise NeuronShareError(
            f"A {type(model).__name__} is no TransformerLens model; load one with tl_neuronshare.load_model(name), "
            "HookedTransformer.from_pretrained_no_processing(name) or TransformerBridge.boot_transformers(name)."
        )
    if getattr(model, "tokenizer", None) is None:
        raise NeuronShareError(f"{name_of(model)} has no tokenizer; give it one with model.set_tokenizer(...).")
    hugging_face = getattr(model, "original_model", None)
    decoder = (
        getattr(model.cfg, "attention_dir", "causal") == "causal"  # type: ignore[attr-defined]
        if hugging_face is None
        else hugging_face.can_generate() and not getattr(hugging_face.config, "is_encoder_decoder", False)
    )
    if not decoder:
        raise NeuronShareError(
            f"{name_of(model)} ({type(hugging_face or model).__name__}) is no decoder-only language model; "
            "encoders are not read yet."
        )


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
        owner = attribute(mlp, "original_component")
        module = next((found for name in _ACTIVATION_NAMES if (found := getattr(owner, name, None)) is not None), None)
        return (module, False) if isinstance(module, torch.nn.Module) else None
    module = attribute(mlp, "in.original_component" if site == "up" else "out.original_component")
    return None if module is None else (module, site != "up")


def block_of(model: LensModel, hook: str) -> Any:
    """The transformer block that a hook named blocks.N... is in."""
    return model.blocks[int(hook.split(".")[1])]


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
        weights = _tensor_of(mlp, "W_out")
        if weights is None or weights.ndim != 2:
            raise NeuronShareError(
                f"The MLP of {hook} has no W_out of one row a neuron; use a model whose MLPs end in one linear map."
            )
        return weights.detach()


def output_bias(model: LensModel, hook: str) -> Float[Tensor, " d_model"] | float:
    """What the MLP that this hook belongs to writes besides its neurons; 0 where that is nothing."""
    mlp = block_of(model, hook).mlp
    with loaded(mlp):
        bias = _tensor_of(mlp, "b_out")
        return 0.0 if bias is None else bias.detach()


def unembedding(model: LensModel, tokens: Int[Tensor, " token"] | slice) -> Float[Tensor, "d_model token"]:
    """The unembedding's column for each of the tokens.

    Raises:
        NeuronShareError: the model has no unembedding.

    Example:
        >>> unembedding(model, torch.tensor([7, 8, 9])).shape
        torch.Size([128, 3])
    """
    part = getattr(model, "unembed", None)
    with loaded(part) if part is not None else nullcontext():
        weights = _tensor_of(part, "W_U")
        if weights is None:
            raise NeuronShareError(f"{name_of(model)} has no unembedding W_U; use a language model with its head.")
        return weights[:, tokens].detach()


def attribute(owner: Any, name: str) -> Any:
    """The attribute of this name (dots lead inwards), or None."""
    try:
        return attrgetter(name)(owner)
    except (AttributeError, NotImplementedError, TypeError):  # what bridges raise for what an architecture lacks
        return None


def _tensor_of(module: Any, name: str) -> Tensor | None:
    found = attribute(module, name)
    return found if isinstance(found, Tensor) else None


def check_unembedding(model: LensModel) -> None:
    """Refuse a model whose unembedding does not read what its MLPs write.

    Raises:
        NeuronShareError: there is none, or it is of another width.
    """
    width = output_weights(model, neuron_layers(model, "post")[0].hook).shape[1]
    read = len(unembedding(model, slice(1)))
    if width != read:
        raise NeuronShareError(
            f"The MLPs of {name_of(model)} write {width} numbers and its unembedding reads {read}: the map between is "
            "not known here; use another model."
        )


def changes_mlp_output(model: LensModel) -> str | None:
    """What the model does to its MLPs' output, before or when it is added to the residual stream; None if nothing."""
    config = attribute(model, "original_model.config") or model.cfg
    norms = ("ln2_post", "original_component.post_feedforward_layernorm")
    if any(attribute(model.blocks[0], name) is not None for name in norms):
        return "normalises what its MLPs write before it is added to the residual stream"
    multipliers = getattr(config, "mlp_multipliers", None) or [1.0]
    if getattr(config, "residual_multiplier", 1.0) != 1 or multipliers[-1] != 1:  # Granite, Falcon-H1
        return "multiplies what its MLPs write before it is added to the residual stream"
    if getattr(config, "model_type", "") == "openai-gpt" or getattr(config, "do_layer_norm_before", True) is False:
        return "normalises the residual stream after each MLP"
    return None


def final_residual(model: LensModel) -> NeuronLayer:
    """The residual stream after the last block, to be read like a layer."""
    return NeuronLayer(f"blocks.{len(model.blocks) - 1}.hook_resid_post", model.cfg.d_model)


def final_norm(model: LensModel) -> FinalNorm:
    """The norm before the unembedding.

    A bridge's configuration does not say reliably what its norm is: that is found by trying which formula gives what
    the module does.

    Raises:
        NeuronShareError: it is neither a LayerNorm nor an RMSNorm.

    Example:
        >>> final_norm(model).centres  # a LayerNorm
        True
    """
    norm = getattr(model, "ln_final", None)
    module = getattr(norm, "original_component", norm)
    if module is None or isinstance(module, torch.nn.Identity):
        return FinalNorm(is_none=True)
    if not is_bridge(model):
        return FinalNorm(_as_weight(_tensor_of(module, "w")), "RMS" not in type(module).__name__, model.cfg.eps)
    with loaded(module), torch.no_grad():
        parameter = next(module.parameters(), torch.zeros((), device=device_of(model), dtype=torch.float32))
        weight = _tensor_of(module, "weight")
        eps = [getattr(module, name) for name in ("eps", "variance_epsilon") if hasattr(module, name)]
        probe = 1 + torch.randn(
            8, model.cfg.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu"
        )  # of mean 1
        probe = probe.to(parameter.device, parameter.dtype)
        expected = (module(probe) - module(torch.zeros_like(probe))).float()
        for offset in (0.0, 1.0):  # Gemma's weights are their distance from 1
            for centres in (True, False):
                candidate = FinalNorm(_as_weight(weight) + offset, centres, *eps[:1])
                if (candidate(probe.float()) - expected).norm() < 0.02 * expected.norm():
                    return candidate
    raise NeuronShareError(
        f"The final norm of {name_of(model)}, a {type(module).__name__}, is neither a LayerNorm nor an RMSNorm; "
        'use norm="none".'
    )


def _as_weight(weight: Tensor | None) -> Tensor | float:
    return 1.0 if weight is None else weight.detach().float()


def tokenise(model: LensModel, texts: Sequence[str], *, prepend_bos: bool | None = None) -> list[list[int]]:
    """The token ids of each text alone, without padding and never truncated.

    Args:
        model: whose tokenizer to use.
        texts: what to tokenise.
        prepend_bos: whether each begins with the BOS token; None is the model's own `cfg.default_prepend_bos`. A text
            that has one already, as from a chat template, gets no second.

    Raises:
        NeuronShareError: BOS was asked for and the tokenizer has none, or a token that the model does not have.
    """
    bos = resolve_prepend_bos(model, prepend_bos)
    if bos and model.tokenizer.bos_token_id is None:
        raise NeuronShareError(f"The tokenizer of {name_of(model)} has no BOS token; use prepend_bos=False.")
    # Special tokens that a tokenizer adds by itself differ between classes and versions: BOS is put there by hand.
    ids: list[list[int]] = model.tokenizer(list(texts), add_special_tokens=False).input_ids
    start = [model.tokenizer.bos_token_id]
    rows = [row if row[:1] == start else start + row for row in ids] if bos else ids
    last = max((max(row) for row in rows if row), default=0)
    if last >= vocabulary_size(model):
        token = model.tokenizer.convert_ids_to_tokens(last)
        raise NeuronShareError(
            f"The tokenizer of {name_of(model)} gives token {last} ({token!r}), and the model has only "
            f"{vocabulary_size(model)}. "
            + (
                "TransformerLens adds special tokens to a tokenizer that has none; use prepend_bos=False."
                if bos and [last] == start
                else "Use the tokenizer that the model was trained with."
            )
        )
    return rows


def vocabulary_size(model: LensModel) -> int:
    """How many tokens the model knows: rows of its embedding, since `cfg.d_vocab` may be the tokenizer's."""
    embedding = _tensor_of(attribute(model, "embed"), "W_E")
    return int(model.cfg.d_vocab) if embedding is None else len(embedding)


def knows_bos(model: LensModel) -> bool:
    """Whether the tokenizer has a BOS token that the model has too."""
    bos = model.tokenizer.bos_token_id
    return bos is not None and bos < vocabulary_size(model)


def resolve_prepend_bos(model: LensModel, prepend_bos: bool | None) -> bool:
    """What prepend_bos=None means for this model."""
    return bool(model.cfg.default_prepend_bos) if prepend_bos is None else prepend_bos


def run(model: LensModel, tokens: Int[Tensor, "prompt position"], mask: Int[Tensor, "prompt position"] | None) -> None:
    """One forward pass without the vocabulary, for what the hooks see of it."""
    forward(model, tokens, mask, **_without_vocabulary(model))


def last_logits(
    model: LensModel, tokens: Int[Tensor, "row position"], mask: Int[Tensor, "row position"] | None, keep: int
) -> Float[Tensor, "row {keep} vocabulary"]:
    """The logits at the last so many positions; others are not made.

    Example:
        >>> last_logits(model, model.to_tokens("Country code of Peru →"), None, 2).shape
        torch.Size([1, 2, 4000])
    """
    with last_positions_only(model, keep):
        logits: Tensor = forward(model, tokens, mask)
    return logits


@contextmanager
def last_positions_only(model: LensModel, keep: int) -> Iterator[None]:
    """Unembed only the last so many positions of every forward pass, in `generate` too, for as long as this lasts."""

    def cut(residual: Tensor, hook: Any) -> Tensor:
        return residual[:, -keep:].contiguous()  # else matmul would take one row at a time

    with hooked(model, [("unembed.hook_in", cut)]):
        yield


def forward(
    model: LensModel,
    tokens: Int[Tensor, "row position"],
    mask: Int[Tensor, "row position_so_far"] | None,
    **options: Any,
) -> Any:
    """One forward pass, with whatever else the model's own takes; with a cache, `mask` may be of all tokens so far."""
    device = device_of(model)
    masked = {} if mask is None else {"attention_mask": mask.to(device)}
    return model(tokens.to(device), **masked, **options)


@contextmanager
def reading(model: LensModel, layers: Sequence[NeuronLayer], read: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Hand each layer's number and tensor to `read` in every forward pass, for as long as the context lasts."""

    def hand_over(tensor: Tensor, hook: Any, *, number: int) -> None:
        read(number, tensor)

    with hooked(model, [(layer.hook, partial(hand_over, number=number)) for number, layer in enumerate(layers)]):
        yield


def values_of(
    model: LensModel,
    layers: Sequence[NeuronLayer],
    tokens: Int[Tensor, "prompt position"],
    mask: Int[Tensor, "prompt position"] | None,
    position: int | Bool[Tensor, "prompt position"] | tuple[Tensor, Tensor],
) -> list[Float[Tensor, "value neuron"]]:
    """Each layer's values in one forward pass without the vocabulary, in at least float32.

    Of each prompt: at an index from the end, or the mean over the chosen positions; or at places (prompt, position).

    Raises:
        NeuronShareError: a layer's hook has not fired.
    """
    read: dict[int, Tensor] = {}

    def keep(layer: int, tensor: Tensor) -> None:
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        if isinstance(position, int):
            read[layer] = tensor[:, position].to(dtype)
        elif isinstance(position, tuple):
            read[layer] = tensor[position].to(dtype)
        else:
            chosen = position.to(tensor.device)
            summed = tensor.to(dtype).masked_fill(~chosen[..., None], 0).sum(1)
            read[layer] = summed / chosen.sum(1, keepdim=True)

    with left_as_found(model), reading(model, layers, keep):
        run(model, tokens, mask)
    for number, layer in enumerate(layers):
        if number not in read:
            raise NeuronShareError(
                f"{layer.hook} did not fire; do hooks of yours replace its module, or does this model not run it?"
            )
    return [read[number] for number in range(len(layers))]


@contextmanager
def hooked(model: LensModel, fwd_hooks: Hooks) -> Iterator[set[int]]:
    """Install hooks for as long as the context lasts; gives the numbers, in the list, of those that have fired.

    The same as `model.hooks`, but that a name which the model lacks is an error. Hook points are known by identity:
    they may bear another name than that by which they were found. They are installed by one filter, since
    TransformerLens 3's bridge lists all its hooks anew for every name.

    Raises:
        NeuronShareError: no list of pairs, or a name that the model lacks.
    """
    points = model.hook_dict
    functions: dict[int, list[tuple[int, Callable[..., Any]]]] = {}
    names, fired = set(), set()
    for number, pair in enumerate(fwd_hooks):
        if not (isinstance(pair, Sequence) and len(pair) == 2 and callable(pair[1])):
            raise NeuronShareError(f"{pair!r} is no hook; give pairs of a hook's name and a function.")
        chosen = [pair[0]] if isinstance(pair[0], str) else [name for name in points if pair[0](name)]
        if not chosen or chosen[0] not in points:
            raise NeuronShareError(f"{name_of(model)} has no hook {pair[0]}; see model.hook_dict for those it has.")
        names.update(chosen)
        for point in {id(points[name]) for name in chosen}:
            functions.setdefault(point, []).append((number, pair[1]))

    def call(tensor: Tensor, hook: Any) -> Tensor | None:
        changed = None
        for number, function in functions[id(hook)]:
            fired.add(number)
            result = function(tensor, hook=hook)
            if result is not None:
                changed = tensor = result
        return changed

    with model.hooks(fwd_hooks=[(names.__contains__, call)]) if names else nullcontext():
        yield fired


@contextmanager
def all_firing(model: LensModel, fwd_hooks: Hooks) -> Iterator[None]:
    """`hooked`, for runs in which every hook must fire.

    Raises:
        NeuronShareError: as `hooked`; and at the end for a hook that has not fired.
    """
    with hooked(model, fwd_hooks) as fired:
        yield
    for number, (name, _) in enumerate(fwd_hooks):
        if number not in fired:
            raise NeuronShareError(f"The hook on {name} did not fire; is it of a part that this model does not run?")


@contextmanager
def without_hooks(model: LensModel) -> Iterator[None]:
    """Take the user's hooks off for as long as the context lasts: TransformerLens's, and torch's on any module."""
    taken: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            if theirs := _hooks_of_the_user(module, hooks):
                taken.append((hooks, dict(hooks)))
                for key in theirs:
                    del hooks[key]
    try:
        yield
    finally:
        for hooks, before in taken:  # in their order; after them what the libraries have put there meanwhile
            meanwhile = {key: hook for key, hook in hooks.items() if key not in before}
            hooks.clear()
            hooks.update(before | meanwhile)


def has_hooks(model: LensModel) -> bool:
    """Whether somebody's hooks are on the model: TransformerLens's, or torch's on any of its modules."""
    return any(
        _hooks_of_the_user(module, hooks)
        for module in model.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
    )


def _hooks_of_the_user(module: Any, hooks: Mapping[int, Any]) -> set[int]:
    """The keys of a module's hooks that the libraries have not put there themselves, as they do to capture outputs."""
    if not hooks:
        return set()
    # A hook point calls the user's function from one of its own.
    given = {handle.hook.id: handle.user_hook for handle in getattr(module, "fwd_hooks", ())}
    functions = {key: given.get(key, hook) for key, hook in hooks.items()}
    return {
        key
        for key, function in functions.items()
        if str(getattr(getattr(function, "func", function), "__module__", "")).split(".")[0] not in _LIBRARIES
    }


@contextmanager
def unwrapped(model: LensModel) -> Iterator[torch.nn.Module]:
    """A bridge's Hugging Face model without TransformerLens: the same weights, run by Hugging Face's own modules.

    TransformerLens puts its components in the places of Hugging Face's modules and keeps those inside. For as long as
    the context lasts they are back in their places, so that nothing has to be loaded a second time.

    Example:
        >>> with unwrapped(model) as hugging_face:
        ...     type(hugging_face.transformer.h[0].mlp.dense_4h_to_h).__name__
        'Linear'
    """
    hugging_face: torch.nn.Module = model.original_model  # type: ignore[attr-defined]
    swapped = [
        (parent, name, child)
        for parent in hugging_face.modules()
        for name, child in parent._modules.items()
        if child is not None and "_original_component" in child._modules
    ]
    for parent, name, child in swapped:
        parent._modules[name] = child._modules["_original_component"]
    try:
        yield hugging_face
    finally:
        for parent, name, child in swapped:
            parent._modules[name] = child


def device_of(model: LensModel) -> torch.device:
    """Where the model takes its tokens."""
    parameter = next(model.parameters())
    # Weights that accelerate has offloaded are on the meta device between forward passes.
    return torch.device(model.cfg.device) if parameter.is_meta else parameter.device


def special_tokens(model: LensModel) -> list[int]:
    """The ids of the tokenizer's special tokens, which belong to no prompt's text; an unknown token stands for text."""
    tokenizer = model.tokenizer
    others = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return sorted(set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - others))


def end_tokens(model: LensModel) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and all that the model's own settings for generation name."""
    settings = attribute(model, "original_model.generation_config") or attribute(model, "generation_config")
    named = getattr(settings, "eos_token_id", None)
    others = named if isinstance(named, Sequence) else [named]
    return sorted({int(token) for token in (model.tokenizer.eos_token_id, *others) if token is not None})


def _without_vocabulary(model: LensModel) -> dict[str, Any]:
    """Arguments of the forward pass that keep it from making logits for every position."""
    if not is_bridge(model):
        return {"stop_at_layer": model.cfg.n_layers}
    forward = inspect.signature(model.original_model.forward)  # type: ignore[attr-defined]
    return {"logits_to_keep": 1} if "logits_to_keep" in forward.parameters else {}


@contextmanager
def loaded(module: torch.nn.Module) -> Iterator[None]:
    """The module's weights where they can be read: accelerate keeps offloaded ones on the meta device."""
    with ExitStack() as stack:
        for part in module.modules():
            if any(parameter.is_meta for parameter in part.parameters(recurse=False)) and hasattr(part, "_hf_hook"):
                hook: Any = part._hf_hook
                stack.callback(hook.post_forward, part, None)
                hook.pre_forward(part)
        yield


@contextmanager
def left_as_found(model: LensModel | torch.nn.Module) -> Iterator[None]:
    """Run without gradients and dropout, and put every module's training mode back, whatever happens."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def dtype_of(model: LensModel) -> torch.dtype:
    """Of its weights."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def is_processed(model: LensModel) -> bool:
    """Whether norms are folded into the weights, or a bridge imitates a HookedTransformer."""
    if is_bridge(model):
        return bool(getattr(model, "compatibility_mode", False) or getattr(model, "_weights_processed", False))
    return str(model.cfg.normalization_type).endswith("Pre")


def is_edited(model: LensModel) -> bool:
    """Whether a bridge's attention weights were changed after it was made.

    It keeps copies of fused ones, split into query, key and value, so that the Hugging Face module does not change.
    """
    for module in model.modules():
        split = getattr(module, "split_qkv_matrix", None)
        original = attribute(module, "original_component")
        if split is not None and original is not None:
            with loaded(module):
                for name, part in zip("qkv", split(original), strict=True):
                    if not torch.equal(part.weight, getattr(module, name).weight):
                        return True
    return False


def small_twin(model: LensModel) -> tuple[LensModel, torch.nn.Module]:
    """A bridge of the same architecture with two random layers, and its Hugging Face model apart from it."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.original_model.config)  # type: ignore[attr-defined]
    text = config.get_text_config()
    text.num_hidden_layers = min(2, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hugging_face = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    alone = copy.deepcopy(hugging_face)
    twin = TransformerBridge.boot_transformers(
        str(config.name_or_path), hf_model=hugging_face, tokenizer=model.tokenizer, device="cpu", dtype=torch.float32
    )
    return twin, alone


def rope_boundary(model: LensModel) -> int | None:
    """Texts of more tokens than this are computed otherwise, whole batches at a time (long RoPE, as of Phi-3)."""
    config = attribute(model, "original_model.config")
    given = getattr(config.get_text_config(), "rope_parameters", None) if config is not None else None
    of_layers = [given, *(part for part in given.values() if isinstance(part, dict))] if given else []
    of_long = [part for part in of_layers if part.get("rope_type") == "longrope"]
    return min((int(part["original_max_position_embeddings"]) for part in of_long), default=None)


def name_of(model: Any) -> str:
    """What to call the model in messages and metadata."""
    return str(getattr(model.cfg, "model_name", None) or type(model).__name__)

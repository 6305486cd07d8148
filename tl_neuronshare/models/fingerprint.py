"""A fingerprint of a model's weights.

It is the same for a HookedTransformer and a TransformerBridge with the same weights. It is a hash of one sum for each
tensor that has the same name, and so the same layout, in both classes (attention, MLP, norms, embedding, positions,
unembedding). Attention and MLPs that a bridge cannot show so, which no HookedTransformer has, count as their Hugging
Face modules keep them. An encoder or an encoder-decoder exists as a bridge only, so that all its weights count, by
their names in Hugging Face. The sum is over the tensor's numbers: the bits of each, read as an integer, times an
integer for its place. A sum of zero is left out, since one class makes biases of zero where the other has none. The
fingerprint finds mistakes; it does not protect against somebody who wants to deceive.

It is remembered with the model, together with cheap signs that the weights are still the same (`_signs`): where each
tensor is in memory, how often torch has seen it edited, and a sample of its numbers. An edit that torch does not see,
such as one through `.data`, numpy or a pointer, is noticed by the sample: in tensors of up to 16,384 numbers always,
and in larger ones if it changes at least 127 neighbouring numbers, or one of the few that are in the sample. After a
smaller one the remembered fingerprint would be wrong; edit under `torch.no_grad()` and without `.data` instead.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int32, Int64, Integer
from torch import Tensor, nn

from tl_neuronshare import models
from tl_neuronshare.models import points
from tl_neuronshare.models.lens import LensModel

# Modules of a block, modules of the model, and tensors of a module. Each group holds different names of one thing, and
# the first name that exists counts. HookedTransformer keeps grouped keys and values under the name with an underscore;
# the name without it gives them repeated for each head.
_BLOCK_PARTS = (("ln1",), ("ln1_post",), ("ln2",), ("ln2_post",), ("attn",), ("mlp",))
_MODEL_PARTS = (("embed",), ("embed_ln", "embed.ln"), ("pos_embed",), ("ln_final",), ("unembed",))
_TENSORS = (
    ("W_Q",), ("_W_K", "W_K"), ("_W_V", "W_V"), ("W_O",), ("b_Q",), ("_b_K", "b_K"), ("_b_V", "b_V"), ("b_O",),
    ("W_in",), ("W_gate",), ("W_out",), ("b_in",), ("b_out",), ("w",), ("b",), ("W_E",), ("W_pos",), ("W_U",), ("b_U",),
)  # fmt: skip
_NEEDED = {"attn": {"W_Q", "W_K", "W_V", "W_O"}, "mlp": {"W_out"}}
# The packages that a model's own modules come from; a module from another package was added by the user.
_MAKERS = ("torch", "transformers", "transformers_modules", "transformer_lens", "accelerate", "einops")
# How many numbers are summed at a time: on a CPU as many as its cache holds, and on a GPU enough to keep it busy.
_CHUNK, _CHUNK_ON_GPU = 1 << 18, 1 << 24
_GOLDEN = -7046029254386353131  # 2 to the 64th divided by the golden ratio, signed: it spreads places over all bits
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
# The sample: all numbers of a tensor that has few, and else every 127th in the order of memory. This is a prime that no
# tensor's width is a multiple of, so that it meets all columns.
_FEW, _STRIDE = 1 << 14, 127

# The fingerprint of each model, and the signs that its weights had. They keep no model alive.
_REMEMBERED: WeakKeyDictionary[Any, tuple[tuple[Any, ...] | None, str]] = WeakKeyDictionary()


def fingerprint_of_weights(model: LensModel) -> str:
    """Return a hash of the model's weights: the same for both model classes, and different if one weight differs.

    It is computed once for a model and remembered, until the weights show signs of a change. These do not show an edit
    of a few numbers of a large tensor that goes around torch (`W_in.data[5, 7] = 0`); they do show
    `with torch.no_grad(): W_in[5, 7] = 0`, and new, moved or converted tensors. Offloaded weights, and weights that
    were made in inference mode, show no signs: there it is computed every time. Offloaded weights are loaded one module
    at a time.

    Examples:
        >>> len(fingerprint_of_weights(model))
        16
    """
    with torch.no_grad():
        signs, fingerprint = _REMEMBERED.get(model, (None, ""))
        if signs is None or signs != _signs(model):
            fingerprint = _computed(model)
            _REMEMBERED[model] = (_signs(model), fingerprint)  # a quantised model may have repacked its weights
    return fingerprint


def _signs(model: LensModel) -> tuple[Any, ...] | None:
    """Return what changes with the weights and costs little to find; None where only the weights themselves can tell.

    Each module that has tensors counts with its class, and each tensor with its place in memory, its layout, its
    version, which torch counts up at every edit that it sees, and a sample of its numbers.
    """
    signs: list[Any] = []
    samples: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    seen: set[tuple[Any, ...]] = set()
    for module in model.modules():
        tensors = [*_own_tensors(module)]
        if tensors:
            signs.append(type(module))
        for tensor in tensors:
            if tensor.is_meta or tensor.is_inference():
                return None
            sign = tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride(), tensor.dtype, tensor.device
            signs.append(sign)
            if sign not in seen:  # a bridge has the same tensors in several modules
                seen.add(sign)
                in_memory = _in_order_of_memory(tensor).reshape(-1)
                bits = _bits(in_memory if in_memory.numel() <= _FEW else in_memory[::_STRIDE])
                samples[bits.device, bits.dtype].append(bits)
    digests = (hashlib.sha256(torch.cat(parts).cpu().numpy().data).digest() for parts in samples.values())
    return (*signs, *digests)


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Iterate over all tensors that a module itself has, as plain tensors."""
    scales = _scales(module) if _is_bitsandbytes(module) else ()
    for tensor in (*module._parameters.values(), *module._buffers.values(), *scales):
        if tensor is not None:
            yield from _plain(tensor)


def _in_order_of_memory(tensor: Tensor) -> Tensor:
    """Return the tensor with its axes in the order in which they are in memory, so that reading it all is fast."""
    return tensor if tensor.is_contiguous() else tensor.permute(sorted(range(tensor.ndim), key=tensor.stride)[::-1])


def _computed(model: LensModel) -> str:
    """Return the fingerprint by reading all weights."""
    digest = hashlib.sha256()
    is_decoder = models.architecture_of(model) == "decoder"
    for name, tensor in _named_alike(model) if is_decoder else _named_by_hugging_face(model):
        checksum = _checksum(tensor)
        digest.update(f"{name} {tensor.numel()} {checksum}\n".encode() if checksum else b"")
    for name, tensor in _experts(model):
        digest.update(f"{name} {tensor.numel()} {_checksum(tensor)}\n".encode())
    for tensor in _added(model):
        digest.update(f"added {tensor.numel()} {_checksum(tensor)}\n".encode())
    return digest.hexdigest()[:16]


def _named_alike(model: LensModel) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the tensors that both classes have, with their names, and with the same numbers in both classes."""
    owners = [(place, block, _BLOCK_PARTS) for place, block in models.blocks_of(model)]
    for place, owner, parts in (*owners, ("model", model, _MODEL_PARTS)):
        for names in parts:
            part = _first(owner, names)
            if part is not None:
                with models.loaded(part):
                    found = dict(_tensors(model, part))
                    has_experts = names == ("mlp",) and points.experts_of(owner) is not None
                    if not has_experts and not set(found) >= _NEEDED.get(names[0], set()):
                        found = _as_kept(part) or found  # which heads a bridge can show may change after a run
                    yield from ((f"{place}.{names[0]}.{name}", tensor) for name, tensor in found.items())


def _as_kept(part: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a bridge's Hugging Face module, numbered; none for other modules."""
    original = models.nested(part, "original_component")
    modules = original.modules() if isinstance(original, nn.Module) else ()
    tensors = [tensor for module in modules for tensor in _of_module(module)]
    return {f"parameter {number}": tensor for number, tensor in enumerate(tensors)}


def _of_module(module: Any) -> Iterator[Tensor]:
    """Iterate over a module's own weights, as plain tensors."""
    if _is_bitsandbytes(module):
        # The first run repacks the weights and puts their scales elsewhere; this is one.
        device = module.weight.device
        module.forward(torch.zeros((1, module.in_features), dtype=torch.float32, device=device))
        yield from _scales(module)
    for parameter in module.parameters(recurse=False):
        yield from _plain(parameter)


def _is_bitsandbytes(module: Any) -> bool:
    return type(module._parameters.get("weight")).__module__.startswith("bitsandbytes")


def _scales(module: Any) -> Iterator[Tensor]:
    """Iterate over the scales of weights that bitsandbytes has quantised, which are no parameters or buffers."""
    scales = (models.nested(module, name) for name in ("weight.quant_state.absmax", "state.SCB"))
    yield from (scale for scale in scales if isinstance(scale, Tensor))


def _plain(tensor: Any) -> Iterator[Tensor]:
    """Iterate over the tensors that a quantised one is made of; a plain tensor is its own."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain(getattr(tensor, name))
    else:
        yield tensor.detach().as_subclass(Tensor)


def _named_by_hugging_face(model: LensModel) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the weights of a bridge's Hugging Face model, with their names."""
    with models.unwrapped(model) as hugging_face:
        for place, module in hugging_face.named_modules():
            with models.loaded(module):
                yield from ((f"{place}.{number}", tensor) for number, tensor in enumerate(_of_module(module)))


def _experts(model: LensModel) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the weights of mixtures of experts and of their routers, with Hugging Face's names."""
    for place, block in models.blocks_of(model):
        experts = points.experts_of(block)
        if experts is not None:
            owner = next(module for module in block.modules() if experts in module.children())
            with models.loaded(owner):
                for name, parameter in owner.named_parameters():
                    yield f"{place}.{name}", parameter


def _added(model: LensModel) -> Iterator[Tensor]:
    """Iterate over the weights in modules that the user added, for example a LoRA adapter."""
    seen: set[int] = set()
    _, *parts = model.modules()  # the model itself may be of the user's own class
    for module in parts:
        if type(module).__module__.split(".")[0] not in _MAKERS:
            with models.loaded(module):
                for parameter in module.parameters():
                    if id(parameter) not in seen:
                        seen.add(id(parameter))
                        yield parameter


def _tensors(model: LensModel, part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the tensors of one module, with their names."""
    gemma = "Gemma" in str(getattr(model.cfg, "original_architecture", None) or getattr(model.cfg, "architecture", ""))
    for names in _TENSORS:
        tensor = _first(part, names)
        if not isinstance(tensor, Tensor):
            continue
        if names == ("W_E",) and gemma and models.is_bridge(model):  # HookedTransformer keeps the scaled embedding
            tensor = tensor * torch.tensor(model.cfg.d_model**0.5, dtype=tensor.dtype, device="cpu")
        if names == ("W_pos",):
            if getattr(model.cfg, "positional_embedding_type", None) != "standard":
                continue  # HookedTransformer makes a W_pos for BLOOM, and never uses it
            tensor = tensor[-model.cfg.n_ctx :]  # OPT's W_pos begins with two rows that no position uses
        if names == ("w",) and gemma and models.is_bridge(model):
            tensor = tensor.float() + 1  # a bridge keeps Gemma's norm weights minus 1
        yield names[-1], tensor


def _first(owner: Any, names: Sequence[str]) -> Any:
    """Return the first of these attributes that exists, or None; dots are as in `models.nested`."""
    return next((value for name in names if (value := models.nested(owner, name)) is not None), None)


def _checksum(tensor: Tensor) -> int:
    """Return the sum of the numbers' bits, each times one number for its row and one for its column.

    Rows and columns are those of the tensor and not of its memory, where one model class has some tensors transposed.
    A row's sum is taken modulo 2**32, which no change of one number leaves the same, and the sum over rows modulo
    2**64. The upper half of a number's bits is first mixed into the lower half; without this, changes of signs and
    exponents would reach the uppermost bits of the sum only, and could cancel.
    """
    bits = _bits(tensor.detach())
    if bits.ndim < 2:
        bits = bits.reshape(1, -1)
    sums = torch.zeros(bits.shape[:-1], dtype=torch.int32, device=bits.device)
    _add_rows(sums, bits, _odd_numbers(bits.shape[-1], bits.device).int())
    return int((sums.flatten() * _odd_numbers(sums.numel(), bits.device)).sum())


def _add_rows(
    sums: Int32[Tensor, "*row"], bits: Integer[Tensor, "*row column"], columns: Int32[Tensor, " column"]
) -> None:
    """Add the sums of rows to `sums`, in pieces, which are cut in the order of memory."""
    if bits.numel() > (_CHUNK if bits.device.type == "cpu" else _CHUNK_ON_GPU):
        axis = max(range(bits.ndim), key=lambda axis: bits.stride(axis) if bits.shape[axis] > 1 else -1)
        half, is_last = bits.shape[axis] // 2, axis == bits.ndim - 1
        for piece in (slice(half), slice(half, None)):
            index = (slice(None),) * axis + (piece,)
            _add_rows(sums if is_last else sums[index], bits[index], columns[piece] if is_last else columns)
        return
    if bits.element_size() < 4:
        mixed = bits.int()
    else:
        mixed = torch.bitwise_right_shift(bits, 16).bitwise_and_(0xFFFF).bitwise_xor_(bits)
    sums += mixed.mul_(columns).sum(-1, dtype=torch.int32)


def _bits(tensor: Tensor) -> Integer[Tensor, "*number"]:
    """Return the bits of numbers as integers of 32 bits or fewer; longer numbers give several along the last axis."""
    size = tensor.element_size()
    return tensor.contiguous().view(torch.int32) if size > 4 else tensor.view(_INTEGERS[size])


def _odd_numbers(n: int, device: torch.device) -> Int64[Tensor, " n"]:
    """Return fixed odd numbers that look random; a multiple of an odd number modulo 2**64 tells what was multiplied."""
    numbers = torch.arange(1, n + 1, device=device, dtype=torch.int64) * _GOLDEN
    numbers = (numbers ^ (numbers >> 32)) * _GOLDEN
    return (numbers ^ (numbers >> 29)) | 1

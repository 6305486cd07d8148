"""A fingerprint of a model's weights.

It is the same for a HookedTransformer and a TransformerBridge with the same weights. It is a hash of one sum for each
tensor that has the same name, and so the same layout, in both classes (attention, MLP, norms, embedding, positions,
unembedding). Attention and MLPs that a bridge cannot show so, which no HookedTransformer has, count as their Hugging
Face modules keep them. An encoder or an encoder-decoder exists as a bridge only, so that all its weights count, by
their names in Hugging Face. The sum is over the tensor's numbers: the bits of each, read as an integer, times an
integer for its place. A sum of zero is left out, since one class makes biases of zero where the other has none. The
fingerprint finds mistakes; it does not protect against somebody who wants to deceive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
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
_CHUNK = 1 << 18  # how many numbers are held as 64 bits at a time
_GOLDEN = -7046029254386353131  # 2 to the 64th divided by the golden ratio, signed: it spreads places over all bits
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint_of_weights(model: LensModel) -> str:
    """Return a hash of the model's weights: the same for both model classes, and different if one weight differs.

    Offloaded weights are loaded one module at a time.

    Example:
        >>> len(fingerprint_of_weights(model))
        16
    """
    digest = hashlib.sha256()
    with torch.no_grad():
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
                        found |= _as_kept(part)
                    yield from ((f"{place}.{names[0]}.{name}", tensor) for name, tensor in found.items())


def _as_kept(part: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a bridge's Hugging Face module, numbered; none for other modules."""
    original = models.nested(part, "original_component")
    modules = original.modules() if isinstance(original, nn.Module) else ()
    tensors = [tensor for module in modules for tensor in _of_module(module)]
    return {f"parameter {number}": tensor for number, tensor in enumerate(tensors)}


def _of_module(module: Any) -> Iterator[Tensor]:
    """Iterate over a module's own weights, as plain tensors."""
    if type(getattr(module, "weight", None)).__module__.startswith("bitsandbytes"):
        # The first run repacks the weights and puts their scales elsewhere; this is one.
        device = module.weight.device
        module.forward(torch.zeros((1, module.in_features), dtype=torch.float32, device=device))
        scales = (models.nested(module, name) for name in ("weight.quant_state.absmax", "state.SCB"))
        yield from (scale for scale in scales if isinstance(scale, Tensor))
    for parameter in module.parameters(recurse=False):
        yield from _plain(parameter)


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
    """Return the sum of the numbers' bits, each times one number for its row and one for its column, modulo 2**64.

    Rows and columns are those of the tensor and not of its memory, where one model class has some tensors transposed.
    """
    bits = tensor.detach().view(_INTEGERS[tensor.element_size()])
    if bits.ndim < 2:
        bits = bits.reshape(1, -1)
    columns = torch.arange(3, 4 * bits.shape[-1], 4, device=bits.device) * _GOLDEN
    rows = max(1, _CHUNK * len(bits) // max(1, bits.numel()))  # 64 bits take up to four times the memory
    sums, place = [], 0
    for part in torch.split(bits, rows):
        # Always a copy: multiplying 64-bit weights in place would change the model.
        row_sums = part.to(torch.int64, copy=True).mul_(columns).sum(-1).flatten()
        sums.append((row_sums * torch.arange(2 * place + 1, 2 * (place + len(row_sums)), 2, device=bits.device)).sum())
        place += len(row_sums)
    return int(torch.stack(sums).sum())

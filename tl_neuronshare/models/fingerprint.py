"""A fingerprint of a model's weights.

It is the same for a HookedTransformer and a TransformerBridge with the same weights. It is made
of one sum for each tensor that TransformerLens names alike in both, and so lays out alike (attention, MLP, norms,
embedding, positions, unembedding): of the numbers' bits, each times a number for its place. A sum of zero is left out,
since one class makes biases of zero where the other has none. It is a checksum against mistakes, not against
somebody who wants to deceive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tl_neuronshare import models
from tl_neuronshare.models.lens import LensModel

# Modules of a block and of the model, then their tensors; of each group the first that is there. Under a name with an
# underscore HookedTransformer keeps grouped keys and values, which it repeats under the name without.
_BLOCK_PARTS = (("ln1",), ("ln1_post",), ("ln2",), ("ln2_post",), ("attn",), ("mlp",))
_MODEL_PARTS = (("embed",), ("embed_ln", "embed.ln"), ("pos_embed",), ("ln_final",), ("unembed",))
_TENSORS = (
    ("W_Q",), ("_W_K", "W_K"), ("_W_V", "W_V"), ("W_O",), ("b_Q",), ("_b_K", "b_K"), ("_b_V", "b_V"), ("b_O",),
    ("W_in",), ("W_gate",), ("W_out",), ("b_in",), ("b_out",), ("w",), ("b",), ("W_E",), ("W_pos",), ("W_U",), ("b_U",),
)  # fmt: skip
# Packages whose modules make up a model; what else is in it was added to it.
_MAKERS = ("torch", "transformers", "transformers_modules", "transformer_lens", "accelerate", "einops")
_CHUNK = 1 << 18  # numbers at a time
_GOLDEN = -7046029254386353131  # 2 to the 64th by the golden ratio, signed: spreads places over all bits
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint_of_weights(model: LensModel) -> str:
    """A hash of the model's weights, the same for both model classes; another as soon as one weight is another.

    Offloaded weights are loaded a module at a time.

    Example:
        >>> len(fingerprint_of_weights(model))
        16
    """
    digest = hashlib.sha256()
    with torch.no_grad():
        for name, tensor in _named_alike(model):
            checksum = _checksum(tensor)
            digest.update(f"{name} {tensor.numel()} {checksum}\n".encode() if checksum else b"")
        for tensor in _added(model):
            digest.update(f"added {tensor.numel()} {_checksum(tensor)}\n".encode())
    return digest.hexdigest()[:16]


def _named_alike(model: LensModel) -> Iterator[tuple[str, Tensor]]:
    """The tensors that both classes have, by name and as the same numbers."""
    owners = [(f"blocks.{number}", block, _BLOCK_PARTS) for number, block in enumerate(model.blocks)]
    for place, owner, parts in (*owners, ("model", model, _MODEL_PARTS)):
        for names in parts:
            part = _first(owner, names)
            if part is not None:
                with models.loaded(part):
                    yield from ((f"{place}.{names[0]}.{name}", tensor) for name, tensor in _tensors(model, part))


def _added(model: LensModel) -> Iterator[Tensor]:
    """The weights in modules that neither TransformerLens nor Transformers made, such as a LoRA adapter's."""
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
    """Those of one module."""
    gemma = "Gemma" in str(getattr(model.cfg, "original_architecture", None) or getattr(model.cfg, "architecture", ""))
    for names in _TENSORS:
        tensor = _first(part, names)
        if not isinstance(tensor, Tensor):
            continue
        if names == ("W_E",) and gemma and models.is_bridge(model):
            tensor = tensor * torch.tensor(
                model.cfg.d_model**0.5, dtype=tensor.dtype, device="cpu"
            )  # HookedTransformer keeps it so
        if names == ("W_pos",):
            if getattr(model.cfg, "positional_embedding_type", None) != "standard":
                continue  # HookedTransformer makes one for BLOOM, and never uses it
            tensor = tensor[-model.cfg.n_ctx :]  # OPT's begins with two rows that no position uses
        if names == ("w",) and gemma and models.is_bridge(model):
            tensor = tensor.float() + 1  # a bridge keeps Gemma's norms as their distance from 1
        yield names[-1], tensor


def _first(owner: Any, names: Sequence[str]) -> Any:
    """The first of these attributes (dots lead inwards) that is there, or None."""
    return next((found for name in names if (found := models.nested(owner, name)) is not None), None)


def _checksum(tensor: Tensor) -> int:
    """The sum of the numbers' bits, each times a number for its row and one for its column, modulo 2 to the 64th.

    In the order of the axes, not of the memory: the two model classes keep some tensors transposed.
    """
    bits = tensor.detach().view(_INTEGERS[tensor.element_size()])
    if bits.ndim < 2:
        bits = bits.reshape(1, -1)
    columns = torch.arange(3, 4 * bits.shape[-1], 4, device=bits.device) * _GOLDEN
    rows = max(1, _CHUNK * len(bits) // max(1, bits.numel()))  # as 64 bits they take up to four times the memory
    sums, place = [], 0
    for part in torch.split(bits, rows):
        # A copy of what has 64 bits already too: these are the weights.
        of_rows = part.to(torch.int64, copy=True).mul_(columns).sum(-1).flatten()
        sums.append((of_rows * torch.arange(2 * place + 1, 2 * (place + len(of_rows)), 2, device=bits.device)).sum())
        place += len(of_rows)
    return int(torch.stack(sums).sum())

"""Where a result comes from: what it says of the model, and fingerprints of weights and prompts.

The fingerprint of weights is the same for a HookedTransformer and a TransformerBridge with the same weights, although
the two lay them out differently: it is made of sums of the numbers' bits, which no transposition changes, over the
tensors that TransformerLens names alike in both (attention, MLP, norms, embedding, positions, unembedding). Zeros add
nothing, since one class makes biases of zero where the other has none. W_out enters row by row, so that the order of
the neurons counts too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from tl_neuronshare import models
from tl_neuronshare.models import LensModel
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.sharing import short_hash

_PACKAGES = ("tl_neuronshare", "transformer_lens", "transformers", "torch")
# Modules of a block and of the model, then their tensors; of each group the first that is there. Under a name with an
# underscore HookedTransformer keeps grouped keys and values, which it repeats under the name without.
_BLOCK_PARTS = (("ln1",), ("ln1_post",), ("ln2",), ("ln2_post",), ("attn",), ("mlp",))
_MODEL_PARTS = (("embed",), ("embed_ln", "embed.ln"), ("pos_embed",), ("ln_final",), ("unembed",))
_TENSORS = (
    ("W_Q",), ("_W_K", "W_K"), ("_W_V", "W_V"), ("W_O",), ("b_Q",), ("_b_K", "b_K"), ("_b_V", "b_V"), ("b_O",),
    ("W_in",), ("W_gate",), ("b_in",), ("b_out",), ("w",), ("b",), ("W_E",), ("W_pos",), ("W_U",), ("b_U",),
)  # fmt: skip
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def describe(model: LensModel) -> dict[str, Any]:
    """What a saved result should say of the model and of the software."""
    parameter = next(model.parameters())
    return {
        "model": models.name_of(model),
        "model_class": type(model).__name__,
        "weights": "folded" if _is_folded(model) else "not folded",
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": models.device_of(model).type,
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _is_folded(model: LensModel) -> bool:
    """Whether norms are folded into the weights; centring alone leaves no trace that could be read here."""
    if models.is_bridge(model):
        return bool(getattr(model, "compatibility_mode", False) or getattr(model, "_weights_processed", False))
    return str(model.cfg.normalization_type).endswith("Pre")


def fingerprint_of_prompts(prompts: ParallelPrompts) -> list[str]:
    """For each example a hash of its prompts in all languages, whatever the languages' order.

    Example:
        >>> one = ParallelPrompts({"en": ["Red and"], "de": ["Rot und"]})
        >>> fingerprint_of_prompts(one) == fingerprint_of_prompts(one.select(["de", "en"]))
        True
    """
    languages = sorted(prompts.languages)
    return [
        short_hash(json.dumps([[language, prompts.prompts[language][index]] for language in languages]))
        for index in range(len(prompts))
    ]


def fingerprint_of_weights(model: LensModel, hooks: Sequence[str]) -> str:
    """A hash of the model's weights, the same for both model classes; another as soon as one weight is another.

    Args:
        model: whose weights; offloaded ones are loaded a block at a time.
        hooks: a hook of each MLP that is read.

    Example:
        >>> len(fingerprint_of_weights(model, ["blocks.0.mlp.hook_post"]))
        16
    """
    digest, total = hashlib.sha256(), 0
    with torch.no_grad():
        for hook in hooks:
            with _loaded(models.block_of(model, hook)):
                rows = models.output_weights(model, hook)
                digest.update(str(tuple(rows.shape)).encode())
                digest.update(_bits(rows).sum(-1, dtype=torch.int64).cpu().numpy().tobytes())
        for owner, groups in (*((block, _BLOCK_PARTS) for block in model.blocks), (model, _MODEL_PARTS)):
            for part in filter(None, (_first(owner, names) for names in groups)):
                with _loaded(part):
                    total += sum(_sum_of_bits(tensor) for tensor in _tensors(model, part))
    digest.update(str(total).encode())
    return digest.hexdigest()[:16]


def _tensors(model: LensModel, part: nn.Module) -> Iterator[Tensor]:
    """The tensors of one part that both classes have, as the same numbers."""
    gemma = "Gemma" in str(getattr(model.cfg, "original_architecture", None) or getattr(model.cfg, "architecture", ""))
    for names in _TENSORS:
        tensor = _first(part, names)
        if not isinstance(tensor, Tensor):
            continue
        if names == ("W_E",) and gemma and models.is_bridge(model):
            tensor = tensor * torch.tensor(model.cfg.d_model**0.5, dtype=tensor.dtype)  # HookedTransformer keeps it so
        if names == ("W_pos",):
            if getattr(model.cfg, "positional_embedding_type", None) != "standard":
                continue  # HookedTransformer makes one for BLOOM, and never uses it
            tensor = tensor[-model.cfg.n_ctx :]  # OPT's begins with two rows that no position uses
        if names == ("w",) and getattr(model.cfg, "rmsnorm_uses_offset", False):
            tensor = tensor.float() + 1  # a bridge keeps Gemma's norms as their distance from 1
        yield tensor


def _first(owner: Any, names: Sequence[str]) -> Any:
    """The first of these attributes (dots lead inwards) that is there, or None."""
    return next((found for name in names if (found := _attribute(owner, name)) is not None), None)


def _attribute(owner: Any, name: str) -> Any:
    try:
        return attrgetter(name)(owner)
    except (AttributeError, NotImplementedError, TypeError):  # what bridges raise for what an architecture lacks
        return None


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(_INTEGERS[tensor.element_size()])


def _sum_of_bits(tensor: Tensor) -> int:
    return int(_bits(tensor).sum(dtype=torch.int64))


@contextmanager
def _loaded(module: nn.Module) -> Iterator[None]:
    """The module's weights where they can be read: accelerate keeps offloaded ones on the meta device."""
    with ExitStack() as stack:
        for part in module.modules():
            if hasattr(part, "_hf_hook"):
                from accelerate.utils import align_module_device

                stack.enter_context(align_module_device(part))
        yield

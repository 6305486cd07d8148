"""Where a result comes from: what it says of the model, the prompts and the types; and whether these fit together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import pack
from tl_neuronshare.models import verification
from tl_neuronshare.models.fingerprint import fingerprint_of_weights
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.prompts import ParallelPrompts, hashes_of, short_hash
from tl_neuronshare.results.identity import first_differing
from tl_neuronshare.results.sharing import NeuronSharing

_PACKAGES = ("tl_neuronshare", "transformer_lens", "transformers", "torch")
_CHUNK_OF_COLUMNS = 1000  # enough for a standard deviation


def describe(model: LensModel) -> dict[str, Any]:
    """What a saved result should say of the model and of the software."""
    parameter = next(model.parameters())
    return {
        "model": models.name_of(model),
        "model_class": type(model).__name__,
        "weights": "folded" if models.is_processed(model) else "centred" if _is_centred(model) else "not folded",
        "verified": verification.is_verified(model),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": models.device_of(model).type,
        "versions": {name: version(name) for name in _PACKAGES},
    }


def of_run(
    model: LensModel, prompts: ParallelPrompts, sharing_or_masks: NeuronSharing | Mapping[str, Tensor]
) -> dict[str, Any]:
    """What a table should say of the model, prompts and types (or masks, by hashes) that it was made from."""
    if isinstance(sharing_or_masks, NeuronSharing):
        source: dict[str, Any] = {"sharing": dict(sharing_or_masks.metadata)}
    else:
        bits = {name: pack(mask).numpy().tobytes().hex() for name, mask in sharing_or_masks.items()}
        source = {"masks": {name: short_hash(of_mask) for name, of_mask in bits.items()}}
    return describe(model) | {
        **source,
        "prompts": prompts.name,
        "languages": list(prompts.languages),
        "examples": len(prompts),
        "fingerprint_of_prompts": short_hash("".join(hashes_of(prompts))),
        "fingerprint_of_answers": short_hash(json.dumps([prompts.answers, prompts.choices], sort_keys=True)),
    }


def require_match(
    model: LensModel,
    prompts: ParallelPrompts,
    sharing: NeuronSharing,
    *,
    prepend_bos: bool | None,
    same_prompts: bool = True,
    advice: str = "",
) -> None:
    """Refuse types that are not of these languages, prompts and layers, and of this choice of BOS.

    Args:
        model: that is to be run.
        prompts: that are to be run.
        sharing: the types.
        prepend_bos: as in `categorise`.
        same_prompts: whether the types must be of these very prompts, where they know theirs.
        advice: the end of the message about other prompts.

    Raises:
        NeuronShareError: says what differs. Whether the weights differ, `of_same_weights` says.
    """
    missing = [language for language in prompts.languages if language not in sharing.languages]
    if missing:
        raise NeuronShareError(f"The types are of {', '.join(sharing.languages)}, and not of {', '.join(missing)}.")
    if same_prompts:
        _require_same_prompts(prompts, sharing, advice)
    require_layers(model, sharing)
    theirs = sharing.metadata.get("prepend_bos")
    if same_prompts and theirs is not None and theirs != models.resolve_prepend_bos(model, prepend_bos):
        raise NeuronShareError(
            f"The types were measured with prepend_bos={theirs}; give the same here, or categorise anew."
        )


def _require_same_prompts(prompts: ParallelPrompts, sharing: NeuronSharing, advice: str) -> None:
    what_to_do = f"give the prompts that were categorised, in the same order{advice and ', ' + advice}."
    if len(prompts) != len(sharing):
        raise NeuronShareError(
            f"There are {len(prompts)} examples of prompts and {len(sharing)} of types; {what_to_do}"
        )
    differing = first_differing(prompts, sharing)
    if differing is not None:
        raise NeuronShareError(f"Example {prompts.examples[differing]!r}: the types are of other prompts; {what_to_do}")


def require_layers(model: LensModel, sharing: NeuronSharing) -> None:
    """Refuse a model with other layers than the types are of."""
    widths = [layer.width for layer in models.neuron_layers(model, "post")]
    if tuple(widths) != sharing.widths:
        raise NeuronShareError(
            f"The types are of layers of {', '.join(map(str, sharing.widths))} neurons, {models.name_of(model)} has "
            f"{', '.join(map(str, widths))}; categorise with this model."
        )


def of_same_weights(model: LensModel, sharing: NeuronSharing) -> bool:
    """Whether the types were measured on this model's weights; where they do not know theirs, that is assumed."""
    theirs = str(sharing.metadata.get("fingerprint", "unknown")).split("-")[0]
    return theirs in ("unknown", fingerprint_of_weights(model))


def processed_weights(weights: str, what: str) -> str | None:
    """What to warn of where weights are, as `describe` has it, folded or centred, which changes `what`; else None."""
    if weights == "not folded":
        return None
    return (
        f"The weights are {weights}, which changes W_out and the unembedding, and so {what}; load the model with "
        "load_model or from_pretrained_no_processing."
    )


def _is_centred(model: LensModel) -> bool:
    """Whether the mean was taken from what the first MLP writes, or from the unembedding over the vocabulary."""
    writing = models.neuron_layers(model, "post")[0].W_out()
    has_unembedding = models.nested(model, "unembed.W_U") is not None
    return _has_no_mean(writing) or (has_unembedding and _has_no_mean(models.unembedding(model, slice(None))))


def _has_no_mean(weights: Float[Tensor, "row column"]) -> bool:
    """Whether the rows' means are no more than rounding leaves, and far less than those of random numbers.

    The mean of n random numbers is about a standard deviation by the root of n.
    """
    spread = weights[:, :_CHUNK_OF_COLUMNS].float().std(-1)
    means = weights.mean(-1, dtype=torch.promote_types(weights.dtype, torch.float32))
    relative = (means / spread)[spread > 0].square().mean().sqrt().item()  # NaN where there is no spread
    return relative < 8 * torch.finfo(weights.dtype).eps and relative * weights.shape[-1] ** 0.5 < 0.05

"""Record which model, prompts and types a result comes from, and check that these fit together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
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
from tl_neuronshare.results.rates import NeuronRates
from tl_neuronshare.results.sharing import NeuronSharing

PACKAGES = ("tl_neuronshare", "transformer_lens", "transformers", "torch")
# Processing centres all rows of a tensor. These are enough to see it, and few, because each run looks.
_ROWS, _COLUMNS_FOR_SPREAD = 16, 1000


def describe(model: LensModel) -> dict[str, Any]:
    """Describe the model and the software, for the metadata of a result."""
    parameter = next(model.parameters())
    quantised = models.quantisation_of(model)
    return {
        "model": models.name_of(model),
        "model_class": type(model).__name__,
        "weights": "folded" if models.is_processed(model) else "centred" if _is_centred(model) else "not folded",
        "verified": verification.is_verified(model),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        **({"quantised": quantised} if quantised else {}),
        "device": models.device_of(model).type,
        "versions": dict(_versions()),
    }


@cache
def _versions() -> dict[str, str]:
    """The versions of the packages, which are read from files."""
    return {name: version(name) for name in PACKAGES}


def decoder_prompt_of(model: LensModel) -> dict[str, list[int]]:
    """Give the tokens that an encoder-decoder's decoder begins with, for the metadata; nothing for other models."""
    has_both = models.architecture_of(model) == "encoder-decoder"
    return {"decoder_prompt": models.decoder_prompt(model)} if has_both else {}


def of_run(
    model: LensModel, prompts: ParallelPrompts, sharing_or_masks: NeuronSharing | Mapping[str, Tensor]
) -> dict[str, Any]:
    """Describe the model, the prompts and the types (or hashes of the masks) that a table was made from."""
    if isinstance(sharing_or_masks, NeuronSharing):
        source: dict[str, Any] = {"sharing": dict(sharing_or_masks.metadata)}
    else:
        source = {"masks": hash_of_bits(sharing_or_masks)}
    return describe(model) | source | _prompts(prompts)


def of_prompts(model: LensModel, prompts: ParallelPrompts) -> dict[str, Any]:
    """Describe the model, its weights and the prompts that a run is of, so that no other run has the same."""
    return {
        **describe(model),
        "fingerprint_of_weights": fingerprint_of_weights(model),
        **decoder_prompt_of(model),
        **_prompts(prompts),
        # What is drawn at random for an example depends on its label.
        "fingerprint_of_examples": short_hash(json.dumps([repr(label) for label in prompts.examples])),
    }


def surroundings_of(model: LensModel) -> dict[str, Any]:
    """Describe what else a run depends on: autocast, and the tokenizer."""
    device = models.device_of(model).type
    autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None
    tokenizer: Any = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        how = json.dumps(sorted(tokenizer.get_vocab().items()))
    else:  # before its tokens it says how the latest texts were padded
        how = backend.to_str()
        how = how[how.find('"added_tokens"') :]
    return {"autocast": autocast, "tokenizer": short_hash(type(tokenizer).__name__ + how)}


def hash_of_bits(sharing_or_masks: NeuronSharing | Mapping[str, Tensor]) -> str | dict[str, str]:
    """Return a hash of the activations of a result, or of each mask."""
    if isinstance(sharing_or_masks, NeuronSharing):
        return hashlib.sha256(sharing_or_masks.packed.contiguous().numpy().data).hexdigest()[:16]
    return {name: short_hash(pack(mask).numpy().tobytes().hex()) for name, mask in sharing_or_masks.items()}


def hash_of_values(values: Any) -> Any:
    """Return a hash of each tensor of a mapping; anything else stays as it is."""
    if not isinstance(values, Mapping):
        return values
    return {name: short_hash(tensor.detach().double().cpu().numpy().tobytes().hex()) for name, tensor in values.items()}


def _prompts(prompts: ParallelPrompts) -> dict[str, Any]:
    return {
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
    """Refuse types that were found for other languages, prompts or layers, or for another choice of BOS.

    This does not compare the weights; `of_same_weights` does.

    Args:
        model: the model that is to be run.
        prompts: the prompts that are to be run.
        sharing: the types.
        prepend_bos: as in `categorise`.
        same_prompts: whether the types must be of exactly these prompts. Types that do not know their prompts pass.
        advice: the end of the message if the types are of other prompts.

    Raises:
        NeuronShareError: the types do not fit, with what differs.
    """
    missing = [language for language in prompts.languages if language not in sharing.languages]
    if missing:
        raise NeuronShareError(f"The types are of {', '.join(sharing.languages)}, and not of {', '.join(missing)}.")
    if same_prompts:
        _require_same_prompts(prompts, sharing, advice)
    require_layers(model, sharing)
    start, now = sharing.metadata.get("decoder_prompt"), decoder_prompt_of(model).get("decoder_prompt")
    if same_prompts and start is not None and start != now:
        raise NeuronShareError(
            f"The types were measured with a decoder that begins with tokens {start}, and now with {now}; set "
            "the same target language, or categorise anew."
        )
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
    """Refuse a model whose layers are not those of the types."""
    widths = [layer.width for layer in models.neuron_layers(model, "post")]
    if tuple(widths) != sharing.widths:
        raise NeuronShareError(
            f"The types are of layers of {', '.join(map(str, sharing.widths))} neurons, but {models.name_of(model)} "
            f"has {', '.join(map(str, widths))}; categorise with this model."
        )


def of_same_weights(model: LensModel, measured: NeuronSharing | NeuronRates) -> bool:
    """Whether types or rates were measured on this model's weights. Those that do not know their weights pass."""
    theirs = str(measured.metadata.get("fingerprint", "unknown")).split("-")[0]
    return theirs in ("unknown", fingerprint_of_weights(model))


def processed_weights(weights: str, what: str) -> str | None:
    """The warning that folded or centred weights change `what`; None if weights are neither.

    Args:
        weights: the entry `weights` of `describe`.
        what: what such weights change.
    """
    if weights == "not folded":
        return None
    return (
        f"The weights are {weights}, which changes W_out and the unembedding, and so {what}; load the model with "
        "load_model or from_pretrained_no_processing."
    )


def _is_centred(model: LensModel) -> bool:
    """Whether the mean was subtracted from what the first MLP writes, or from the unembedding over the vocabulary."""
    writing = models.neuron_layers(model, "post")[0].W_out()
    has_unembedding = models.nested(model, "unembed.W_U") is not None
    return _has_no_mean(writing) or (has_unembedding and _has_no_mean(models.unembedding(model, slice(None))))


def _has_no_mean(weights: Float[Tensor, "row column"]) -> bool:
    """Whether the means of the first rows are as small as rounding errors, and smaller than those of random numbers.

    The mean of n random numbers is about their standard deviation divided by the square root of n.
    """
    rows = weights[:_ROWS]
    spread = rows[:, :_COLUMNS_FOR_SPREAD].float().std(-1)
    means = rows.mean(-1, dtype=torch.promote_types(weights.dtype, torch.float32))
    relative = (means / spread)[spread > 0].square().mean().sqrt().item()  # NaN if no row has any spread
    return relative < 8 * torch.finfo(weights.dtype).eps and relative * weights.shape[-1] ** 0.5 < 0.05

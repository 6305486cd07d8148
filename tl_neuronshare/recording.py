"""Run parallel prompts through a model and record which neurons are activated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from numbers import Integral, Real
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_neuronshare import models
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models import LensModel, NeuronLayer, Site
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.sharing import NeuronSharing, pack, packed_width

Position = Literal["last"]
# What "auto" puts in one batch, padding included: enough to keep a GPU busy, little beside a model's weights.
_AUTO_TOKENS, _AUTO_PROMPTS = 8192, 256


@dataclass(frozen=True)
class _Prompt:
    """One example in one language, as tokens."""

    example: int
    language: int
    tokens: list[int]


def categorise(
    model: LensModel,
    prompts: ParallelPrompts,
    *,
    site: Site = "post",
    position: Position = "last",
    threshold: float = 0.0,
    batch_size: Literal["auto"] | int = "auto",
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> NeuronSharing:
    """Find which neurons each prompt activates: those whose value at the last prompt token is above the threshold.

    Reads the MLPs' post-activation hooks through `run_with_cache`, so hooks of the user's own that are active
    (`with model.hooks(...)`) are seen. The model is left as found.

    Args:
        model: a HookedTransformer or TransformerBridge; for scores of any kind, with raw weights.
        prompts: the same examples in at least two languages.
        site: `post`, the input of the down projection (gated MLPs: act(gate) x up); or `gate`, act(gate) of
            gated MLPs, whose sign differs from the product's for about half of the neurons. MLPs without a
            gate have only `post`, which metadata then records.
        position: which token is read; `last` is the one that predicts the first token of the answer.
        threshold: in the units of the neuron's value.
        batch_size: prompts in one forward pass; `auto` fits it to their lengths. Prompts of similar
            length go together. The result does not depend on it, but for rounding.
        prepend_bos: whether prompts begin with the BOS token; None is the model's default.
        progress: whether to show a progress bar where it takes more than two seconds.

    Raises:
        NeuronShareError: an unsuitable model or option, a prompt longer than the context, or activations that
            are NaN or infinite.

    Source: arXiv 2406.09265, section 3 (value > 0 at the last token).

    Example:
        >>> prompts = ParallelPrompts({"en": ["Country code of Peru →"], "de": ["Ländercode von Peru →"]})
        >>> sharing = categorise(model, prompts)
        >>> sharing.types.shape  # example layer neuron
        torch.Size([1, 4, 512])
    """
    _check_options(prompts, position, threshold, batch_size, prepend_bos)
    layers = models.neuron_layers(model, site)
    rows = _tokenised(model, prompts, prepend_bos)
    batches = plan_batches([len(row.tokens) for row in rows], batch_size, pad=models.can_pad(model))
    shape = (len(prompts), len(prompts.languages), len(layers), packed_width(max(layer.width for layer in layers)))
    packed = torch.zeros(shape, dtype=torch.uint8)
    borderline = 0
    with models.left_as_found(model), tqdm(total=len(rows), desc="categorise", disable=not progress, delay=2) as bar:
        for indices in batches:
            batch = [rows[index] for index in indices]
            examples, languages = [row.example for row in batch], [row.language for row in batch]
            for number, values in enumerate(models.read_last(model, [row.tokens for row in batch], layers)):
                _check_finite(values, layers[number], batch, prompts)
                bits = pack(_at_least_single(values) > threshold)
                packed[examples, languages, number, : bits.shape[-1]] = bits
                borderline += count_borderline(values, threshold)
            bar.update(len(batch))
    return NeuronSharing(
        packed,
        languages=prompts.languages,
        widths=[layer.width for layer in layers],
        hooks=[layer.hook for layer in layers],
        metadata={
            **models.describe(model),
            "prompts": prompts.name,
            "site": _true_site(site, layers),
            "position": position,
            "threshold": float(threshold),
            "prepend_bos": models.resolve_prepend_bos(model, prepend_bos),
            "batch_size": batch_size if batch_size == "auto" else int(batch_size),
            "batches": len(batches),
            "borderline_fraction": borderline / (len(rows) * sum(layer.width for layer in layers)),
            "versions": {
                name: version(name) for name in ("tl_neuronshare", "transformer_lens", "transformers", "torch")
            },
        },
    )


def _check_options(
    prompts: object, position: object, threshold: object, batch_size: object, prepend_bos: object
) -> None:
    if not isinstance(prompts, ParallelPrompts):
        raise NeuronShareError(
            f"prompts is a {type(prompts).__name__}; make it ParallelPrompts({{language: [prompt, ...], ...}})."
        )
    if position not in get_args(Position):
        raise NeuronShareError(f"position={position!r} is unknown; use one of {', '.join(get_args(Position))}.")
    if isinstance(threshold, bool) or not isinstance(threshold, Real) or not math.isfinite(threshold):
        raise NeuronShareError(f"threshold={threshold!r} is no finite number; 0.0 is the paper's.")
    if batch_size != "auto" and (
        isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1
    ):
        raise NeuronShareError(f'batch_size={batch_size!r} is unknown; use "auto" or a number of prompts, at least 1.')
    if not (prepend_bos is None or isinstance(prepend_bos, bool)):
        raise NeuronShareError(f"prepend_bos={prepend_bos!r} is unknown; use True, False, or None for the model's own.")


def _true_site(site: Site, layers: Sequence[NeuronLayer]) -> Site:
    """`gate` only where a gate was read."""
    return site if any(layer.activation for layer in layers) else "post"


def _tokenised(model: LensModel, prompts: ParallelPrompts, prepend_bos: bool | None) -> list[_Prompt]:
    """Every prompt as tokens, checked against the context; nothing is cut off."""
    rows = []
    for number, language in enumerate(prompts.languages):
        tokenised = models.tokenise(model, prompts.prompts[language], prepend_bos=prepend_bos)
        for index, tokens in enumerate(tokenised):
            where = f"Language {language!r}, example {prompts.examples[index]!r}"
            if not tokens:
                raise NeuronShareError(f"{where}: the prompt has no token; write one that the tokenizer can read.")
            if len(tokens) > model.cfg.n_ctx:
                raise NeuronShareError(
                    f"{where}: the prompt has {len(tokens)} tokens, the model's context {model.cfg.n_ctx}; "
                    "shorten it or drop that example in every language."
                )
            rows.append(_Prompt(index, number, tokens))
    return rows


def plan_batches(lengths: Sequence[int], batch_size: Literal["auto"] | int, *, pad: bool) -> list[list[int]]:
    """Which prompts share a forward pass: those of similar length, or of equal length where nothing may be padded.

    Example:
        >>> plan_batches([5, 3, 5, 4], 2, pad=True)
        [[1, 3], [0, 2]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        # Sorted by length: the newest prompt is the longest of its batch.
        room = min(_AUTO_PROMPTS, max(1, _AUTO_TOKENS // lengths[index])) if batch_size == "auto" else batch_size
        fits = batches and len(batches[-1]) < room and (pad or lengths[batches[-1][0]] == lengths[index])
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def count_borderline(values: Float[Tensor, "prompt neuron"], threshold: float) -> int:
    """How many values are so near the threshold that rounding may carry them over it; exact hits and zeros are not.

    Near is within 16 eps(dtype) x the root mean square of that prompt's layer.
    """
    wide = _at_least_single(values)
    reach = 16 * torch.finfo(values.dtype).eps * wide.square().mean(-1, keepdim=True).sqrt()
    distance = (wide - threshold).abs()
    return int(((distance > 0) & (distance <= reach) & (wide != 0)).sum())


def _at_least_single(values: Float[Tensor, "prompt neuron"]) -> Float[Tensor, "prompt neuron"]:
    """Half precision widened, else the threshold would be rounded to it too; double precision kept."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _check_finite(
    values: Float[Tensor, "prompt neuron"], layer: NeuronLayer, batch: Sequence[_Prompt], prompts: ParallelPrompts
) -> None:
    finite = values.isfinite().all(-1)
    if not finite.all():
        prompt = batch[int((~finite).long().argmax())]
        raise NeuronShareError(
            f"NaN or infinite activations at {layer.hook}, example {prompts.examples[prompt.example]!r}, "
            f"language {prompts.languages[prompt.language]!r}; "
            "load the model in float32 or bfloat16, and check your own hooks."
        )

"""Which neurons each prompt activates: from prompts, through a run of our own, or from caches that are there already.

Both hand a model's activations to a `SharingRecorder` (recording.py) and so give the same result on the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from numbers import Integral
from typing import Any, Literal, cast, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_neuronshare import models
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import Number, Position
from tl_neuronshare.models import verification
from tl_neuronshare.models.layers import NeuronLayer, Site
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.models.tokens import left_padded, tokenised
from tl_neuronshare.prompts import ParallelPrompts, as_list
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.running.plan import BatchSize, check_options, plan_batches
from tl_neuronshare.running.recording import Batch, SharingRecorder


@overload
def categorise(
    model: LensModel,
    prompts: ParallelPrompts,
    *,
    site: Site = ...,
    position: Position = ...,
    threshold: Number = ...,
    batch_size: BatchSize = ...,
    prepend_bos: bool | None = ...,
    progress: bool = ...,
) -> NeuronSharing: ...


@overload
def categorise(
    model: LensModel,
    prompts: ParallelPrompts,
    *,
    site: Site = ...,
    position: Position = ...,
    threshold: Sequence[Number],
    batch_size: BatchSize = ...,
    prepend_bos: bool | None = ...,
    progress: bool = ...,
) -> dict[float, NeuronSharing]: ...


def categorise(
    model: LensModel,
    prompts: ParallelPrompts,
    *,
    site: Site = "post",
    position: Position = "last",
    threshold: Number | Sequence[Number] = 0.0,
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> NeuronSharing | dict[float, NeuronSharing]:
    """Find which neurons each prompt activates: those whose value at the chosen position is above the threshold.

    Runs the model under the hooks of a `SharingRecorder`, so hooks of the user's own that are active
    (`with model.hooks(...)`) are seen. The model is left as found.

    Args:
        model: a HookedTransformer or TransformerBridge; for scores of any kind, with raw weights.
        prompts: the same examples in at least two languages.
        site: `post`, the input of the down projection (gated MLPs: act(gate) x up); or, of gated MLPs, `gate`,
            which is act(gate) and has another sign than the product for about half of the neurons, or `up`.
            MLPs without a gate have only `post`, which metadata then records for `gate`; `up` is refused.
        position: which token is read. `last` is the one that predicts the first token of the answer, a negative
            index counts from there (-1 is `last`). `any`: activated at some token of the prompt, `all`: at every
            one, special tokens (BOS ...) left out.
        threshold: in the units of the neuron's value. A sequence gives {threshold: result} from one pass.
        batch_size: prompts in one forward pass; `auto` fits it to their lengths. Prompts of similar
            length go together. The result does not depend on it, but for rounding.
        prepend_bos: whether prompts begin with the BOS token; None is the model's default.
        progress: whether to show a progress bar where it takes more than two seconds.

    Raises:
        NeuronShareError: an unsuitable model or option, a prompt longer than the context or too short for the
            position, or activations that are NaN or infinite.

    Source: arXiv 2406.09265, section 3 (value > 0 at the last token), and its analysis across tokens.

    Example:
        >>> prompts = ParallelPrompts({"en": ["Country code of Peru →"], "de": ["Ländercode von Peru →"]})
        >>> categorise(model, prompts).types.shape  # example layer neuron
        torch.Size([1, 4, 512])
        >>> list(categorise(model, prompts, position="any", threshold=[0, 0.5]))
        [0.0, 0.5]
    """
    check_options(prompts, batch_size, prepend_bos)
    models.check_model(model)
    rows = [  # one language after the other
        row
        for language, texts in prompts.prompts.items()
        for row in tokenised(model, texts, language, prompts.examples, prepend_bos=prepend_bos)
    ]
    recorder = SharingRecorder(
        model, prompts.languages, len(prompts), site=site, position=position, threshold=threshold
    )
    recorder.labels = prompts.examples
    batches = plan_batches([(len(row),) for row in rows], batch_size, packing=verification.packing(model))
    batch: Batch

    def read(layer: int, tensor: Tensor) -> None:
        batch.read(layer, tensor)  # the batch of the moment

    with (
        models.left_as_found(model),
        tqdm(total=len(rows), desc="categorise", disable=not progress, delay=2) as bar,
        models.reading(model, recorder.layers, read),
    ):
        for indices in batches:
            tokens, mask = left_padded([rows[index] for index in indices])
            languages = [prompts.languages[index // len(prompts)] for index in indices]
            examples = [index % len(prompts) for index in indices]
            shown = torch.ones_like(tokens) if mask is None else mask
            batch = recorder.batch(languages, examples, shown, tokens)
            models.run(model, tokens, mask)
            batch.require_complete()
            bar.update(len(indices))
    found = recorder.sharing(prompts=prompts)
    of_the_run = {
        "prepend_bos": models.resolve_prepend_bos(model, prepend_bos),
        "common_prefix_share": _common_prefix_share(rows, len(prompts), set(models.special_tokens(model))),
        "batch_size": batch_size if batch_size == "auto" else int(batch_size),
        "batches": len(batches),
    }
    for sharing in [found] if isinstance(found, NeuronSharing) else found.values():
        sharing.metadata.update(of_the_run)
    return found


@overload
def categorise_caches(
    caches: Mapping[str, Any],
    *,
    lengths: Mapping[str, Sequence[int] | Int[Tensor, " example"]] | None = ...,
    padding_side: Literal["left", "right"] = ...,
    tokens: Mapping[str, Int[Tensor, "example position"]] | None = ...,
    prompts: ParallelPrompts | None = ...,
    site: Site = ...,
    position: Position = ...,
    threshold: Number = ...,
) -> NeuronSharing: ...


@overload
def categorise_caches(
    caches: Mapping[str, Any],
    *,
    lengths: Mapping[str, Sequence[int] | Int[Tensor, " example"]] | None = ...,
    padding_side: Literal["left", "right"] = ...,
    tokens: Mapping[str, Int[Tensor, "example position"]] | None = ...,
    prompts: ParallelPrompts | None = ...,
    site: Site = ...,
    position: Position = ...,
    threshold: Sequence[Number],
) -> dict[float, NeuronSharing]: ...


def categorise_caches(
    caches: Mapping[str, Any],
    *,
    lengths: Mapping[str, Sequence[int] | Int[Tensor, " example"]] | None = None,
    padding_side: Literal["left", "right"] = "right",
    tokens: Mapping[str, Int[Tensor, "example position"]] | None = None,
    prompts: ParallelPrompts | None = None,
    site: Site = "post",
    position: Position = "last",
    threshold: Number | Sequence[Number] = 0.0,
) -> NeuronSharing | dict[float, NeuronSharing]:
    """The same as `categorise`, from activations that `run_with_cache` has cached already.

    Args:
        caches: for each language its ActivationCache, row i of every one for example i. Of whole prompts: of one that
            was made with `pos_slice`, what it holds is taken for the prompt.
        lengths: for each language how many tokens each prompt has; None only where nothing is padded (TransformerLens
            pads a list of strings by itself).
        padding_side: where the padding stands.
        tokens: for each language what the model was given. For the positions `any` and `all`, which leave special
            tokens out and cannot see them otherwise; without it they count every token.
        prompts: what was run, for the fingerprint in the metadata.
        site: as in `categorise`; the hooks that it reads must be in the caches.
        position: as in `categorise`.
        threshold: as in `categorise`.

    Raises:
        NeuronShareError: no caches of one model, a hook that was not cached, languages with other numbers of
            examples, lengths or tokens that do not fit, and what `categorise` raises.

    Example:
        >>> texts = {"en": "Country code of Peru →", "de": "Ländercode von Peru →"}
        >>> caches = {language: model.run_with_cache(text)[1] for language, text in texts.items()}
        >>> categorise_caches(caches).types.shape  # example layer neuron
        torch.Size([1, 4, 512])
    """
    model = _model_of(caches)
    if padding_side not in ("left", "right"):
        raise NeuronShareError(f"padding_side={padding_side!r} is unknown; use left or right.")
    for what, table in (("lengths", lengths), ("tokens", tokens)):
        if table is not None and (not isinstance(table, Mapping) or set(table) != set(caches)):
            raise NeuronShareError(f"{what} is not for the languages of the caches; give it for {', '.join(caches)}.")
    layers = models.neuron_layers(model, site)
    read = {language: [_cached(cache, layer, language) for layer in layers] for language, cache in caches.items()}
    sizes = {language: len(tensors[0]) for language, tensors in read.items()}
    if len(set(sizes.values())) > 1:
        raise NeuronShareError(
            "The caches hold different numbers of prompts: "
            + ", ".join(f"{language} {size}" for language, size in sizes.items())
            + ". Row i must be example i in every language."
        )
    n_examples = next(iter(sizes.values()))
    recorder = SharingRecorder(model, list(caches), n_examples, site=site, position=position, threshold=threshold)
    for language, tensors in read.items():
        n_tokens = tensors[0].shape[1]
        mask = None if lengths is None else _mask(lengths[language], n_examples, n_tokens, padding_side, language)
        batch = recorder.batch(language, range(n_examples), mask, None if tokens is None else tokens[language])
        for number, tensor in enumerate(tensors):
            batch.read(number, tensor)
    return recorder.sharing(prompts=prompts)


def _model_of(caches: Mapping[str, Any]) -> LensModel:
    """The one model that made the caches."""
    if not isinstance(caches, Mapping) or not caches:
        raise NeuronShareError("caches is no mapping from language to ActivationCache; give {'en': cache, ...}.")
    found = {language: getattr(cache, "model", None) for language, cache in caches.items()}
    first = next(iter(found.values()))
    for language, model in found.items():
        if model is None:
            raise NeuronShareError(
                f"Language {language!r}: a {type(caches[language]).__name__} is no ActivationCache, which knows its "
                "model; take what run_with_cache returns, without return_cache_object=False."
            )
        if model is not first:
            raise NeuronShareError(f"Language {language!r}: another model than the first; cache all with one model.")
    return cast(LensModel, first)


def _cached(cache: Any, layer: NeuronLayer, language: str) -> Float[Tensor, "example position neuron"]:
    """One layer's activations; a cache without its batch axis is of one example."""
    if layer.hook not in cache.cache_dict:
        raise NeuronShareError(
            f"Language {language!r}: the cache lacks {layer.hook}; cache it too, such as with "
            f"names_filter=lambda name: name.endswith({layer.hook.split('.')[-1]!r})."
        )
    tensor: Tensor = cache.cache_dict[layer.hook]
    return tensor if cache.has_batch_dim else tensor[None]


def _mask(
    lengths: Sequence[int] | Int[Tensor, " example"], n_examples: int, n_tokens: int, padding_side: str, language: str
) -> Bool[Tensor, "example position"]:
    """True at the tokens that are no padding."""
    given = as_list(lengths)
    fits = isinstance(given, Sequence) and len(given) == n_examples
    if not fits or not all(isinstance(length, Integral) and length in range(1, n_tokens + 1) for length in given):
        raise NeuronShareError(
            f"Language {language!r}: lengths {lengths!r} do not fit {n_examples} prompts of at most {n_tokens} tokens; "
            "give the number of tokens of each."
        )
    places = (
        torch.arange(n_tokens, device="cpu")
        if padding_side == "right"
        else torch.arange(n_tokens, device="cpu").flip(0)
    )
    return places < torch.tensor(given, device="cpu")[:, None]


def _common_prefix_share(rows: Sequence[Sequence[int]], n_examples: int, special: set[int]) -> float:
    """The share of a prompt's tokens that open it in all languages alike, special ones left out: mean over prompts."""
    shares = []
    for example in range(n_examples):
        prompts = [[token for token in row if token not in special] for row in rows[example::n_examples]]
        common = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False)))
        shares += [common / len(tokens) if tokens else 0.0 for tokens in prompts]
    return sum(shares) / len(shares)

"""Which neurons each prompt activates: from prompts, through a run of our own, or from caches that are there already.

Both hand a model's activations to a `SharingRecorder` (recording.py) and so give the same result on the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast, overload

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.checks import one_of
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import Number, Position
from tl_neuronshare.models import LensModel, NeuronLayer, Site
from tl_neuronshare.prompts import ParallelPrompts, as_list, require_prompts
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.running.plan import Batch, BatchSize, Plan, Running, running
from tl_neuronshare.running.recording import RecordedPass, SharingRecorder

if TYPE_CHECKING:
    from typing_extensions import Unpack

    class _HowToRead(TypedDict, total=False):
        site: Site
        position: Position
        batch_size: BatchSize
        prepend_bos: bool | None
        progress: bool

    class _HowCached(TypedDict, total=False):
        lengths: Mapping[str, Sequence[int] | Int[Tensor, " example"]] | None
        padding_side: Literal["left", "right"]
        tokens: Mapping[str, Int[Tensor, "example position"]] | None
        prompts: ParallelPrompts | None
        site: Site
        position: Position


@overload
def categorise(
    model: LensModel, prompts: ParallelPrompts, *, threshold: Number = ..., **options: Unpack[_HowToRead]
) -> NeuronSharing: ...


@overload
def categorise(
    model: LensModel, prompts: ParallelPrompts, *, threshold: Sequence[Number], **options: Unpack[_HowToRead]
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
    require_prompts(prompts)
    how = Running(batch_size, prepend_bos).on(model)
    rows = [  # one language after the other
        row
        for language, texts in prompts.prompts.items()
        for row in models.tokenised(model, texts, language, prompts.examples, prepend_bos=how.prepend_bos)
    ]
    recorder = SharingRecorder(
        model, prompts.languages, len(prompts), site=site, position=position, threshold=threshold
    )
    recorder.labels = prompts.examples
    plan = Plan(model, rows, batch_size=how.batch_size)
    recorded: RecordedPass  # of the batch that is running

    def read(layer: int, tensors: tuple[Tensor, ...]) -> None:
        recorded.read(layer, tensors)

    with (
        running(model, "categorise", n_rows=len(plan), progress=progress) as loop,
        models.reading(model, recorder.layers, read) as run_once,
    ):

        def record(batch: Batch) -> None:
            nonlocal recorded
            numbers, examples = zip(*(divmod(row, len(prompts)) for row in batch.rows), strict=True)
            languages = [prompts.languages[number] for number in numbers]
            shown = torch.ones_like(batch.tokens) if batch.mask is None else batch.mask
            recorded = recorder.recorded_pass(languages, examples, shown, batch.tokens)
            run_once(batch.tokens, batch.mask)

        loop(plan, record)
    special = set(models.special_tokens(model))
    return recorder.result(
        prompts,
        how.record
        | {"batches": len(plan.batches), "common_prefix_share": _common_prefix_share(rows, len(prompts), special)},
    )


@overload
def categorise_caches(
    caches: Mapping[str, Any], *, threshold: Number = ..., **options: Unpack[_HowCached]
) -> NeuronSharing: ...


@overload
def categorise_caches(
    caches: Mapping[str, Any], *, threshold: Sequence[Number], **options: Unpack[_HowCached]
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
    one_of("padding_side", padding_side, ("left", "right"))
    for what, table in (("lengths", lengths), ("tokens", tokens)):
        if table is not None and (not isinstance(table, Mapping) or set(table) != set(caches)):
            raise NeuronShareError(f"{what} is not for the languages of the caches; give it for {', '.join(caches)}.")
    layers = models.neuron_layers(model, site)
    read = {language: [_cached(cache, layer, language) for layer in layers] for language, cache in caches.items()}
    sizes = {language: _size(layers[0], tensors[0], language) for language, tensors in read.items()}
    if len({n_examples for n_examples, _ in sizes.values()}) > 1:
        raise NeuronShareError(
            "The caches hold different numbers of prompts: "
            + ", ".join(f"{language} {n_examples}" for language, (n_examples, _) in sizes.items())
            + ". Row i must be example i in every language."
        )
    n_examples, _ = next(iter(sizes.values()))
    recorder = SharingRecorder(model, list(caches), n_examples, site=site, position=position, threshold=threshold)
    for language, of_layers in read.items():
        n_tokens = sizes[language][1]
        mask = None if lengths is None else _mask(lengths[language], n_examples, n_tokens, padding_side, language)
        recorded = recorder.recorded_pass(
            language, range(n_examples), mask, None if tokens is None else tokens[language]
        )
        for number, tensors in enumerate(of_layers):
            recorded.read(number, tensors)
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


def _cached(cache: Any, layer: NeuronLayer, language: str) -> tuple[Tensor, ...]:
    """What was cached at one layer's hooks; a cache without its batch axis is of one example."""
    for hook in layer.hooks:
        if hook.name not in cache.cache_dict:
            raise NeuronShareError(
                f"Language {language!r}: the cache lacks {hook.name}; cache it too, such as with "
                f"names_filter=lambda name: name.endswith({hook.name.split('.')[-1]!r})."
            )
    tensors = (cache.cache_dict[hook.name] for hook in layer.hooks)
    return tuple(tensor if cache.has_batch_dim else tensor[None] for tensor in tensors)


def _size(layer: NeuronLayer, tensors: tuple[Tensor, ...], language: str) -> tuple[int, int]:
    """How many prompts a cache holds, and how many tokens the padded ones have."""
    shape = layer.shape(tensors)
    if shape is None:
        raise NeuronShareError(f"Language {language!r}: {layer.misfit(tensors, ('any', 'any'))}")
    return shape


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

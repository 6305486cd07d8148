"""Find which neurons each prompt activates, by running the prompts or from caches that already exist.

Both ways hand a model's activations to a `SharingRecorder` (recording.py), so they give the same result for the same
tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, cast, overload

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import one_of
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import Number, Position, Threshold
from tl_neuronshare.models import LensModel, NeuronLayer, Site
from tl_neuronshare.prompts import ParallelPrompts, PromptHashes, as_list, hashes_of, require_prompts
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.running.loop import Keeping, Loop, running
from tl_neuronshare.running.plan import Batch, BatchSize, Plan, Running
from tl_neuronshare.running.recording import RecordedPass, SharingRecorder
from tl_neuronshare.running.segments import (
    Segment,
    has_results,
    result_file,
    results_in,
    segment_file,
    segments_of,
    write_result,
)
from tl_neuronshare.running.shards import Record

if TYPE_CHECKING:
    from typing_extensions import Unpack

    class _HowToRead(TypedDict, total=False):
        site: Site | None
        position: Position
        batch_size: BatchSize
        prepend_bos: bool | None
        out: str | Path | None
        shard: tuple[int, int] | str | None
        progress: bool

    class _HowCached(TypedDict, total=False):
        lengths: Mapping[str, Sequence[int] | Int[Tensor, " example"]] | None
        padding_side: Literal["left", "right"]
        tokens: Mapping[str, Int[Tensor, "example position"]] | None
        prompts: ParallelPrompts | None
        site: Site | None
        position: Position


@overload  # mypy takes a text for a sequence of texts
def categorise(  # type: ignore[overload-overlap]
    model: LensModel, prompts: ParallelPrompts, *, threshold: Number | str = ..., **options: Unpack[_HowToRead]
) -> NeuronSharing: ...


@overload
def categorise(
    model: LensModel, prompts: ParallelPrompts, *, threshold: Sequence[Number | str], **options: Unpack[_HowToRead]
) -> dict[Threshold, NeuronSharing]: ...


@explains
def categorise(
    model: LensModel,
    prompts: ParallelPrompts,
    *,
    site: Site | None = None,
    position: Position = "last",
    threshold: Number | str | Sequence[Number | str] = 0.0,
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    out: str | Path | None = None,
    shard: tuple[int, int] | str | None = None,
    progress: bool = True,
) -> NeuronSharing | dict[Threshold, NeuronSharing]:
    """Find which neurons each prompt activates: those whose value at the chosen position is above the threshold.

    The model runs under the hooks of a `SharingRecorder`. If hooks of your own are active (`with model.hooks(...)`),
    the recorded values include their edits. The model is left as it was, apart from hook points that a mixture of
    experts gets (docs/experts.md), which change nothing until they are hooked.

    Args:
        model: a HookedTransformer or TransformerBridge. To compute scores with it later (`attribute`), load it with
            raw weights.
        prompts: the same examples in at least two languages.
        site: which value of a neuron is read. `post` is the input of the down projection; in a gated MLP this is
            act(gate) x up. A gated MLP also has `gate`, which is act(gate), and `up`. For about half of the neurons
            `gate` has a different sign from `post`. An MLP without a gate has only `post`: there `gate` is read as
            `post`, and the metadata says so, but `up` is refused. None is `post`; on a gated model a warning says what
            that means, and the metadata that it was not chosen.
        position: which token is read. `last` is the last token of the prompt, which predicts the first token of the
            answer. A negative index counts from the end (-1 is `last`). With `any`, a neuron must be active at one
            token of the prompt or more; with `all`, it must be active at every token. Both ignore special tokens
            (BOS ...). In an encoder `last` is refused, and there is `mask`, the mask token, of
            which each prompt must have one. In `ablation_hooks`, `all` means something else: every token is edited.
        threshold: a neuron is activated if its value is above this number. A text such as "90%" is a quantile of the
            layer's values for that prompt: then equally many neurons are activated in every language and layer, here a
            tenth, whatever the units of the values. A sequence gives {threshold: result}, from one pass over the
            prompts.
        batch_size: how many prompts share a forward pass; `auto` chooses it by their lengths. Prompts of similar
            lengths share a batch. Apart from rounding, the result does not depend on it.
        prepend_bos: whether prompts begin with the BOS token. None means the model's default.
        out: a folder in which each batch is kept as soon as it has run. If the run ends early, however that happens,
            the same call goes on from there; when it is complete, the same call opens the result. The result is the
            same to the bit. It stays in the folder, as a file of which only what is used is read into memory
            (`NeuronSharing.load` opens it too). A folder of a different model, different prompts or options is refused.
        shard: which part of how many this call computes, such as (2, 4) or "2/4", where the processes of a job array
            share the folder `out`. A call that finds all parts there gives the whole result.
        progress: whether to show a progress bar, if the run takes more than two seconds.

    Returns:
        A NeuronSharing, which gives each neuron's type for each example. If `threshold` is a sequence, a dictionary
        {threshold: NeuronSharing}.

    Raises:
        NeuronShareError: the model or an option is unsuitable, a prompt is longer than the context or too short for
            the position, activations are NaN or infinite, or `out` is a folder of a different call.
        UnfinishedError: the part `shard` is done, and others are not; this is a NeuronShareError too.

    Warns:
        UserWarning: no site is named, and the model is gated.

    Source: arXiv 2406.09265, section 3 (value > 0 at the last token), and its analysis across tokens.

    Examples:
        >>> prompts = ParallelPrompts({"en": ["Country code of Peru →"], "de": ["Ländercode von Peru →"]})
        >>> categorise(model, prompts).types.shape  # example layer neuron
        torch.Size([1, 4, 512])
        >>> list(categorise(model, prompts, position="any", threshold=[0, 0.5]))
        [0.0, 0.5]
    """
    require_prompts(prompts)
    how, keeping = Running(batch_size, prepend_bos).on(model), Keeping(out, shard)
    recorder = SharingRecorder(
        model, prompts.languages, len(prompts), site=site, position=position, threshold=threshold
    )
    recorder.warn_of_site()
    run = _Categorising(model, prompts, how, recorder)
    n_rows = len(prompts) * len(prompts.languages)
    with running(model, "categorise", n_rows=n_rows, progress=progress, keeping=keeping, about=run.about) as loop:
        return run.whole(loop) if loop.shards is None else run.kept(loop, loop.shards.folder)


class _Categorising:
    """One call of `categorise`: its segments, run one after the other."""

    def __init__(self, model: LensModel, prompts: ParallelPrompts, how: Running, recorder: SharingRecorder) -> None:
        self.model, self.prompts, self.how, self.recorder = model, prompts, how, recorder
        self.segments = segments_of(len(prompts), len(prompts.languages), recorder.bytes_a_prompt)
        self.special = set(models.special_tokens(model))

    def about(self) -> dict[str, Any]:
        """Return what the result depends on."""
        hashes = (text for _, prompts in self._segments() for text in hashes_of(prompts))
        of_result = self.recorder.header(0, self.prompts.name, hashes, 0, self.how.record, had_tokens=True)
        thresholds = list(self.recorder.reading.thresholds)
        about = {"call": "categorise", **of_result["metadata"], "threshold": thresholds}
        del about["site_chosen"]  # the bits are the same
        weights, prompts = about.pop("fingerprint").split("-")
        return about | {"fingerprint_of_weights": weights, "fingerprint_of_prompts": prompts}

    def _segments(self) -> Iterator[tuple[range, ParallelPrompts]]:
        """Each segment's examples, counted from 0, and their prompts."""
        for examples in self.segments:
            whole = len(self.segments) == 1
            yield examples, self.prompts if whole else self.prompts[examples.start : examples.stop]

    def whole(self, loop: Loop) -> NeuronSharing | dict[Threshold, NeuronSharing]:
        """Run all segments, and return the result, which is in memory."""
        parts = [
            self._run(prompts, self.recorder.of_examples(examples, prompts.examples, apart=False), examples, loop)
            for examples, prompts in self._segments()
        ]
        return self.recorder.result(self.prompts, self._facts(parts))

    def kept(self, loop: Loop, folder: Path) -> NeuronSharing | dict[Threshold, NeuronSharing]:
        """Run the segments that are not in the folder yet, and return the result, which is opened from there."""
        thresholds = self.recorder.reading.thresholds
        files = [folder / segment_file(number) for number in range(len(self.segments))]
        is_whole = loop.of_main(partial(has_results, folder, thresholds))
        if not is_whole:
            for (examples, prompts), file in zip(self._segments(), files, strict=True):
                if loop.of_main(file.exists):
                    continue
                segment = loop.part(partial(self._segment, prompts, examples, loop))
                if segment is not None:
                    loop.seal(file.name, segment.write)
            loop.finish()
            self._join(files, loop)
        loop.clear(files)
        results = results_in(folder, thresholds)
        return results if isinstance(self.recorder.reading.threshold, tuple) else results[thresholds[0]]

    def _join(self, files: list[Path], loop: Loop) -> None:
        """Write the results from the files of all segments."""
        parts = [Segment.read(file) for file in files]
        thresholds = self.recorder.reading.thresholds
        name, facts = self.prompts.name, self._facts(parts)
        for number, threshold in enumerate(thresholds):
            borderline = sum(int(part.borderline[number]) for part in parts)
            hashes = (text for part in parts for text in PromptHashes(part.hashes))
            header = self.recorder.header(number, name, hashes, borderline, facts, had_tokens=True)
            write = partial(write_result, parts, number, experts=self.recorder.experts, **header)
            loop.seal(result_file(thresholds, threshold), write)

    def _facts(self, parts: Sequence[_Ran | Segment]) -> dict[str, Any]:
        n_prompts = len(self.prompts) * len(self.prompts.languages)
        return self.how.record | {
            "batches": sum(int(part.batches) for part in parts),
            "common_prefix_share": sum(float(part.common_prefix) for part in parts) / n_prompts,
            "same_last_token": self._same_last_token(torch.stack([part.same_last for part in parts]).sum(0)),
        }

    def _same_last_token(self, counts: Int[Tensor, "language language"]) -> dict[str, dict[str, float]]:
        """For each two languages, the share of examples whose prompts end in the same token."""
        shares, languages = (counts.double() / len(self.prompts)).tolist(), self.prompts.languages
        return {
            first: {second: shares[place][other] for other, second in enumerate(languages) if other > place}
            for place, first in enumerate(languages[:-1])
        }

    def _segment(self, prompts: ParallelPrompts, examples: range, loop: Loop) -> Segment:
        """Run the prompts of one segment, and return all that is kept of them."""
        recorder = self.recorder.of_examples(examples, prompts.examples, apart=True)
        ran = self._run(prompts, recorder, examples, loop)
        recorder.require_all_recorded()
        packed, routed = recorder.by_example()
        borderline = recorder.bits.borderline.sum(1)
        common_prefix = torch.tensor(ran.common_prefix, dtype=torch.float64, device="cpu")
        batches = torch.tensor(ran.batches, device="cpu")
        return Segment(packed, routed, hashes_of(prompts).numbers, borderline, common_prefix, ran.same_last, batches)

    def _run(self, prompts: ParallelPrompts, recorder: SharingRecorder, examples: range, loop: Loop) -> _Ran:
        """Run the prompts of one segment, which the recorder keeps."""
        model = self.model
        rows = [  # all examples of the first language, then of the next
            row
            for language, texts in prompts.prompts.items()
            for row in models.tokenised(model, texts, language, prompts.examples, prepend_bos=self.how.prepend_bos)
        ]
        plan = Plan(model, rows, batch_size=self.how.batch_size)
        # The recorder numbers prompts example by example.
        numbers = torch.arange(len(rows), device="cpu").reshape(len(prompts), -1).T.flatten()
        recorded: RecordedPass  # the batch that is running

        def read(layer: int, tensors: tuple[Tensor, ...]) -> None:
            recorded.read(layer, tensors)

        def record(batch: Batch) -> Record:
            nonlocal recorded
            recorded = RecordedPass(recorder, numbers[batch.rows], batch)
            run_once(batch)
            return recorder.bits.of(recorded.prompts)

        def keep(rows: list[int], of_batch: Record) -> None:
            recorder.bits.take(numbers[rows], of_batch)

        with models.reading(model, recorder.layers, read) as run_once:
            loop(plan, record, keep, stage=f"examples from {examples.start}")
        common_prefix = _common_prefix(rows, len(prompts), self.special)
        return _Ran(common_prefix, _same_last(rows, len(prompts)), len(plan.batches))


class _Ran(NamedTuple):
    """Facts about the run of a segment: as in `Segment`."""

    common_prefix: float
    same_last: Int[Tensor, "language language"]
    batches: int


@overload
def categorise_caches(  # type: ignore[overload-overlap]
    caches: Mapping[str, Any], *, threshold: Number | str = ..., **options: Unpack[_HowCached]
) -> NeuronSharing: ...


@overload
def categorise_caches(
    caches: Mapping[str, Any], *, threshold: Sequence[Number | str], **options: Unpack[_HowCached]
) -> dict[Threshold, NeuronSharing]: ...


@explains
def categorise_caches(
    caches: Mapping[str, Any],
    *,
    lengths: Mapping[str, Sequence[int] | Int[Tensor, " example"]] | None = None,
    padding_side: Literal["left", "right"] = "right",
    tokens: Mapping[str, Int[Tensor, "example position"]] | None = None,
    prompts: ParallelPrompts | None = None,
    site: Site | None = None,
    position: Position = "last",
    threshold: Number | str | Sequence[Number | str] = 0.0,
) -> NeuronSharing | dict[Threshold, NeuronSharing]:
    """Find which neurons each prompt activates, as `categorise` does, from what `run_with_cache` has already cached.

    Args:
        caches: the ActivationCache of each language. Row i of each cache must be example i. A cache should hold whole
            prompts: if it was made with `pos_slice`, the tokens that it holds are taken to be the whole prompt.
        lengths: for each language, how many tokens each prompt has. Leave it None only if nothing is padded;
            TransformerLens pads a list of strings by itself.
        padding_side: the side of the prompts on which the padding is.
        tokens: for each language, the tokens that the model was given. The positions `any` and `all` need them to
            ignore special tokens; without them they count every token.
        prompts: the prompts that were run, for the fingerprint in the metadata.
        site: as in `categorise`. The hooks that it reads must be in the caches.
        position: as in `categorise`.
        threshold: as in `categorise`.

    Returns:
        The same as `categorise`.

    Raises:
        NeuronShareError: the caches are not all of one model, a hook was not cached, the languages have different
            numbers of examples, or lengths or tokens do not fit; and whatever `categorise` raises.

    Examples:
        >>> texts = {"en": "Country code of Peru →", "de": "Ländercode von Peru →"}
        >>> caches = {language: model.run_with_cache(text)[1] for language, text in texts.items()}
        >>> categorise_caches(caches).types.shape  # example layer neuron
        torch.Size([1, 4, 512])
    """
    model = _model_of(caches)
    one_of("padding_side", padding_side, ("left", "right"))
    for name, by_language in (("lengths", lengths), ("tokens", tokens)):
        if by_language is not None and (not isinstance(by_language, Mapping) or set(by_language) != set(caches)):
            raise NeuronShareError(f"{name} is not for the languages of the caches; give it for {', '.join(caches)}.")
    layers = models.neuron_layers(model, site or "post")
    cached = {language: [_cached(cache, layer, language) for layer in layers] for language, cache in caches.items()}
    sizes = {language: _size(layers[0], tensors[0], language) for language, tensors in cached.items()}
    if len({n_examples for n_examples, _ in sizes.values()}) > 1:
        raise NeuronShareError(
            "The caches hold different numbers of prompts: "
            + ", ".join(f"{language} {n_examples}" for language, (n_examples, _) in sizes.items())
            + ". Row i must be example i in every language."
        )
    n_examples, _ = next(iter(sizes.values()))
    recorder = SharingRecorder(model, list(caches), n_examples, site=site, position=position, threshold=threshold)
    recorder.warn_of_site()
    for language, tensors_of_layers in cached.items():
        n_tokens = sizes[language][1]
        mask = None if lengths is None else _mask(lengths[language], n_examples, n_tokens, padding_side, language)
        recorded = recorder.recorded_pass(
            language, range(n_examples), recorder.given(mask, None if tokens is None else tokens[language])
        )
        for layer, tensors in enumerate(tensors_of_layers):
            recorded.read(layer, tensors)
    return recorder.sharing(prompts=prompts)


def _model_of(caches: Mapping[str, Any]) -> LensModel:
    """The one model that made all the caches."""
    if not isinstance(caches, Mapping) or not caches:
        raise NeuronShareError("caches is not a mapping from language to ActivationCache; give {'en': cache, ...}.")
    model_of = {language: getattr(cache, "model", None) for language, cache in caches.items()}
    first = next(iter(model_of.values()))
    for language, model in model_of.items():
        if model is None:
            raise NeuronShareError(
                f"Language {language!r}: a {type(caches[language]).__name__} is not an ActivationCache, which knows "
                "its model; take what run_with_cache returns, without return_cache_object=False."
            )
        if model is not first:
            raise NeuronShareError(
                f"Language {language!r}: a different model from the first language's; cache all with one model."
            )
    return cast(LensModel, first)


def _cached(cache: Any, layer: NeuronLayer, language: str) -> tuple[Tensor, ...]:
    """The tensors that were cached at one layer's hooks. A cache without a batch axis holds one example."""
    ends: Any = tuple(dict.fromkeys(name.split(".", 2)[-1] for name in layer.names))
    for name in layer.names:
        if name not in cache.cache_dict:
            raise NeuronShareError(
                f"Language {language!r}: the cache lacks {name}; cache all of {', '.join(layer.names)}, such as with "
                f"names_filter=lambda name: name.endswith({(ends[0] if len(ends) == 1 else ends)!r})."
                + (
                    " The model has hook points for experts once load_model or verify has seen it."
                    * bool(layer.experts)
                )
            )
    if layer.experts is not None and not cache.has_batch_dim:
        raise NeuronShareError(
            f"Language {language!r}: the cache has no batch axis, and experts have rows and positions in one axis; use "
            "run_with_cache without remove_batch_dim."
        )
    tensors = (cache.cache_dict[name] for name in layer.names)
    return tuple(tensor if cache.has_batch_dim else tensor[None] for tensor in tensors)


def _size(layer: NeuronLayer, tensors: tuple[Tensor, ...], language: str) -> tuple[int, int]:
    """How many prompts a cache holds, and how many tokens each has with its padding."""
    shape = layer.shape(tensors)
    if shape is None:
        raise NeuronShareError(f"Language {language!r}: {layer.misfit(tensors, ('any', 'any'))}")
    return shape


def _mask(
    lengths: Sequence[int] | Int[Tensor, " example"], n_examples: int, n_tokens: int, padding_side: str, language: str
) -> Bool[Tensor, "example position"]:
    """True at the tokens that are not padding."""
    given = as_list(lengths)
    fits = isinstance(given, Sequence) and len(given) == n_examples
    if not fits or not all(isinstance(length, Integral) and length in range(1, n_tokens + 1) for length in given):
        raise NeuronShareError(
            f"Language {language!r}: lengths {lengths!r} do not fit {n_examples} prompts of at most {n_tokens} tokens; "
            "give the number of tokens of each prompt."
        )
    places = (
        torch.arange(n_tokens, device="cpu")
        if padding_side == "right"
        else torch.arange(n_tokens, device="cpu").flip(0)
    )
    return places < torch.tensor(given, device="cpu")[:, None]


def _common_prefix(rows: Sequence[Sequence[int]], n_examples: int, special: set[int]) -> float:
    """The sum of the shares of the prompts' tokens, without special ones, that they begin with in all languages."""
    shares = []
    for example in range(n_examples):
        prompts = [[token for token in row if token not in special] for row in rows[example::n_examples]]
        common = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False)))
        shares += [common / len(tokens) if tokens else 0.0 for tokens in prompts]
    return sum(shares)


def _same_last(rows: Sequence[Sequence[int]], n_examples: int) -> Int[Tensor, "language language"]:
    """For how many examples the prompts of two languages end in the same token."""
    last = torch.tensor([row[-1] for row in rows], device="cpu").reshape(-1, n_examples)
    return (last[:, None] == last[None]).sum(-1)

"""Record which neurons are activated, by hooks that work in any run of the model.

A layer's values are reduced to one bit for each neuron. Where every token is read, this happens as soon as the layer's
hooks have fired. Where a single token is read, its values wait until those of several layers make one reduction worth
its calls. So only the bits of all layers are in memory together. `categorising.py` has ready-made runs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any, Literal, NamedTuple, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import Options, count, has_order, is_count, one_of, option, refuse_language_all
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.launch import warn
from tl_neuronshare.maths.activation import (
    Number,
    Position,
    Threshold,
    absolute,
    as_position,
    as_threshold,
    count_borderline,
    extreme,
    nth_from_the_end,
    pack_above,
    pack_with_torch,
    packed_width,
    tokens_needed,
)
from tl_neuronshare.models import Inputs, LensModel, NeuronLayer, OnDevices, Site, Stack, verification
from tl_neuronshare.models.fingerprint import fingerprint_of_weights
from tl_neuronshare.prompts import ParallelPrompts, as_list, hashes_of
from tl_neuronshare.results.identity import fingerprint
from tl_neuronshare.results.routing import Routing
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.running import provenance

# Values that are reduced at a time, so that this needs little memory beside the model; on a GPU, calls are dear.
_CHUNK, _CHUNK_ON_GPU = 1 << 20, 1 << 25
Mask = Int[Tensor, "prompt position"] | Bool[Tensor, "prompt position"]


def threshold_argument(text: str) -> Threshold:
    """Read a threshold from the command line."""
    return text if text.endswith("%") else float(text)


def refuse_quantiles_of_experts(layers: Sequence[NeuronLayer], thresholds: Sequence[Threshold]) -> None:
    """Refuse quantiles in a mixture of experts, of whose neurons only some have values.

    Raises:
        NeuronShareError: there is such a threshold, and the model is a mixture.
    """
    quantiles = [threshold for threshold in thresholds if isinstance(threshold, str)]
    if quantiles and any(layer.experts for layer in layers):
        raise NeuronShareError(
            f"threshold={quantiles[0]!r}: in a mixture of experts only some neurons of a layer have values, so that "
            "its quantiles say how many are computed; give a number."
        )


def _as_thresholds(name: str, value: Any) -> Threshold | tuple[Threshold, ...]:
    given = as_list(value)
    if not isinstance(given, Sequence) or isinstance(given, str):
        return as_threshold(name, given)
    thresholds = tuple(as_threshold(name, each) for each in given)
    if len(set(thresholds)) < max(1, len(given)):
        raise NeuronShareError(f"{name}={value!r}; give at least one threshold, each once.")
    return thresholds


def _position_argument(text: str) -> Position:
    return as_position(int(text) if text.lstrip("-").isdigit() else text)


@dataclass(frozen=True)
class Reading(Options):
    """Which values are read from a model, and when a neuron counts as activated."""

    site: Site | None = option(
        None,
        lambda name, value: None if value is None else one_of(name, value, get_args(Site)),
        help="which value of a neuron of a gated MLP (default: post, with a warning; we recommend gate)",
        choices=get_args(Site),
    )
    position: Position = option(
        "last",
        lambda name, value: as_position(value),
        help="which token is read: last, any, all, a negative index from the prompt's end, or an encoder's mask "
        "(default: last)",
        type=_position_argument,
    )
    threshold: Number | str | Sequence[Number | str] = option(
        0.0,
        _as_thresholds,
        help="a neuron is activated above this value, or (such as 90%%) above this quantile of its layer (default: 0)",
        type=threshold_argument,
    )

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """The thresholds as a tuple, even if only one was given."""
        return self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)

    @property
    def leaves_special_tokens_out(self) -> bool:
        """Whether special tokens (BOS ...) are ignored, which is so at positions that look at every token."""
        return self.position in ("any", "all")


class SharingRecorder:
    """Hook functions that record, in your own runs, which neurons each prompt activates.

    The hooks read and never edit, so they can be combined with any other hooks. If another hook on the same hook point
    edits, these hooks see its edit only if it was installed before them. They work in `run_with_hooks`, `model.hooks`
    and `generate`.

    Args:
        model: the HookedTransformer or TransformerBridge that you will run.
        languages: the names of at least two languages.
        n_examples: how many examples there will be. Each needs one prompt in every language.
        site: as in `categorise`.
        position: as in `categorise`.
        threshold: as in `categorise`. Several thresholds are recorded in one run.

    Raises:
        NeuronShareError: the model or an option is unsuitable. The hooks raise it if a tensor does not have the shape
            of the batch, a prompt has too few tokens, or values are NaN or infinite.

    Examples:
        >>> recorder = SharingRecorder(model, ["en", "de"], n_examples=1)
        >>> for language, prompt in {"en": "Country code of Peru →", "de": "Ländercode von Peru →"}.items():
        ...     _ = model.run_with_hooks(prompt, fwd_hooks=recorder.fwd_hooks(language, [0]))
        >>> recorder.sharing().types.shape  # example layer neuron
        torch.Size([1, 4, 512])
    """

    @explains
    def __init__(
        self,
        model: LensModel,
        languages: Sequence[str],
        n_examples: int,
        *,
        site: Site | None = None,
        position: Position = "last",
        threshold: Number | str | Sequence[Number | str] = 0.0,
    ) -> None:
        self.languages = _as_languages(languages)
        self.n_examples = count("n_examples", n_examples)
        self.reading = Reading(site, position, threshold)
        self.site: Site = self.reading.site or "post"
        self.layers = models.neuron_layers(model, self.site)
        models.check_position(model, position)
        refuse_quantiles_of_experts(self.layers, self.reading.thresholds)
        verification.require(model, "logits", self.site)
        if self.site == "gate" and all(layer.is_editable for layer in self.layers):
            self.site = "post"  # a model without gates has only this site
        self.why_name_a_site = models.why_name_a_site(model) if self.reading.site is None else None
        self.model = model
        self.labels: Sequence[Hashable] = range(self.n_examples)
        self.special_tokens = models.special_tokens(model) if self.reading.leaves_special_tokens_out else []
        self._made_from = provenance.describe(model)
        self._decoder_prompt = provenance.decoder_prompt_of(model)
        self._weights = fingerprint_of_weights(model)
        self._warned: set[str] = set()

    @cached_property
    def bits(self) -> Bits:
        """What is kept, by prompts: they are numbered example by example and, within an example, by language."""
        return Bits(
            len(self.reading.thresholds),
            self.n_examples * len(self.languages),
            [layer.width for layer in self.layers],
            self.n_experts,
        )

    def of_examples(self, examples: range, labels: Sequence[Hashable], *, apart: bool) -> SharingRecorder:
        """Return a recorder of some of the examples, counted from 0.

        Args:
            examples: which of this recorder's examples; those between the first and the last.
            labels: their labels, for messages.
            apart: whether it keeps what it records for itself, and not in this recorder.
        """
        part = copy.copy(self)
        part.n_examples, part.labels = len(examples), labels
        part.__dict__.pop("bits", None)
        if not apart:
            n_languages = len(self.languages)
            part.bits = self.bits.part(examples.start * n_languages, examples.stop * n_languages)
        return part

    @explains
    def fwd_hooks(
        self,
        language: str | Sequence[str],
        examples: Sequence[int] | slice | Int[Tensor, " prompt"],
        attention_mask: Mask | None = None,
        *,
        tokens: Int[Tensor, "prompt position"] | None = None,
    ) -> list[tuple[str, Callable[..., None]]]:
        """Make hooks for one batch: pairs of a hook's name and a function, for `run_with_hooks` or `model.hooks`.

        The hooks are only for this batch: its prompts are recorded when it runs, and again if it runs again. Calls
        that continue the batch by generated tokens are ignored. Such a call has one token more than the last one or,
        with a key-value cache, a single token. So if all prompts have a single token, every later call of one token
        is ignored.

        Args:
            language: the language of all rows of the batch, or a list with one language for each row.
            examples: which example each row is, counted from 0.
            attention_mask: the mask that the model gets: 1 at tokens and 0 at padding, which may be on either side.
                Leave it None only if nothing is padded; TransformerLens pads a list of strings by itself.
            tokens: the tokens that the model gets. The positions `any` and `all` need them to ignore special tokens;
                without them they count every token that the mask shows.

        Warns:
            UserWarning: no site was named, and the model is gated; there are several prompts without mask and tokens,
                so padding cannot be seen; or the position is `any` or `all`, without tokens, and the model's prompts
                begin with a BOS. Each warning comes once.

        Raises:
            NeuronShareError: a language or example is unknown, the mask or the tokens have the wrong shape, or a
                prompt has too few tokens for the position.
        """
        recorded = self.recorded_pass(language, examples, self.given(attention_mask, tokens))
        self.warn_of_site()
        if attention_mask is None and tokens is None and recorded.n_prompts > 1:
            self.warn_once(
                "Several prompts without attention_mask and tokens are taken to be unpadded. TransformerLens pads a "
                "list of strings by itself, mostly on the right, so that the last token is padding; pass the mask."
            )
        return models.layer_hooks(self.layers, recorded.read)

    @explains
    def sharing(self, *, prompts: ParallelPrompts | None = None) -> NeuronSharing | dict[Threshold, NeuronSharing]:
        """Return the result of what was recorded; if there is a sequence of thresholds, {threshold: result}.

        Args:
            prompts: the prompts that were run, for the fingerprint in the metadata; without them it says `unknown`.

        Raises:
            NeuronShareError: a prompt has not been recorded; `prompts` have different languages or a different number
                of examples from what was recorded; or some batches had `tokens` and some had none, at a position that
                ignores special tokens.
        """
        return self.result(prompts, {})

    def result(
        self, prompts: ParallelPrompts | None, facts: Mapping[str, Any]
    ) -> NeuronSharing | dict[Threshold, NeuronSharing]:
        """Return what `sharing` returns, with facts about the run added to the metadata."""
        self.require_all_recorded()
        self._check_prompts(prompts)
        hashes = None if prompts is None else hashes_of(prompts)
        borderline = self.bits.borderline.sum(1)
        packed, routed = self.by_example()
        routing = Routing(routed, self.experts) if any(self.experts) else None
        results = {
            threshold: NeuronSharing(
                packed[number],
                **self.header(
                    number,
                    "" if prompts is None else prompts.name,
                    hashes,
                    int(borderline[number]),
                    facts,
                    had_tokens=bool(self.bits.had_tokens.all()),
                ),
                prompt_hashes=hashes,
                routing=routing,
            )
            for number, threshold in enumerate(self.reading.thresholds)
        }
        return results if isinstance(self.reading.threshold, tuple) else results[self.reading.thresholds[0]]

    def by_example(
        self,
    ) -> tuple[
        UInt8[Tensor, "threshold example language layer byte"], UInt8[Tensor, "example language layer expert_byte"]
    ]:
        """Return the bits of neurons and of experts as they are now, for a result."""
        packed, routed = self.bits.handed_out()
        of_thresholds = "threshold (example language) layer byte -> threshold example language layer byte"
        of_experts = "(example language) layer byte -> example language layer byte"
        return (
            rearrange(packed, of_thresholds, example=self.n_examples),
            rearrange(routed, of_experts, example=self.n_examples),
        )

    @property
    def bytes_a_prompt(self) -> int:
        """How many bytes of bits are kept of each prompt."""
        of_layer = packed_width(max(layer.width for layer in self.layers)) + packed_width(self.n_experts)
        return len(self.reading.thresholds) * len(self.layers) * of_layer

    @property
    def n_experts(self) -> int:
        """How many experts a layer has at most."""
        return max(experts[0] if experts else 0 for experts in self.experts)

    @property
    def experts(self) -> list[tuple[int, int] | None]:
        """How many experts each layer has, and how many neurons each of them; None for layers without experts."""
        return [layer.experts for layer in self.layers]

    def header(
        self,
        number: int,
        name: str,
        hashes: Iterable[str] | None,
        borderline: int,
        facts: Mapping[str, Any],
        *,
        had_tokens: bool,
    ) -> dict[str, Any]:
        """Return the languages, widths, hooks and metadata of the result for one threshold.

        Args:
            number: which of the thresholds.
            name: the name of the prompts.
            hashes: the hashes of each example's prompts; None if they are not known.
            borderline: how many values are near the threshold.
            facts: facts about the run, for the metadata.
            had_tokens: whether all prompts were recorded together with their tokens.
        """
        widths = [layer.width for layer in self.layers]
        return {
            "languages": self.languages,
            "widths": widths,
            "hooks": [layer.name for layer in self.layers],
            "metadata": {
                **self._made_from,
                "prompts": name,
                "languages": list(self.languages),
                "site": self.site,
                "site_chosen": self.why_name_a_site is None,
                "position": self.reading.position,
                "prepend_bos": None,
                **self._decoder_prompt,
                "special_tokens_left_out": self.special_tokens if had_tokens else [],
                "fingerprint": fingerprint(self._weights, hashes),
                "threshold": self.reading.thresholds[number],
                "borderline_fraction": borderline / (len(self.languages) * self.n_examples * sum(widths)),
                **facts,
            },
        }

    def require_all_recorded(self) -> None:
        """Refuse a result if a prompt is missing, or if special tokens count for some prompts and not for others."""
        missing = ~self.bits.recorded
        if bool(missing.any()):
            prompt = int(missing.int().argmax())
            layer = self.layers[int(self.bits.fired[prompt].int().argmin())]
            raise NeuronShareError(
                f"{self.where(prompt)}: {layer.name} did not fire, so that {int(missing.sum())} of {len(missing)} "
                "prompts are not recorded. Run each under the hooks that fwd_hooks gives for it, through all layers; "
                "do other hooks replace the MLP?"
            )
        had_tokens = self.bits.had_tokens
        if self.special_tokens and had_tokens.any() and not had_tokens.all():
            raise NeuronShareError(
                f"{self.where(int((~had_tokens).int().argmax()))}: recorded without tokens, so its special tokens "
                "count, but those of other prompts do not; pass tokens= to fwd_hooks for all or for none."
            )

    def _check_prompts(self, prompts: object) -> None:
        if not (prompts is None or isinstance(prompts, ParallelPrompts)):
            raise NeuronShareError(f"prompts is a {type(prompts).__name__}; give the ParallelPrompts that were run.")
        if prompts is not None and (set(prompts.languages) != set(self.languages) or len(prompts) != self.n_examples):
            raise NeuronShareError(
                f"The prompts are {len(prompts)} examples in {', '.join(prompts.languages)}; "
                f"{self.n_examples} in {', '.join(self.languages)} were recorded. Give the prompts that were run."
            )

    def given(self, mask: Any, tokens: Any) -> Given:
        """What a user says of a batch: its mask and its tokens, each a tensor, a list or None.

        Raises:
            NeuronShareError: the model is an encoder-decoder, which sees two texts at once.
        """
        if models.architecture_of(self.model) == "encoder-decoder":
            raise NeuronShareError(
                f"{models.name_of(self.model)} is an encoder-decoder, whose encoder and decoder see different tokens; "
                "categorise reads both."
            )
        mask, tokens = (
            given if given is None or isinstance(given, Tensor) else torch.as_tensor(given, device="cpu")
            for given in (mask, tokens)
        )
        return Given(mask, tokens)

    def recorded_pass(
        self,
        language: str | Sequence[str],
        examples: Sequence[int] | slice | Int[Tensor, " prompt"],
        given: Given,
    ) -> RecordedPass:
        """Check the rows of one forward pass, and return the pass that records them.

        Args:
            language: the language of all rows, or one for each.
            examples: which example each row is.
            given: what a user says of the batch.
        """
        prompts = self._prompts_of(language, examples)
        mask, tokens = given.mask, given.tokens
        for name, tensor in (("attention_mask", mask), ("tokens", tokens)):
            if tensor is not None and (tensor.is_complex() or (name == "tokens" and tensor.is_floating_point())):
                raise NeuronShareError(f"{name} is {tensor.dtype}; give whole numbers.")
            if tensor is not None and (tensor.ndim != 2 or len(tensor) != len(prompts)):
                raise NeuronShareError(
                    f"{name} has shape {tuple(tensor.shape)} for {len(prompts)} examples; give one row for each."
                )
        if mask is not None and tokens is not None and mask.shape != tokens.shape:
            raise NeuronShareError(
                f"attention_mask has shape {tuple(mask.shape)}, but tokens have {tuple(tokens.shape)}; give both for "
                "the same batch."
            )
        if mask is not None and not ((mask == 0) | (mask == 1)).all():
            raise NeuronShareError("attention_mask has values that are not 0 or 1; give 1 at tokens, 0 at padding.")
        return RecordedPass(self, prompts, given)

    def _prompts_of(self, language: Any, examples: Any) -> Int[Tensor, " prompt"]:
        """The number of each row's prompt, which its example and language determine."""
        rows = range(self.n_examples)[examples] if isinstance(examples, slice) else as_list(examples)
        if not isinstance(rows, Sequence) or isinstance(rows, str) or not len(rows):
            raise NeuronShareError(f"examples={examples!r} selects no examples; give their numbers, such as [0, 1].")
        unknown = [row for row in rows if not (is_count(row, 0) and row < self.n_examples)]
        if unknown:
            raise NeuronShareError(f"There is no example {unknown[0]!r}; there are {self.n_examples}, counted from 0.")
        names = [language] * len(rows) if isinstance(language, str) else list(language)
        if len(names) != len(rows) or any(name not in self.languages for name in names):
            raise NeuronShareError(
                f"language={language!r} for {len(rows)} examples; give one of {', '.join(self.languages)}, "
                "or one of them for each example."
            )
        if len(set(zip(names, rows, strict=True))) < len(rows):
            raise NeuronShareError(f"examples={examples!r} has an example twice in one language; record each once.")
        numbers = [int(row) * len(self.languages) + self.languages.index(n) for row, n in zip(rows, names, strict=True)]
        return torch.tensor(numbers, device="cpu")

    def warn_of_site(self) -> None:
        """Warn, once, of a site that nobody named."""
        if self.why_name_a_site is not None:
            self.warn_once(self.why_name_a_site)

    def warn_once(self, message: str) -> None:
        """Give a warning that would repeat for many batches only once."""
        if message not in self._warned:
            self._warned.add(message)
            warn(message)

    def where(self, prompt: int) -> str:
        """Name a prompt's language and example, for messages."""
        example, language = divmod(prompt, len(self.languages))
        return f"Language {self.languages[language]!r}, example {self.labels[example]!r}"


class Bits:
    """What is kept of a run: one bit for each threshold, prompt, layer and neuron, and counts for each prompt.

    In a mixture of experts there is also one bit for each prompt, layer and expert.

    Attributes:
        borderline: how many values of each prompt are near each threshold.
        fired: which layers of which prompts have been read, in the latest pass that has them.
        recorded: which prompts have been recorded, by a pass through all layers.
        had_tokens: which prompts were recorded together with their tokens.
    """

    def __init__(self, n_thresholds: int, n_prompts: int, widths: Sequence[int], n_experts: int) -> None:
        n_bytes = packed_width(max(widths))
        with torch.inference_mode(False):  # tensors that are made in it cannot be written to outside of it
            self._packed = torch.zeros(n_thresholds, n_prompts, len(widths), n_bytes, dtype=torch.uint8, device="cpu")
            self._routed = torch.zeros(n_prompts, len(widths), packed_width(n_experts), dtype=torch.uint8, device="cpu")
            self.borderline = torch.zeros(n_thresholds, n_prompts, dtype=torch.int32, device="cpu")
            self.fired = torch.zeros(n_prompts, len(widths), dtype=torch.bool, device="cpu")
            self.recorded = torch.zeros(n_prompts, dtype=torch.bool, device="cpu")
            self.had_tokens = torch.zeros(n_prompts, dtype=torch.bool, device="cpu")
        self._is_handed_out = False

    def write(self, prompts: Int[Tensor, " prompt"], layer: int, bits: UInt8[Tensor, "threshold prompt byte"]) -> None:
        """Keep the bits of one layer's neurons for these prompts."""
        self._own()
        self._packed[:, :, layer, : bits.shape[-1]].index_copy_(1, prompts, bits)

    def write_routed(
        self, prompts: Int[Tensor, " prompt"], layer: int, routed: UInt8[Tensor, "prompt expert_byte"]
    ) -> None:
        """Keep the bits of one layer's experts for these prompts."""
        self._own()
        self._routed[:, layer, : routed.shape[-1]].index_copy_(0, prompts, routed)

    def _own(self) -> None:
        """Copy what was handed out, so that writing does not change results that exist."""
        if self._is_handed_out:
            with torch.inference_mode(False):
                self._packed, self._routed, self._is_handed_out = self._packed.clone(), self._routed.clone(), False

    def part(self, start: int, stop: int) -> Bits:
        """Return the prompts from start to stop, as a view: what is written to it is written here."""
        view = copy.copy(self)
        view._packed, view._routed = self._packed[:, start:stop], self._routed[start:stop]
        view.borderline = self.borderline[:, start:stop]
        view.fired, view.recorded = self.fired[start:stop], self.recorded[start:stop]
        view.had_tokens = self.had_tokens[start:stop]
        return view

    def of(self, prompts: Int[Tensor, " prompt"]) -> dict[str, Tensor]:
        """Return everything that is kept of these prompts, one row for each."""
        return {
            "packed": self._packed[:, prompts].transpose(0, 1),
            "routed": self._routed[prompts],
            "borderline": self.borderline[:, prompts].T,
            "recorded": self.recorded[prompts],
            "had tokens": self.had_tokens[prompts],
        }

    def take(self, prompts: Int[Tensor, " prompt"], record: Mapping[str, Tensor]) -> None:
        """Keep what `of` has returned for these prompts."""
        self._packed[:, prompts] = record["packed"].transpose(0, 1)
        self._routed[prompts] = record["routed"]
        self.borderline[:, prompts] = record["borderline"].T
        self.recorded[prompts] = record["recorded"]
        self.had_tokens[prompts] = record["had tokens"]

    def handed_out(
        self,
    ) -> tuple[UInt8[Tensor, "threshold prompt layer byte"], UInt8[Tensor, "prompt layer expert_byte"]]:
        """The bits of neurons and of experts as they are now, for a result."""
        self._is_handed_out = True
        return self._packed, self._routed


class Given(NamedTuple):
    """What a user says of the batch that is run."""

    mask: Mask | None
    tokens: Int[Tensor, "prompt position"] | None


@dataclass
class _Where:
    """Which tokens of a batch a stack of layers is read at. Everything is None until the first call tells the length.

    Attributes:
        length: how many tokens each row has, padding included.
        reached: how many tokens the latest call had.
        counted: which tokens to look at, for each prompt and position; None means all.
        index: which token of each prompt to read, if it is a single one.
    """

    length: int | None = None
    reached: int = 0
    counted: OnDevices | None = None
    index: OnDevices | None = None
    _places: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def places(self, rows: slice, device: torch.device) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
        """Where the token of each of these rows is. It is the same for all layers, and made once."""
        assert self.index is not None  # a single token is read
        key = rows.start, rows.stop, device
        if key not in self._places:
            self._places[key] = torch.arange(rows.start, rows.stop, device=device), self.index.on(device)[rows]
        return self._places[key]


class _Piece(NamedTuple):
    """Some rows of a layer, whose values wait to be reduced.

    Attributes:
        layer: the number of the layer.
        rows: which rows of the pass.
        values: the values, at one token of each row or at all.
        counted: which of the tokens to look at; None means all.
        n_computed: how many of the neurons are computed for a token.
    """

    layer: int
    rows: slice
    values: Float[Tensor, "row position neuron"]
    counted: Bool[Tensor, "row position"] | None
    n_computed: int

    @property
    def kind(self) -> Hashable:
        """What pieces that are reduced together have in common."""
        return self.values.shape[1:], self.values.dtype, self.values.device, self.n_computed


class _Reduced(NamedTuple):
    """What is kept of pieces that were reduced together, in their order, until the pass is complete.

    Attributes:
        places: the layer and the rows of each piece.
        bits: which neurons are activated, packed.
        borderline: how many values are near each threshold.
        is_finite: whether all values of a row are finite.
    """

    places: tuple[tuple[int, slice], ...]
    bits: UInt8[Tensor, "threshold row byte"]
    borderline: Int[Tensor, "threshold row"]
    is_finite: Bool[Tensor, " row"]


class RecordedPass:
    """One forward pass of a recorder: the prompts of its rows, which tokens count, and what has been read so far."""

    def __init__(self, recorder: SharingRecorder, prompts: Int[Tensor, " prompt"], run: Inputs | Given) -> None:
        self.recorder, self.prompts = recorder, prompts
        mask, tokens = run.mask, run.tokens
        self._where: dict[Stack, _Where] = {"decoder": _Where()}
        self._where["encoder"] = self._where["decoder"]
        self._seen: set[int] = set()  # layers that have been read
        self._latest = -1
        self._waiting: list[_Piece] = []
        self._reduced: list[_Reduced] = []
        self._routed: dict[int, UInt8[Tensor, "row expert_byte"]] = {}
        self._has_tokens = tokens is not None
        if recorder.special_tokens and tokens is None and recorder.model.cfg.default_prepend_bos:
            recorder.warn_once(
                f"position={recorder.reading.position!r} without tokens counts special tokens too, such as the BOS; "
                "pass tokens= to leave them out."
            )
        if isinstance(run, Inputs):
            self._locate_in(run)
        elif mask is not None:
            self._locate(self._where["decoder"], mask.bool().cpu(), tokens)
        elif tokens is not None:
            self._refuse_padding(tokens.cpu())
            self._locate(self._where["decoder"], torch.ones(tokens.shape, dtype=torch.bool, device="cpu"), tokens)

    def _locate_in(self, inputs: Inputs) -> None:
        """Determine which tokens to read, where encoder and decoder may see different ones."""
        if inputs.source is None:
            self._locate(self._where["decoder"], inputs.shown(), inputs.tokens)
            return
        self._where["encoder"] = _Where()
        self._locate(self._where["encoder"], inputs.source.shown(), inputs.source.tokens, "the source")
        # The decoder's prompt has no text, so that its special tokens count.
        self._locate(self._where["decoder"], inputs.shown(), None, "the decoder's prompt")

    def read(self, layer: int, tensors: Sequence[Tensor]) -> None:
        """Record one layer: reduce its values over the tokens, and keep one bit for each threshold and neuron."""
        if self._is_decoding_step(layer, tensors):
            return
        # If a layer comes twice in a row, it is one call: a bridge's compatibility mode calls a hook by two names.
        # A single layer that comes again is a new call, or gives the same once more.
        if not self._seen or (layer in self._seen and (layer != self._latest or len(self.recorder.layers) == 1)):
            self._begin()
        self._seen.add(layer)
        self._latest = layer
        self.recorder.bits.fired[self.prompts, layer] = True
        tensors = tuple(tensor.detach() for tensor in tensors)
        where, width = self._where_of(layer), self.recorder.layers[layer].width
        n_tokens = where.length if where.index is None and where.length is not None else 1
        most = _CHUNK if tensors[-1].device.type == "cpu" else _CHUNK_ON_GPU
        step = max(1, most // (n_tokens * width))
        for start in range(0, self.n_prompts, step):
            self._waiting.append(self._piece(layer, tensors, slice(start, min(start + step, self.n_prompts))))
            # All tokens of a layer cannot wait: their values are the model's own tensor, which it may change.
            if where.index is None or sum(piece.values.numel() for piece in self._waiting) >= most:
                self._reduce()
        routed = self._experts(layer, tensors)
        if routed is not None:
            self._routed[layer] = routed
        # On a GPU, fetching results at every layer would stop the model every time.
        if self.is_complete:
            self._reduce()
            self._store()

    def _begin(self) -> None:
        """Forget what has been read, since a new forward pass begins."""
        for each in (self._seen, self._waiting, self._reduced, self._routed):
            each.clear()
        bits = self.recorder.bits
        bits.fired[self.prompts] = False
        bits.recorded[self.prompts] = False
        bits.had_tokens[self.prompts] = self._has_tokens

    def _piece(self, layer: int, tensors: Sequence[Tensor], rows: slice) -> _Piece:
        """The values of some rows of a layer, at the token or tokens that are read."""
        where, neurons = self._where_of(layer), self.recorder.layers[layer]
        # What is not computed is not activated.
        absent = min([0.0, *(each for each in self.recorder.reading.thresholds if not isinstance(each, str))])
        if where.index is None:
            values = neurons.read(tensors, rows, absent=absent)
        else:
            values = neurons.read(tensors, where.places(rows, tensors[-1].device), absent=absent).unsqueeze(1)
        counted = None if where.counted is None else where.counted.on(tensors[-1].device)[rows]
        return _Piece(layer, rows, values, counted, neurons.n_computed(tensors))

    def _reduce(self) -> None:
        """Reduce the values that wait, those of a kind together."""
        waiting, self._waiting = self._waiting, []
        # At one token the largest value is the value itself.
        quantifier: Literal["any", "all"] = "all" if self.recorder.reading.position == "all" else "any"
        for _, alike in groupby(waiting, key=lambda piece: piece.kind):
            pieces = list(alike)
            first = pieces[0]
            values = first.values if len(pieces) == 1 else torch.cat([piece.values for piece in pieces])
            chosen, scale = extreme(values, first.counted, quantifier)
            thresholds = [absolute(chosen, threshold) for threshold in self.recorder.reading.thresholds]
            bits = torch.stack([pack_above(chosen, threshold) for threshold in thresholds])
            # The root mean square of the neurons that are computed: others have no values.
            computed = scale * (values.shape[-1] / first.n_computed) ** 0.5
            borderline = count_borderline(chosen, thresholds, computed, values.dtype)
            places = tuple((piece.layer, piece.rows) for piece in pieces)
            self._reduced.append(_Reduced(places, bits, borderline, scale.isfinite().squeeze(-1)))

    def _where_of(self, layer: int) -> _Where:
        """Which tokens a layer is read at."""
        return self._where[self.recorder.layers[layer].stack]

    def _experts(self, layer: int, tensors: Sequence[Tensor]) -> UInt8[Tensor, "row expert_byte"] | None:
        """Which experts each row is routed to, at its token or over all its counted tokens, as bits; None without."""
        neurons, device, where = self.recorder.layers[layer], tensors[-1].device, self._where_of(layer)
        places = ... if where.index is None else where.places(slice(0, self.n_prompts), device)
        routed = neurons.routed(tensors, places)
        if routed is None:
            return None
        if where.index is None:
            counted = None if where.counted is None else where.counted.on(device)[..., None]
            if self.recorder.reading.position == "any":
                routed = (routed if counted is None else routed & counted).any(1)
            else:
                routed = (routed if counted is None else routed | ~counted).all(1)
        return pack_with_torch(routed)

    @property
    def n_prompts(self) -> int:
        """How many prompts the pass has, one in each row."""
        return len(self.prompts)

    @property
    def is_complete(self) -> bool:
        """Whether every layer has been read."""
        return len(self._seen) == len(self.recorder.layers)

    def _is_decoding_step(self, layer: int, tensors: Sequence[Tensor]) -> bool:
        """Whether this call is a step after the prompt. If it is not, its shape must be that of the batch.

        With a key-value cache a decoding step has one token; without a cache it has one more than the step before.
        """
        neurons, where = self.recorder.layers[layer], self._where_of(layer)
        n_rows, length = neurons.shape(tensors) or (0, 0)
        if n_rows == self.n_prompts:
            if where.length is None:
                self._locate(where, torch.ones(n_rows, length, dtype=torch.bool, device="cpu"), None)
            if length == where.length and not (length == 1 and self.is_complete):
                where.reached = length
                return False
            if self.is_complete and (length == 1 or length in (where.reached, where.reached + 1)):
                where.reached = max(length, where.reached)
                return True
        raise NeuronShareError(
            f"{neurons.misfit(tensors, (self.n_prompts, where.length or 'any'))} These hooks are for one "
            "batch only: call fwd_hooks again for the next one. Batches that are expanded (beams, several sequences "
            "for one prompt) cannot be recorded."
        )

    def _refuse_padding(self, tokens: Int[Tensor, "prompt position"]) -> None:
        """Refuse padded tokens without a mask: prompts that begin or end with different numbers of padding tokens."""
        is_pad = tokens == self.recorder.model.tokenizer.pad_token_id
        for side, run in (("left", is_pad.cumprod(1).sum(1)), ("right", is_pad.flip(1).cumprod(1).sum(1))):
            if run.min() != run.max():
                where = self.recorder.where(int(self.prompts[int(run.argmax())]))
                raise NeuronShareError(
                    f"{where}: the tokens are padded on the {side}, but there is no mask that says so; "
                    "give attention_mask, made from the lengths (for caches, give lengths)."
                )

    def _locate(
        self,
        where: _Where,
        shown: Bool[Tensor, "prompt position"],
        tokens: Int[Tensor, "prompt position"] | None,
        what: str = "the prompt",
    ) -> None:
        """Determine which tokens to read, and check that every prompt has enough of them."""
        recorder = self.recorder
        where.length = shown.shape[1]
        counted = shown
        if recorder.reading.position == "mask":
            where.index = OnDevices(self._mask_tokens(shown, tokens))
            return
        if tokens is not None and recorder.special_tokens:
            counted = shown & models.is_text(recorder.model, tokens)
        needed = tokens_needed(recorder.reading.position)
        too_short = counted.sum(1) < needed
        if too_short.any():
            row = int(too_short.int().argmax())
            note = "" if counted.equal(shown) else " without special ones"
            raise NeuronShareError(
                f"{recorder.where(int(self.prompts[row]))}: {what} has "
                f"{int(counted[row].sum())} token(s){note}, but position={recorder.reading.position!r} needs "
                f"{needed}; use another position, or drop that example in every language."
            )
        if recorder.reading.position in ("any", "all"):
            where.counted = None if counted.all() else OnDevices(counted)
        else:
            where.index = OnDevices(nth_from_the_end(counted, needed))

    def _mask_tokens(
        self, shown: Bool[Tensor, "prompt position"], tokens: Int[Tensor, "prompt position"] | None
    ) -> Int[Tensor, " prompt"]:
        """Where the mask token of each prompt is, which must have exactly one."""
        tokenizer = self.recorder.model.tokenizer
        if tokens is None:
            raise NeuronShareError("position='mask' without tokens cannot be found; give tokens.")
        is_mask = shown & (tokens.cpu() == tokenizer.mask_token_id)
        wrong = is_mask.sum(1) != 1
        if wrong.any():
            row = int(wrong.int().argmax())
            raise NeuronShareError(
                f"{self.recorder.where(int(self.prompts[row]))}: the prompt has {int(is_mask[row].sum())} mask tokens, "
                f"but position='mask' needs one; write {tokenizer.mask_token} once, where a word is to be filled in."
            )
        index: Int[Tensor, " prompt"] = is_mask.int().argmax(1)
        return index

    def _store(self) -> None:
        """Move what has been read to the recorder, in a single copy."""
        recorder, prompts = self.recorder, self.prompts
        recorder.bits.recorded[prompts] = False
        of_values = [tensor for _, *tensors in self._reduced for tensor in tensors]
        fetched = iter(models.on_cpu(of_values + list(self._routed.values())))
        latest: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}  # a layer may have been read twice
        for places, *_ in self._reduced:
            bits, borderline, is_finite = next(fetched), next(fetched), next(fetched)
            end = 0
            for layer, rows in places:
                start, end = end, end + rows.stop - rows.start
                latest[layer, rows.start] = bits[:, start:end], borderline[:, start:end], is_finite[start:end]
        recorder.bits.borderline[:, prompts] = 0
        for (layer, first), (bits, borderline, is_finite) in latest.items():
            of_rows = prompts[first : first + len(is_finite)]
            self._require_finite(is_finite, layer, of_rows)
            recorder.bits.write(of_rows, layer, bits)
            recorder.bits.borderline[:, of_rows] += borderline
        for layer, routed in zip(self._routed, fetched, strict=True):
            recorder.bits.write_routed(prompts, layer, routed)
        recorder.bits.recorded[prompts] = True

    def _require_finite(self, is_finite: Bool[Tensor, " row"], layer: int, prompts: Int[Tensor, " row"]) -> None:
        """Refuse NaN and infinite values."""
        if not is_finite.all():
            recorder = self.recorder
            raise NeuronShareError(
                f"{recorder.where(int(prompts[int((~is_finite).int().argmax())]))}: NaN or infinite activations (or "
                f"beyond 1e19) at {recorder.layers[layer].name}; load the model in float32 or bfloat16, and check your "
                "own hooks."
            )


def _as_languages(languages: Any) -> tuple[str, ...]:
    names = tuple(languages) if has_order(languages) else ()
    if len(set(names)) < 2 or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise NeuronShareError(f"languages={languages!r}; give a list of at least two names, all different.")
    refuse_language_all(names)
    return names

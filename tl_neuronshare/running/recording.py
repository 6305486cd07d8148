"""Hooks that record which neurons are activated, in anybody's run of the model.

Each layer's values are reduced to one bit a neuron as soon as its hook fires, so that of all layers together nothing
wider than that is held. `categorising.py` has ready-made runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.checks import refuse_language_all
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import (
    Number,
    Position,
    as_position,
    at_index,
    count_borderline,
    extreme,
    nth_from_the_end,
    pack_above,
    packed_width,
    tokens_needed,
)
from tl_neuronshare.models import verification
from tl_neuronshare.models.fingerprint import fingerprint_of_weights
from tl_neuronshare.models.layers import Site
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.prompts import ParallelPrompts, as_list, hashes_of
from tl_neuronshare.results.identity import fingerprint
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.running import provenance

_LARGEST: Any = torch.finfo(torch.float32).max
_CHUNK = 1 << 20  # values at a time: what is needed for a moment is little beside what the model itself needs
Mask = Int[Tensor, "prompt position"] | Bool[Tensor, "prompt position"]


class SharingRecorder:
    """Hook functions that record, in your own runs, which neurons each prompt activates.

    They read and never edit, so they compose with any other hooks: those installed before these, on the same
    hook point, are seen; those after are not. Works in `run_with_hooks`, `model.hooks` and `generate`.

    Args:
        model: the HookedTransformer or TransformerBridge that you will run.
        languages: at least two.
        n_examples: how many examples there will be; each needs one prompt in every language.
        site: as in `categorise`.
        position: as in `categorise`.
        threshold: as in `categorise`; several are recorded at once.

    Raises:
        NeuronShareError: an unsuitable model or option. The hooks raise it where a tensor has not the shape of
            the batch, where a prompt has too few tokens, and for values that are NaN or infinite.

    Example:
        >>> recorder = SharingRecorder(model, ["en", "de"], n_examples=1)
        >>> for language, prompt in {"en": "Country code of Peru →", "de": "Ländercode von Peru →"}.items():
        ...     _ = model.run_with_hooks(prompt, fwd_hooks=recorder.fwd_hooks(language, [0]))
        >>> recorder.sharing().types.shape  # example layer neuron
        torch.Size([1, 4, 512])
    """

    def __init__(
        self,
        model: LensModel,
        languages: Sequence[str],
        n_examples: int,
        *,
        site: Site = "post",
        position: Position = "last",
        threshold: Number | Sequence[Number] = 0.0,
    ) -> None:
        self.languages = _as_languages(languages)
        self.n_examples = _as_count(n_examples)
        self.position = as_position(position)
        self.thresholds, self._one_threshold = _as_thresholds(threshold)
        self.layers = models.neuron_layers(model, site)
        verification.require(model, "logits", site)
        # A model without gates has only `post`.
        self.site = site if site != "gate" or any(layer.activation for layer in self.layers) else "post"
        self.model = model
        self.labels: Sequence[Hashable] = range(self.n_examples)
        self._made_from = provenance.describe(model)
        self._weights = fingerprint_of_weights(model)
        self._warned: set[str] = set()
        # The axis of prompts is that of examples and, within it, of languages.
        n_prompts, n_layers = self.n_examples * len(self.languages), len(self.layers)
        n_bytes = packed_width(max(layer.width for layer in self.layers))
        with torch.inference_mode(False):  # else they could not be written to outside it
            self._packed = torch.zeros(
                len(self.thresholds), n_prompts, n_layers, n_bytes, dtype=torch.uint8, device="cpu"
            )
            self._borderline = torch.zeros(len(self.thresholds), n_prompts, dtype=torch.int32, device="cpu")
            self._fired = torch.zeros(n_prompts, n_layers, dtype=torch.bool, device="cpu")
            self._had_tokens = torch.zeros(n_prompts, dtype=torch.bool, device="cpu")
        self._handed_out = False

    def fwd_hooks(
        self,
        language: str | Sequence[str],
        examples: Sequence[int] | slice | Int[Tensor, " prompt"],
        attention_mask: Mask | None = None,
        *,
        tokens: Int[Tensor, "prompt position"] | None = None,
    ) -> list[tuple[str, Callable[..., None]]]:
        """Hooks for one batch: pairs of a hook's name and a function, for `run_with_hooks` or `model.hooks`.

        They are for this very batch: its prompts are recorded when it runs, and anew if it runs again. Calls that
        continue it by generated tokens (one more at a time, or one alone with a key-value cache) are left alone;
        after a prompt of a single token, every call of one token is taken for one of these.

        Args:
            language: of all rows of the batch, or one for each.
            examples: which example each row is, counted from 0.
            attention_mask: what the model gets too, 1 at the tokens that are no padding; padding on either side.
                None only where nothing is padded: TransformerLens pads a list of strings by itself.
            tokens: what the model gets. For the positions `any` and `all`, which leave special tokens out and cannot
                see them otherwise; without it they count every token that the mask shows.

        Warns:
            UserWarning: once, for several prompts without mask and tokens, which may be padded unseen; and for `any`
                and `all` without tokens on a model whose prompts begin with a BOS.

        Raises:
            NeuronShareError: an unknown language or example, a mask or tokens of another shape, or a prompt with too
                few tokens for the position.
        """
        batch = self.batch(language, examples, attention_mask, tokens)
        if attention_mask is None and tokens is None and batch.n_prompts > 1:
            self.warn_once(
                "Several prompts without attention_mask and tokens are taken to be unpadded. TransformerLens pads a "
                "list of strings by itself, mostly on the right, so that the last token is padding; pass the mask.",
                stacklevel=3,
            )
        return [(layer.hook, partial(batch.hook, layer=number)) for number, layer in enumerate(self.layers)]

    def sharing(self, *, prompts: ParallelPrompts | None = None) -> NeuronSharing | dict[float, NeuronSharing]:
        """What was recorded: one result, or one for each threshold where a sequence of them was given.

        Args:
            prompts: what was run, for the fingerprint in the metadata; without them it says `unknown`.

        Raises:
            NeuronShareError: a prompt has not been recorded, prompts of other languages or another number, or some
                batches with `tokens` and others without at a position that leaves special tokens out.
        """
        if not bool(self._fired.all()):
            prompt, layer = (int(index) for index in (~self._fired).nonzero()[0])
            raise NeuronShareError(
                f"{self._where(prompt)}: {self.layers[layer].hook} did not fire, so that "
                f"{int((~self._fired).any(-1).sum())} of {len(self._fired)} prompts are not recorded. Run "
                "each under the hooks that fwd_hooks gives for it, through all layers; do other hooks replace the MLP?"
            )
        if not (prompts is None or isinstance(prompts, ParallelPrompts)):
            raise NeuronShareError(f"prompts is a {type(prompts).__name__}; give the ParallelPrompts that were run.")
        if prompts is not None and (set(prompts.languages) != set(self.languages) or len(prompts) != self.n_examples):
            raise NeuronShareError(
                f"The prompts are {len(prompts)} examples in {', '.join(prompts.languages)}; "
                f"{self.n_examples} in {', '.join(self.languages)} were recorded. Give the prompts that were run."
            )
        special = self.special_tokens()
        if special and self._had_tokens.any() and not self._had_tokens.all():
            prompt = int((~self._had_tokens).int().argmax())
            raise NeuronShareError(
                f"{self._where(prompt)}: recorded without tokens, and so with its special tokens, while other prompts "
                "are without theirs; pass tokens= to fwd_hooks for all or for none."
            )
        hashes = None if prompts is None else hashes_of(prompts)
        metadata = {
            **self._made_from,
            "prompts": "" if prompts is None else prompts.name,
            "languages": list(self.languages),
            "site": self.site,
            "position": self.position,
            "prepend_bos": None,
            "special_tokens_left_out": special if self._had_tokens.all() else [],
            "fingerprint": fingerprint(self._weights, hashes),
        }
        self._handed_out = True
        packed = rearrange(
            self._packed, "threshold (example language) ... -> threshold example language ...", example=self.n_examples
        )
        neurons = len(self.languages) * self.n_examples * sum(layer.width for layer in self.layers)
        results = {
            threshold: NeuronSharing(
                packed[number],
                languages=self.languages,
                widths=[layer.width for layer in self.layers],
                hooks=[layer.hook for layer in self.layers],
                metadata={
                    **metadata,
                    "threshold": threshold,
                    "borderline_fraction": int(self._borderline[number].sum()) / neurons,
                },
                prompt_hashes=hashes,
            )
            for number, threshold in enumerate(self.thresholds)
        }
        return results[self.thresholds[0]] if self._one_threshold else results

    def batch(
        self,
        language: str | Sequence[str],
        examples: Sequence[int] | slice | Int[Tensor, " prompt"],
        mask: Mask | None,
        tokens: Int[Tensor, "prompt position"] | None,
    ) -> Batch:
        """The rows of one forward pass, checked."""
        mask, tokens = (
            given if given is None or isinstance(given, Tensor) else torch.as_tensor(given, device="cpu")
            for given in (mask, tokens)
        )
        rows = range(self.n_examples)[examples] if isinstance(examples, slice) else as_list(examples)
        if not isinstance(rows, Sequence) or isinstance(rows, str) or not len(rows):
            raise NeuronShareError(f"examples={examples!r} selects no examples; give their numbers, such as [0, 1].")
        unknown = [row for row in rows if not _is_index(row, self.n_examples)]
        if unknown:
            raise NeuronShareError(f"There is no example {unknown[0]!r}; there are {self.n_examples}, counted from 0.")
        names = [language] * len(rows) if isinstance(language, str) else list(language)
        unknown = [name for name in names if name not in self.languages]
        if unknown or len(names) != len(rows):
            raise NeuronShareError(
                f"language={language!r} for {len(rows)} examples; give one of {', '.join(self.languages)}, "
                "or one of them for each example."
            )
        if len(set(zip(names, rows, strict=True))) < len(rows):
            raise NeuronShareError(f"examples={examples!r} has an example twice in one language; record each once.")
        for what, tensor in (("attention_mask", mask), ("tokens", tokens)):
            if tensor is not None and (tensor.ndim != 2 or len(tensor) != len(rows)):
                raise NeuronShareError(
                    f"{what} has shape {tuple(tensor.shape)} for {len(rows)} examples; give one row for each."
                )
        if mask is not None and tokens is not None and mask.shape != tokens.shape:
            raise NeuronShareError(
                f"attention_mask has shape {tuple(mask.shape)}, tokens {tuple(tokens.shape)}; they are of one batch."
            )
        if mask is not None and not ((mask == 0) | (mask == 1)).all():
            raise NeuronShareError("attention_mask holds other values than 0 and 1; give 1 at tokens, 0 at padding.")
        prompts = [int(row) * len(self.languages) + self.languages.index(n) for row, n in zip(rows, names, strict=True)]
        return Batch(self, torch.tensor(prompts, device="cpu"), mask, tokens)

    def special_tokens(self) -> list[int]:
        """What `any` and `all` leave out."""
        return models.special_tokens(self.model) if self.position in ("any", "all") else []

    def warn_once(self, message: str, *, stacklevel: int) -> None:
        """Warn of something that holds for many batches."""
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=stacklevel)

    def _write(self, prompts: Int[Tensor, " prompt"], layer: int, bits: UInt8[Tensor, "threshold prompt byte"]) -> None:
        """Keep one layer of a batch; results that were handed out earlier stay as they are."""
        if self._handed_out:
            with torch.inference_mode(False):
                self._packed, self._handed_out = self._packed.clone(), False
        self._packed[:, :, layer, : bits.shape[-1]].index_copy_(1, prompts, bits)
        self._fired[prompts, layer] = True

    def _where(self, prompt: int) -> str:
        example, language = divmod(prompt, len(self.languages))
        return f"Language {self.languages[language]!r}, example {self.labels[example]!r}"


class Batch:
    """One forward pass of a recorder: which prompts its rows are, which tokens count, and what was read so far."""

    def __init__(
        self,
        recorder: SharingRecorder,
        prompts: Int[Tensor, " prompt"],
        mask: Mask | None,
        tokens: Int[Tensor, "prompt position"] | None,
    ) -> None:
        self._recorder, self._prompts = recorder, prompts
        self._length: int | None = None
        self._reached = 0  # how many tokens the latest pass had
        self._counted: Bool[Tensor, "prompt position"] | None = None  # None: all
        self._index: Int[Tensor, " prompt"] | None = None  # the one token to read, where it is one
        self._borderline: dict[int, Int[Tensor, "threshold prompt"]] = {}  # of each layer that has been read
        self._held: list[tuple[int, Tensor, Tensor]] = []
        self._latest = -1
        self._has_tokens = tokens is not None
        if recorder.special_tokens() and tokens is None and recorder.model.cfg.default_prepend_bos:
            recorder.warn_once(
                f"position={recorder.position!r} without tokens counts special tokens too, such as the BOS; "
                "pass tokens= to leave them out.",
                stacklevel=5,  # the line that called fwd_hooks or categorise_caches
            )
        if mask is not None:
            self._locate(mask.bool().cpu(), tokens)
        elif tokens is not None:
            self._refuse_padding(tokens.cpu())
            self._locate(torch.ones(tokens.shape, dtype=torch.bool, device="cpu"), tokens)

    def hook(self, tensor: Tensor, hook: Any, *, layer: int) -> None:
        """A hook function; it returns nothing, and so edits nothing."""
        self.read(layer, tensor)

    def read(self, layer: int, tensor: Tensor) -> None:
        """Record one layer: reduce its values over the tokens, compare with every threshold, keep a bit a neuron."""
        if self._is_decoding_step(layer, tensor):
            return
        recorder = self._recorder
        # The same layer twice in a row is one call under two names, as a bridge's compatibility mode makes them.
        if not self._borderline or (layer in self._borderline and layer != self._latest):
            self._borderline.clear()
            self._held.clear()
            recorder._fired[self._prompts] = False
            recorder._had_tokens[self._prompts] = self._has_tokens
        recorder._fired[self._prompts, layer] = False
        n_tokens = tensor.shape[1] if self._index is None else 1
        step = max(1, _CHUNK // (n_tokens * tensor.shape[2]))
        starts = range(0, len(tensor), step)
        parts = [self._reduced(layer, tensor.detach(), slice(start, start + step)) for start in starts]
        bits, borderline, finite = zip(*parts, strict=True)
        self._borderline[layer] = torch.cat(borderline, dim=1)
        self._held.append((layer, torch.cat(bits, dim=1), torch.cat(finite)))
        self._latest = layer
        # Else the results wait for the last layer: fetching them at each would stop the model every time.
        if _answers_at_once(tensor) or self.is_complete:
            self._store()

    def _reduced(
        self, layer: int, values: Float[Tensor, "prompt position neuron"], rows: slice
    ) -> tuple[
        UInt8[Tensor, "threshold row byte"], Int[Tensor, "threshold row"], Bool[Tensor, " row"]
    ]:  # fmt: skip
        """Of some prompts: which neurons are activated, how many values are borderline, whether all are finite."""
        recorder, values, device = self._recorder, values[rows], values.device
        if self._index is not None:
            values = at_index(values, self._index[rows].to(device))
        counted = None if self._counted is None else self._counted[rows].to(device)
        # At one token the largest value is the value itself.
        quantifier: Literal["any", "all"] = "all" if recorder.position == "all" else "any"
        chosen, scale = extreme(recorder.layers[layer].values(values), counted, quantifier)
        bits = torch.stack([pack_above(chosen, threshold) for threshold in recorder.thresholds])
        borderline = count_borderline(chosen, recorder.thresholds, scale, values.dtype)
        return bits, borderline, scale.isfinite().squeeze(-1)

    @property
    def n_prompts(self) -> int:
        """How many rows it has."""
        return len(self._prompts)

    @property
    def is_complete(self) -> bool:
        """Whether every layer has been read."""
        return len(self._borderline) == len(self._recorder.layers)

    def require_complete(self) -> None:
        """Raise unless every layer has been read."""
        for number, layer in enumerate(self._recorder.layers):
            if number not in self._borderline:
                raise NeuronShareError(
                    f"{layer.hook} did not fire; is it the hook of a layer that this model skips? "
                    "Remove hooks or settings that replace the MLP, or use another site."
                )

    def _is_decoding_step(self, layer: int, tensor: Tensor) -> bool:
        """Whether this call goes on after the prompt; else its shape must be the batch's.

        With a key-value cache decoding steps have one token, without it one more than the step before.
        """
        width, n_prompts = self._recorder.layers[layer].width, self.n_prompts
        if tensor.ndim == 3 and tensor.shape[0] == n_prompts and tensor.shape[2] == width:
            length = tensor.shape[1]
            if self._length is None:
                self._locate(torch.ones(tensor.shape[:2], dtype=torch.bool, device="cpu"), None)
            if length == self._length and not (length == 1 and self.is_complete):
                self._reached = length
                return False
            if self.is_complete and (length == 1 or length in (self._reached, self._reached + 1)):
                self._reached = max(length, self._reached)
                return True
        raise NeuronShareError(
            f"{self._recorder.layers[layer].hook} gave a tensor of shape {tuple(tensor.shape)}, "
            f"not {(n_prompts, self._length or 'any', width)} (prompts, positions, neurons). Hooks are for the one "
            "batch that fwd_hooks was told of: ask for new ones for another; batches that are expanded (beams, several "
            "sequences a prompt) cannot be recorded. Or does a hook of yours change the shape?"
        )

    def _refuse_padding(self, tokens: Int[Tensor, "prompt position"]) -> None:
        """Without a mask nothing may be padded; prompts that begin or end in unlike numbers of padding tokens are."""
        is_pad = tokens == self._recorder.model.tokenizer.pad_token_id
        for side, run in (("left", is_pad.cumprod(1).sum(1)), ("right", is_pad.flip(1).cumprod(1).sum(1))):
            if run.min() != run.max():
                where = self._recorder._where(int(self._prompts[int(run.argmax())]))
                raise NeuronShareError(
                    f"{where}: the tokens are padded on the {side}, and there is no mask that says so; "
                    "give attention_mask, made from the lengths (for caches, give lengths)."
                )

    def _locate(self, shown: Bool[Tensor, "prompt position"], tokens: Int[Tensor, "prompt position"] | None) -> None:
        """Which tokens to read, once the length is known; every prompt must have enough of them."""
        recorder = self._recorder
        self._length = shown.shape[1]
        counted = shown
        if tokens is not None and recorder.special_tokens():
            counted = shown & ~torch.isin(
                tokens.cpu(), torch.tensor(recorder.special_tokens(), dtype=torch.long, device="cpu")
            )
        needed = tokens_needed(recorder.position)
        too_short = counted.sum(1) < needed
        if too_short.any():
            row = int(too_short.int().argmax())
            without = " that is no special token" if not counted.equal(shown) else ""
            raise NeuronShareError(
                f"{recorder._where(int(self._prompts[row]))}: the prompt has "
                f"{int(counted[row].sum())} token(s){without}, and position={recorder.position!r} needs {needed}; "
                "use another position, or drop that example in every language."
            )
        if recorder.position in ("any", "all"):
            self._counted = None if counted.all() else counted
        else:
            self._index = nth_from_the_end(counted, needed)

    def _store(self) -> None:
        """Move what has been read to the recorder."""
        recorder, held, self._held = self._recorder, self._held, []
        for layer, bits, finite in held:
            if not finite.all():
                prompt = int(self._prompts[int((~finite).int().argmax())])
                raise NeuronShareError(
                    f"{recorder._where(prompt)}: NaN or infinite activations (or beyond 1e19) at "
                    f"{recorder.layers[layer].hook}; load the model in float32 or bfloat16, and check your own hooks."
                )
            recorder._write(self._prompts, layer, bits.cpu())
        if self.is_complete:
            recorder._borderline[:, self._prompts] = sum(counts.cpu() for counts in self._borderline.values())


def _as_languages(languages: Any) -> tuple[str, ...]:
    names = () if isinstance(languages, str) or not isinstance(languages, Iterable) else tuple(languages)
    if len(set(names)) < 2 or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise NeuronShareError(f"languages={languages!r}; give a list of at least two names, all different.")
    refuse_language_all(names)
    return names


def _as_count(n_examples: Any) -> int:
    if isinstance(n_examples, bool) or not isinstance(n_examples, Integral) or n_examples < 1:
        raise NeuronShareError(f"n_examples={n_examples!r} is no number of examples; give 1 or more.")
    return int(n_examples)


def _as_thresholds(threshold: Any) -> tuple[tuple[float, ...], bool]:
    """The thresholds, and whether it is a single one."""
    given = as_list(threshold)
    one = not isinstance(given, Sequence) or isinstance(given, str)
    thresholds = [given] if one else list(given)
    checked = tuple(map(as_threshold, thresholds))
    if len(set(checked)) < max(1, len(thresholds)):
        raise NeuronShareError(f"threshold={threshold!r}; give at least one threshold, each once.")
    return checked, one


def as_threshold(number: Any) -> float:
    """The threshold, checked."""
    if isinstance(number, bool) or not isinstance(number, Real) or not abs(number) < _LARGEST:
        raise NeuronShareError(f"threshold={number!r} is no finite number (or list of them); 0.0 is the paper's.")
    return float(number)


def _is_index(number: Any, size: int) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool) and number in range(size)


def _answers_at_once(tensor: Tensor) -> bool:
    """Whether results are there when they are asked for; a GPU is behind, and would have to be waited for."""
    return tensor.device.type == "cpu"

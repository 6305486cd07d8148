"""What is shared between languages: the types of neurons, and tables of them. Pure: no model is known here.

A neuron is one coordinate of an MLP's post-activation vector. For one example, asked in K languages, it is
activated in c of them and so is all-shared (c = K), partial-shared (1 < c < K), specific (c = 1) or
non-activated (c = 0). Source: Wang et al., "Sharing Matters" (arXiv 2406.09265), section 3. A type belongs
to one example, not to the neuron for good.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float, Int, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import pack, packed_width, unpack
from tl_neuronshare.maths.chance import independent_types, jaccard
from tl_neuronshare.prompts import ParallelPrompts, are_of, hashes_of, short_hash
from tl_neuronshare.results.files import write_tensors

_FORMAT = "tl_neuronshare.NeuronSharing/1"
_NO_NEURON = 255  # fills the types of layers that are narrower than the widest
_CHUNK_BYTES = 1 << 27  # how much is unpacked at a time
MISMATCHES = 3  # draws of mismatched examples, in tables
# Results that differ in one of these measure different things.
_MEASURED = ("site", "position", "threshold", "prepend_bos", "special_tokens_left_out", "weights", "dtype")
_SHARES = ("borderline_fraction", "common_prefix_share")


class NeuronType(IntEnum):
    """In how many of the K languages a neuron is activated: none, one, some, or all.

    Example:
        >>> NeuronType.ALL_SHARED.label
        'all-shared'
    """

    NON_ACTIVATED = 0
    SPECIFIC = 1
    PARTIAL_SHARED = 2
    ALL_SHARED = 3

    @property
    def label(self) -> str:
        """The type's name in tables and figures."""
        return self.name.lower().replace("_", "-")


# From the most to the least shared: the order of tables and figures.
TYPES = tuple(sorted(NeuronType, reverse=True))


def neuron_types(activated: Bool[Tensor, "*batch language layer neuron"]) -> UInt8[Tensor, "*batch layer neuron"]:
    """The type of each neuron, from whether it is activated in each language. The paper's definition.

    Raises:
        NeuronShareError: no booleans, too few axes, or fewer than two languages.

    Example:
        >>> in_english, in_german = [True, True, False], [True, False, False]
        >>> neuron_types(torch.tensor([[in_english], [in_german]]))
        tensor([[3, 1, 0]], dtype=torch.uint8)
    """
    if activated.dtype != torch.bool or activated.ndim < 3:
        raise NeuronShareError(
            f"activated is {activated.dtype} of shape {tuple(activated.shape)}; give booleans (such as values > 0) "
            "with axes language, layer and neuron last."
        )
    n_languages = activated.shape[-3]
    if n_languages < 2:
        raise NeuronShareError(f"Activation in {n_languages} language(s); sharing needs at least two.")
    count = reduce(activated.to(torch.int32), "... language layer neuron -> ... layer neuron", "sum")
    types = count.clamp(max=NeuronType.PARTIAL_SHARED)
    types[count == n_languages] = NeuronType.ALL_SHARED  # with two languages, two is all
    return types.to(torch.uint8)


class NeuronSharing:
    """Which neurons each example activates in each language, and so their types.

    One bit is kept for each neuron, language and example; `types`, `mask` and `activated` are made anew from
    the bits at each call. Made by `categorise`, `load`, or `from_activated`.

    Attributes:
        languages: the languages, in the order of `activated`.
        widths: how many neurons each layer has.
        hooks: the hook that was read for each layer.
        metadata: where the result comes from: model, site, position, threshold, versions, fingerprint; what it says of
            the run (batches, borderline_fraction ...) stays that of the whole run when examples are selected.
        prompt_hashes: a hash of each example's prompts, or None where they are not known.

    Example:
        >>> in_english, in_german = [True, True, False], [True, False, False]
        >>> activated = torch.tensor([[[in_english], [in_german]]])  # one example, one layer
        >>> sharing = NeuronSharing.from_activated(activated, languages=["en", "de"])
        >>> sharing
        NeuronSharing(1 examples x 2 languages (en, de), 1 layers of 3 neurons)
        >>> sharing.mask("all-shared")
        tensor([[[ True, False, False]]])
    """

    def __init__(
        self,
        packed: UInt8[Tensor, "example language layer byte"],
        *,
        languages: Sequence[str],
        widths: Sequence[int],
        hooks: Sequence[str],
        metadata: Mapping[str, Any],
        prompt_hashes: Sequence[str] | None = None,
    ) -> None:
        expected = (len(packed), len(languages), len(widths), packed_width(max(widths, default=0)))
        if tuple(packed.shape) != expected or packed.dtype != torch.uint8 or len(hooks) != len(widths):
            raise NeuronShareError(
                f"The packed activations are {packed.dtype} of shape {tuple(packed.shape)}, with {len(hooks)} hooks; "
                f"{len(languages)} languages and {len(widths)} layers of {max(widths, default=0)} neurons need "
                f"torch.uint8 of shape {expected}."
            )
        if len(languages) < 2 or len(packed) == 0 or not widths:
            raise NeuronShareError(
                f"{tuple(packed.shape)} is nothing to share: examples, two languages, layers are needed."
            )
        refuse_all(languages)
        if len(set(languages)) < len(languages):
            raise NeuronShareError(f"The languages {', '.join(languages)} are not all different; name each once.")
        if prompt_hashes is not None and len(prompt_hashes) != len(packed):
            raise NeuronShareError(f"{len(prompt_hashes)} prompt_hashes for {len(packed)} examples; give one for each.")
        self._packed = packed
        self.languages, self.widths, self.hooks = tuple(languages), tuple(widths), tuple(hooks)
        self.prompt_hashes = None if prompt_hashes is None else tuple(prompt_hashes)
        self.metadata = copy.deepcopy(dict(metadata))
        if "fingerprint" in self.metadata:
            weights = str(self.metadata["fingerprint"]).split("-")[0]
            self.metadata["fingerprint"] = fingerprint(weights, self.prompt_hashes)

    @classmethod
    def from_activated(
        cls,
        activated: Bool[Tensor, "example language layer neuron"],
        *,
        languages: Sequence[str],
        widths: Sequence[int] | None = None,
        hooks: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> NeuronSharing:
        """From a boolean tensor of one's own.

        Args:
            activated: whether each neuron is activated; False where a layer is narrower than the widest.
            languages: the languages, in the order of the tensor.
            widths: how many neurons each layer has; all as many as the tensor's last axis by default.
            hooks: where they were read; `blocks.N.mlp.hook_post` by default.
            metadata: whatever is to be saved with it.

        Raises:
            NeuronShareError: a neuron beyond its layer's width is activated, or sizes do not fit.
        """
        if not isinstance(activated, Tensor) or activated.dtype != torch.bool or activated.ndim != 4:
            raise NeuronShareError(
                "activated is no boolean tensor with axes example, language, layer, neuron; give such as values > 0."
            )
        n_layers, width = activated.shape[-2:]
        widths = [width] * n_layers if widths is None else widths
        if max(widths, default=0) != width:
            raise NeuronShareError(f"The widest layer of {tuple(widths)} has not the tensor's {width} neurons.")
        sharing = cls(
            pack(activated),
            languages=languages,
            widths=widths,
            hooks=[f"blocks.{layer}.mlp.hook_post" for layer in range(n_layers)] if hooks is None else hooks,
            metadata=metadata or {},
        )
        if (activated & ~sharing.is_neuron).any():
            raise NeuronShareError(
                f"Neurons beyond the widths {sharing.widths} are activated; set them to False, or give the true widths."
            )
        return sharing

    @classmethod
    def concatenate(cls, results: Sequence[NeuronSharing]) -> NeuronSharing:
        """The examples of several results, one after the other, if all measured the same.

        Metadata that differs between them (batches, device ...) becomes a list; the borderline fraction their mean.

        Raises:
            NeuronShareError: no result, other languages, layers, site, position, threshold, tokens or weights.

        Example:
            >>> NeuronSharing.concatenate([sharing[2:], sharing[:2]]).n_examples == sharing.n_examples
            True
        """
        if isinstance(results, Mapping | NeuronSharing) or not all(isinstance(one, cls) for one in results):
            raise NeuronShareError(
                "results is no list of NeuronSharing; with several thresholds, concatenate those of each threshold."
            )
        if not results:
            raise NeuronShareError("There is no result to concatenate; give at least one.")
        first = results[0]
        for number, other in enumerate(results[1:], start=1):
            difference = first_difference(first, other)
            if difference is not None:
                what, ours, theirs = difference
                raise NeuronShareError(
                    f"Result {number} has {what} {theirs!r}, result 0 {ours!r}; concatenate results that measured the "
                    "same, or compare their tables."
                )
        hashes = [result.prompt_hashes for result in results]
        known = [hash for part in hashes if part is not None for hash in part]
        return cls(
            torch.cat([result._packed for result in results]),
            languages=first.languages,
            widths=first.widths,
            hooks=first.hooks,
            metadata=_merged([result.metadata for result in results], [len(result) for result in results]),
            prompt_hashes=None if None in hashes else known,
        )

    @property
    def n_examples(self) -> int:
        """How many examples there are."""
        return len(self._packed)

    @property
    def n_layers(self) -> int:
        """How many layers there are."""
        return len(self.widths)

    @property
    def d_mlp(self) -> int:
        """How many neurons the widest layer has."""
        return max(self.widths)

    def __len__(self) -> int:
        return self.n_examples

    def __getitem__(self, examples: slice) -> NeuronSharing:
        """The selected examples."""
        return NeuronSharing(
            self._rows(examples),
            languages=self.languages,
            widths=self.widths,
            hooks=self.hooks,
            metadata=self.metadata,
            prompt_hashes=None if self.prompt_hashes is None else self.prompt_hashes[examples],
        )

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same activations of the same neurons and languages, in the same order."""
        return (
            isinstance(other, NeuronSharing)
            and (self.languages, self.widths, self.hooks) == (other.languages, other.widths, other.hooks)
            and torch.equal(self._packed, other._packed)
        )

    __hash__ = None  # type: ignore[assignment]  # compared by content, like a tensor's values

    def __repr__(self) -> str:
        widths = "/".join(map(str, sorted(set(self.widths))))
        return (
            f"NeuronSharing({self.n_examples} examples x {len(self.languages)} languages "
            f"({', '.join(self.languages)}), {self.n_layers} layers of {widths} neurons)"
        )

    def activated(
        self, examples: slice = slice(None), *, language: str | None = None
    ) -> Bool[Tensor, "example language layer neuron"]:
        """Whether each neuron is activated, unpacked for this call; False where a layer is narrower.

        Args:
            examples: which to unpack.
            language: only this one, on an axis of size 1; all by default.

        Raises:
            NeuronShareError: no such example or language.
        """
        rows = self._rows(examples)
        if language is not None:
            if language not in self.languages:
                raise NeuronShareError(f"There is no language {language!r}; there are {', '.join(self.languages)}.")
            rows = rows[:, [self.languages.index(language)]]
        return unpack(rows, self.d_mlp) & self.is_neuron

    @property
    def types(self) -> UInt8[Tensor, "example layer neuron"]:
        """Each neuron's type (a NeuronType's number); 255 where a layer is narrower than the widest."""
        return torch.cat([neuron_types(activated) for activated in self._chunks()]).masked_fill_(
            ~self.is_neuron, _NO_NEURON
        )

    def mask(self, type: NeuronType | str) -> Bool[Tensor, "example layer neuron"]:
        """The neurons of one type, given as a NeuronType or by its label.

        Raises:
            NeuronShareError: an unknown type.
        """
        return self.types == as_type(type)

    def mismatched(self, *, seed: int = 0) -> NeuronSharing:
        """The same activations with a different example in each language: what is shared without shared meaning.

        Each language's examples are moved round by an offset of its own, so that every example of every language
        is used once and no two languages of a new example show the same one. What is all-shared here is activated
        by whatever the examples have in common: their form, their task, or being text at all. Where examples are of
        several kinds, other kinds are mixed in; to keep to one, mismatch each kind's examples for themselves.

        Args:
            seed: of the offsets.

        Raises:
            NeuronShareError: fewer examples than languages, or no seed.

        Example:
            >>> two = NeuronSharing.from_activated(sharing.activated()[:, :2], languages=["en", "de"])
            >>> moved = two.mismatched()
            >>> [torch.equal(moved.activated(language=one), two.activated(language=one)) for one in two.languages]
            [True, False]
        """
        n_languages = len(self.languages)
        if self.n_examples < n_languages:
            raise NeuronShareError(
                f"{self.n_examples} example(s) for {n_languages} languages; a different one in each language needs at "
                "least as many examples as languages."
            )
        if isinstance(seed, bool) or not isinstance(seed, Integral):
            raise NeuronShareError(f"seed={seed!r} is no whole number.")
        generator = torch.Generator().manual_seed(int(seed))
        offsets = torch.cat(
            [
                torch.zeros(1, dtype=torch.long, device="cpu"),
                1 + torch.randperm(self.n_examples - 1, generator=generator, device="cpu"),
            ]
        )
        places = rearrange(torch.arange(self.n_examples, device="cpu"), "example -> example 1") + offsets[:n_languages]
        return NeuronSharing(
            self._packed[places % self.n_examples, torch.arange(n_languages, device="cpu")],
            languages=self.languages,
            widths=self.widths,
            hooks=self.hooks,
            metadata={**self.metadata, "mismatched": offsets[:n_languages].tolist()},
        )

    def summary(self, *, mismatches: int = MISMATCHES, seed: int = 0) -> pd.DataFrame:
        """Percent of each layer's neurons that are of each type, over the examples, beside what chance would give.

        Args:
            mismatches: draws of mismatched examples; 0 saves their time.
            seed: of the first; the next ones count on from it.

        Returns:
            A table with a row for each layer and type: layer, type, mean, std, min, max over the examples (the standard
            deviation is the population's), and two chance levels. `independent`: the mean share if each language's
            activated neurons were drawn at random, as many as there are (`chance.independent_types`). `mismatched`: the
            mean share when each language shows a different example (see the method of that name); NaN where there are
            fewer examples than languages.

        Raises:
            NeuronShareError: no number of draws, or no seed.

        Source: the paper's "patterns by layer"; chance levels are ours.

        Example:
            >>> sharing.summary().query("type == 'all-shared' and layer == 3")[["mean", "independent"]].round(1)
                mean  independent
            12   4.4          0.0
        """
        if isinstance(mismatches, bool) or not isinstance(mismatches, Integral) or mismatches < 0:
            raise NeuronShareError(f"mismatches={mismatches!r} is no number of draws; give 0 or more.")
        percent = self._percent_of_types()
        independent = 100 * independent_types(self._percent_by_language() / 100).mean(1)
        mismatched = torch.full_like(independent, torch.nan)
        if mismatches and self.n_examples >= len(self.languages):
            draws = [self.mismatched(seed=seed + draw)._percent_of_types().mean(1) for draw in range(mismatches)]
            mismatched = torch.stack(draws).mean(0)
        return pd.DataFrame(
            {
                "layer": layer,
                "type": type.label,
                **_statistics(percent[type, :, layer]),
                "independent": independent[type, layer].item(),
                "mismatched": mismatched[type, layer].item(),
            }
            for layer in range(self.n_layers)
            for type in TYPES
        )

    def by_language(self) -> pd.DataFrame:
        """Percent of each layer's neurons that each language activates: mean, std, min and max over the examples."""
        percent = self._percent_by_language()
        return pd.DataFrame(
            {"layer": layer, "language": language, **_statistics(percent[:, index, layer])}
            for layer in range(self.n_layers)
            for index, language in enumerate(self.languages)
        )

    def persistence(self) -> pd.DataFrame:
        """Percent of each layer's neurons that are of a type for *every* example, beside the average over examples.

        The more examples, the fewer neurons can be of one type in all: compare results of as many. `chance` is the
        percent if each example drew its neurons of the type at random, as many as there are.

        Source: the paper's "persistence across inputs".

        Example:
            >>> list(sharing.persistence().columns)
            ['layer', 'type', 'average', 'every', 'chance']
        """
        shares, always = [], torch.ones(len(TYPES), self.n_layers, self.d_mlp, dtype=torch.bool, device="cpu")
        for of_type in self._masks():
            shares.append(self._percent(of_type))
            always &= of_type.all(1)
        percent, every = torch.cat(shares, dim=1), self._percent(always)
        average, chance = percent.mean(1), 100 * (percent / 100).prod(1)
        return pd.DataFrame(
            {
                "layer": layer,
                "type": type.label,
                "average": average[type, layer].item(),
                "every": every[type, layer].item(),
                "chance": chance[type, layer].item(),
            }
            for layer in range(self.n_layers)
            for type in TYPES
        )

    def never_activated(self) -> pd.DataFrame:
        """Percent of each layer's neurons that are not activated, in each language and in none of them ("all").

        With a result of `categorise(position="any")` these are the neurons that no token of the prompt activates.

        Returns:
            A table with a row for each layer and language: layer, language, mean, std, min, max over the examples, and
            `every`, the percent that no example activates.

        Source: the paper's "across tokens".

        Example:
            >>> in_english, in_german = [True, True, False], [True, False, False]
            >>> toy = NeuronSharing.from_activated(torch.tensor([[[in_english], [in_german]]]), languages=["en", "de"])
            >>> toy.never_activated()[["language", "mean", "every"]].round(1)
              language  mean  every
            0       en  33.3   33.3
            1       de  66.7   66.7
            2      all  33.3   33.3
        """
        percent, ever = (
            [],
            torch.zeros(len(self.languages) + 1, self.n_layers, self.d_mlp, dtype=torch.bool, device="cpu"),
        )
        for activated in self._chunks():
            with_all = torch.cat([activated, activated.any(1, keepdim=True)], dim=1)
            percent.append(self._percent(~with_all & self.is_neuron))
            ever |= with_all.any(0)
        over_examples, every = torch.cat(percent), self._percent(~ever & self.is_neuron)
        return pd.DataFrame(
            {
                "layer": layer,
                "language": language,
                **_statistics(over_examples[:, index, layer]),
                "every": every[index, layer].item(),
            }
            for layer in range(self.n_layers)
            for index, language in enumerate((*self.languages, "all"))
        )

    def intersections(self) -> Int[Tensor, "example layer language language"]:
        """How many neurons two languages both activate; on the diagonal how many each activates.

        Example:
            >>> in_english, in_german = [True, True, False], [True, False, False]
            >>> toy = NeuronSharing.from_activated(torch.tensor([[[in_english], [in_german]]]), languages=["en", "de"])
            >>> toy.intersections()[0, 0]
            tensor([[2, 1],
                    [1, 1]])
        """
        return self._intersections(range(self.n_layers))

    def _intersections(self, layers: Iterable[int]) -> Int[Tensor, "example layer language language"]:
        """The same for some layers."""
        counts = []
        for activated in self._chunks():
            of_layers = []
            for layer in layers:  # one at a time: as floats they take four times the bytes
                chosen = activated[:, :, layer].float()
                of_layers.append(einsum(chosen, chosen, "example a neuron, example b neuron -> example a b"))
            counts.append(torch.stack(of_layers, dim=1).long())
        return torch.cat(counts)

    def overlap(self, layer: int | None = None) -> pd.DataFrame:
        """How far two languages activate the same neurons: the mean over examples of the Jaccard index, 0 to 1.

        The index of an example is |A and B| / |A or B|, A and B the neurons that either language activates
        in `layer`, or in all layers together. Examples in which neither activates any are left out; where none
        is left, it is NaN. `language_overlap` has all layers, with intervals and chance levels.

        Raises:
            NeuronShareError: there is no such layer.

        Example:
            >>> sharing.overlap().loc["de", "de"]
            np.float64(1.0)
        """
        if not (
            layer is None
            or (isinstance(layer, Integral) and not isinstance(layer, bool) and 0 <= layer < self.n_layers)
        ):
            raise NeuronShareError(f"There is no layer {layer!r}; use 0 to {self.n_layers - 1}, or None for all.")
        layers = range(self.n_layers) if layer is None else [layer]
        both = self._intersections(layers).sum(1).double()
        sizes = torch.diagonal(both, dim1=-2, dim2=-1)
        indices = jaccard(both, sizes[:, :, None], sizes[:, None])
        names = pd.Index(self.languages, name="language")
        return pd.DataFrame(indices.nanmean(0).numpy(), index=names, columns=names)

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, with the metadata in its header.

        Raises:
            NeuronShareError: there is no such directory, or the metadata holds what JSON cannot say.
        """
        if not Path(path).parent.is_dir():
            raise NeuronShareError(f"There is no directory {str(Path(path).parent)!r}; make it first.")
        if Path(path).is_dir():
            raise NeuronShareError(f"{str(path)!r} is a directory; name a file in it.")
        header = {
            "languages": self.languages,
            "widths": self.widths,
            "hooks": self.hooks,
            "metadata": self.metadata,
            "prompt_hashes": self.prompt_hashes,
        }
        try:
            texts = {"format": _FORMAT, **{key: json.dumps(value) for key, value in header.items()}}
        except TypeError as error:
            raise NeuronShareError(
                f"The metadata cannot be saved: {error}. Keep to text, numbers and lists."
            ) from error
        write_tensors({"packed": self._packed.contiguous()}, path, texts)

    @classmethod
    def load(cls, path: str | Path) -> NeuronSharing:
        """Read what `save` wrote.

        Raises:
            NeuronShareError: no such file, or not such a file, or a damaged one.
        """
        if not Path(path).is_file():
            raise NeuronShareError(f"There is no file {str(path)!r}; save a result there first, or check the path.")
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.pop("format", None) != _FORMAT:
                    raise NeuronShareError(
                        f"{str(path)!r} holds no NeuronSharing ({_FORMAT}); give one that save wrote."
                    )
                return cls(file.get_tensor("packed"), **{key: json.loads(value) for key, value in header.items()})
        except (SafetensorError, OSError, json.JSONDecodeError, TypeError) as error:
            raise NeuronShareError(
                f"{str(path)!r} cannot be read ({error}); it is damaged or no safetensors file."
            ) from error

    def _rows(self, examples: slice) -> UInt8[Tensor, "example language layer byte"]:
        """The packed activations of some examples; torch itself does not count backwards."""
        if not isinstance(examples, slice):
            raise NeuronShareError(f"{examples!r} selects no examples; use a slice, such as sharing[3:4].")
        if not range(self.n_examples)[examples]:
            raise NeuronShareError(f"{examples!r} selects none of the {self.n_examples} examples.")
        backwards = examples.step is not None and examples.step < 0
        return self._packed[list(range(self.n_examples)[examples])] if backwards else self._packed[examples]

    def _chunks(self) -> Iterator[Bool[Tensor, "example language layer neuron"]]:
        """All activations, unpacked some examples at a time."""
        bytes_per_example = 8 * self._packed[0].numel()
        step = max(1, _CHUNK_BYTES // bytes_per_example)
        for start in range(0, self.n_examples, step):
            yield self.activated(slice(start, start + step))

    def _percent_of_types(self) -> Float[Tensor, "type example layer"]:
        """Percent of each layer's neurons that are of each type, in the order of NeuronType."""
        return torch.cat([self._percent(of_type) for of_type in self._masks()], dim=1)

    def _masks(self) -> Iterator[Bool[Tensor, "type example layer neuron"]]:
        """Which neurons are of each type, in the order of NeuronType, some examples at a time."""
        for activated in self._chunks():
            types = neuron_types(activated)
            yield torch.stack([(types == type) & self.is_neuron for type in NeuronType])

    def _percent_by_language(self) -> Float[Tensor, "example language layer"]:
        """Percent of each layer's neurons that each language activates."""
        return torch.cat([self._percent(activated) for activated in self._chunks()])

    @property
    def is_neuron(self) -> Bool[Tensor, "layer neuron"]:
        """Whether each place is a neuron; False where a layer is narrower than the widest."""
        return torch.arange(self.d_mlp, device="cpu") < rearrange(
            torch.tensor(self.widths, device="cpu"), "layer -> layer 1"
        )

    def _percent(self, chosen: Bool[Tensor, "*batch layer neuron"]) -> Float[Tensor, "*batch layer"]:
        """Percent of each layer's own neurons."""
        return 100 * chosen.sum(-1).double() / torch.tensor(self.widths, device="cpu")


def as_type(type: NeuronType | str) -> NeuronType:
    """The NeuronType of this label or number.

    Raises:
        NeuronShareError: an unknown type.
    """
    for known in NeuronType:
        if type in (known, known.label):
            return known
    raise NeuronShareError(f"{type!r} is no type of neuron; use one of {', '.join(known.label for known in TYPES)}.")


def _statistics(values: Float[Tensor, " example"]) -> dict[str, float]:
    return {
        "mean": values.mean().item(),
        "std": values.std(correction=0).item(),
        "min": values.min().item(),
        "max": values.max().item(),
    }


def refuse_all(languages: Sequence[str]) -> None:
    """Refuse a language of the name that stands for all of them."""
    if "all" in languages:
        raise NeuronShareError("A language is called 'all', which means all of them in tables; name it otherwise.")


def first_differing(prompts: ParallelPrompts, sharing: NeuronSharing) -> int | None:
    """The first example whose prompts are not those of the types, where these know their prompts."""
    if sharing.prompt_hashes is None:
        return None
    pairs = zip(sharing.prompt_hashes, hashes_of(prompts), strict=False)
    return next((i for i, (theirs, ours) in enumerate(pairs) if not are_of(theirs, ours)), None)


def fingerprint(weights: str, prompt_hashes: Sequence[str] | None) -> str:
    """What identifies a result's weights and prompts, in this order; prompts that are not known are `unknown`.

    Example:
        >>> fingerprint("0123456789abcdef", None)
        '0123456789abcdef-unknown'
    """
    return f"{weights}-{'unknown' if prompt_hashes is None else short_hash(''.join(prompt_hashes))}"


def first_difference(result: NeuronSharing, other: NeuronSharing) -> tuple[str, object, object] | None:
    """What two results measured otherwise, the one and the other; None where their examples can stand in one."""
    for what in ("languages", "widths", "hooks"):
        if getattr(result, what) != getattr(other, what):
            return what, getattr(result, what), getattr(other, what)
    ours, theirs = _measured(result.metadata), _measured(other.metadata)
    for what in ours:
        if ours[what] != theirs[what] and not (what == "prepend_bos" and None in (ours[what], theirs[what])):
            return what, ours[what], theirs[what]
    return None


def _measured(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for examples to stand in one result."""
    weights = str(metadata.get("fingerprint", "")).split("-")[0]
    return {**{key: metadata.get(key) for key in _MEASURED}, "fingerprint of the weights": weights}


def _merged(metadata: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> dict[str, Any]:
    """Metadata of concatenated results: what all say alike, the mean of shares, else a list of what they say."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in metadata for key in one):
        said: list[Any] = [one.get(key) for one in metadata]
        if key == "fingerprint" or all(value == said[0] for value in said):
            merged[key] = said[0]  # of the fingerprint the prompts' half is made anew
        elif key in _SHARES and None not in said:
            merged[key] = sum(share * size for share, size in zip(said, sizes, strict=True)) / sum(sizes)
        else:
            merged[key] = said
    return merged

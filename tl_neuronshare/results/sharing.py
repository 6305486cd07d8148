"""Which neurons each example activates in each language, one bit each: the container of what was measured."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import mapping, names_of, numbers_of, path_of, refuse_language_all, selected, sizes_of, whole
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import (
    Number,
    absolute,
    as_threshold,
    neurons_of,
    pack,
    packed_width,
    unpack,
    widened,
)
from tl_neuronshare.prompts import PromptHashes, Selection
from tl_neuronshare.results import routing as routings
from tl_neuronshare.results import tables
from tl_neuronshare.results.bits import Bits, joined, rows_at
from tl_neuronshare.results.files import Stream, read_tensors, write_tensors
from tl_neuronshare.results.hub import OnHub
from tl_neuronshare.results.identity import fingerprint, first_difference, merged_metadata, weights_of
from tl_neuronshare.results.routing import Experts, Routing
from tl_neuronshare.results.types import NeuronType, as_type, packed_types

_SHOWN = 200  # the most examples of which a notebook shows a table, so that it appears at once
FILE = "sharing.safetensors"  # the name of the result in a folder that `categorise` writes
_KIND, _OLDER = "tl_neuronshare.NeuronSharing/2", "tl_neuronshare.NeuronSharing/1"
_NO_NEURON = 255  # fills the types of layers that are narrower than the widest


class NeuronSharing(OnHub):
    """Keep which neurons each example activates in each language, and give their types and tables of them.

    One bit is kept for each neuron, language and example; `types`, `mask` and `activated` are made anew from
    the bits at each call. `categorise`, `load` and `from_activated` make such a result.

    Attributes:
        languages: the languages, in the order of `activated`.
        widths: how many neurons each layer has.
        hooks: the hook that was read for each layer.
        bits: the bits, eight neurons to a byte; they may lie in a file.
        metadata: where the result comes from: model, site, position, threshold, versions, fingerprint. What it says of
            the run (batches, borderline_fraction ...) describes the whole run, even when examples are selected.
        prompt_hashes: hashes of each example's prompts, a text an example, or None where they are not known.
        routing: in a mixture of experts, which experts each example is routed to; otherwise None.

    Examples:
        >>> in_english, in_german = [True, True, False], [True, False, False]
        >>> activated = torch.tensor([[[in_english], [in_german]]])  # one example, one layer
        >>> sharing = NeuronSharing.from_activated(activated, languages=["en", "de"])
        >>> sharing
        NeuronSharing(1 examples x 2 languages (en, de), 1 layers of 3 neurons)
        >>> sharing.mask("all-shared")
        tensor([[[ True, False, False]]])
    """

    @explains
    def __init__(
        self,
        packed: UInt8[Tensor, "example language layer byte"] | Bits,
        *,
        languages: Sequence[str],
        widths: Sequence[int],
        hooks: Sequence[str],
        metadata: Mapping[str, Any],
        prompt_hashes: Sequence[str] | None = None,
        routing: Routing | None = None,
    ) -> None:
        self.bits = packed if isinstance(packed, Bits) else Bits(packed)
        hashes = None if prompt_hashes is None else PromptHashes.of(prompt_hashes)
        stored = self.bits.stored
        _check_sizes(stored, languages, widths, hooks, hashes)
        if routing is not None and routing.bits.stored.shape[:3] != stored.shape[:3]:
            raise NeuronShareError(
                f"The routing is of shape {tuple(routing.bits.stored.shape)}, the packed activations "
                f"{tuple(stored.shape)}; give that of the same examples, languages and layers."
            )
        self.routing = routing
        self.languages, self.widths, self.hooks = tuple(languages), tuple(widths), tuple(hooks)
        self.prompt_hashes = hashes
        self.metadata = copy.deepcopy(mapping("metadata", metadata))
        if "fingerprint" in self.metadata:
            self.metadata["fingerprint"] = fingerprint(weights_of(self.metadata), self.prompt_hashes)

    @classmethod
    @explains
    def from_activated(
        cls,
        activated: Bool[Tensor, "example language layer neuron"],
        *,
        languages: Sequence[str],
        widths: Sequence[int] | None = None,
        hooks: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> NeuronSharing:
        """Make a result from a boolean tensor of your own.

        Args:
            activated: whether each neuron is activated; False where a layer is narrower than the widest.
            languages: the languages, in the order of the tensor.
            widths: how many neurons each layer has; by default as many as the tensor's last axis.
            hooks: where each layer was read; `blocks.N.mlp.hook_post` by default.
            metadata: whatever should be saved with it.

        Raises:
            NeuronShareError: a neuron beyond its layer's width is activated, or sizes do not fit.
        """
        if not isinstance(activated, Tensor) or activated.dtype != torch.bool or activated.ndim != 4:
            raise NeuronShareError(
                "activated is not a boolean tensor with axes example, language, layer, neuron; give one, such as "
                "values > 0."
            )
        n_layers, width = activated.shape[-2:]
        widths = [width] * n_layers if widths is None else sizes_of("widths", widths)
        if max(widths, default=0) != width:
            raise NeuronShareError(
                f"The widest layer of {tuple(widths)} does not have the tensor's {width} neurons; give the true widths."
            )
        sharing = cls(
            pack(activated),
            languages=languages,
            widths=widths,
            hooks=[f"blocks.{layer}.mlp.hook_post" for layer in range(n_layers)] if hooks is None else hooks,
            metadata=mapping("metadata", metadata),
        )
        if (activated & ~sharing.is_neuron).any():
            raise NeuronShareError(
                f"Neurons beyond the widths {sharing.widths} are activated; set them to False, or give the true widths."
            )
        return sharing

    @classmethod
    @explains
    def from_values(
        cls,
        values: Mapping[str, Float[Tensor, "example layer neuron"]],
        *,
        threshold: Number | str = 0.0,
        widths: Sequence[int] | None = None,
        hooks: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> NeuronSharing:
        """Make a result from neurons' values that any other tool has read, such as nnsight.

        Args:
            values: for each language the values at the one token that you choose; row i is example i in every language.
            threshold: a neuron is activated if its value is above this number, or above this quantile, such as "90%",
                of its layer's values.
            widths: how many neurons each layer has; by default as many as the tensors' last axis.
            hooks: where each layer was read; `blocks.N.mlp.hook_post` by default.
            metadata: whatever should be saved with it, beside the threshold.

        Raises:
            NeuronShareError: fewer than two languages, tensors of different shapes, or values that are NaN or infinite.

        Examples:
            >>> values = {"en": torch.tensor([[[0.5, -1.0, 2.0]]]), "de": torch.tensor([[[0.1, 3.0, -2.0]]])}
            >>> NeuronSharing.from_values(values).mask("all-shared")
            tensor([[[ True, False, False]]])
        """
        threshold = as_threshold("threshold", threshold)
        shape = _shape_of_values(values)
        widths = [shape[-1]] * shape[-2] if widths is None else sizes_of("widths", widths)
        activated = torch.zeros((shape[0], len(values), *shape[1:]), dtype=torch.bool, device="cpu")
        for number, (language, of_language) in enumerate(values.items()):
            for layer, width in enumerate(widths[: shape[-2]]):
                of_layer = widened(of_language.detach()[:, layer, :width]).cpu()
                is_finite = of_layer.isfinite().all(-1)
                if not is_finite.all():
                    raise NeuronShareError(
                        f"Language {language!r}, example {int((~is_finite).int().argmax())}: NaN or infinite values in "
                        f"layer {layer}; leave out the example, or read it in float32."
                    )
                activated[:, number, layer, :width] = of_layer > absolute(of_layer, threshold)
        return cls.from_activated(
            activated,
            languages=list(values),
            widths=widths,
            hooks=hooks,
            metadata={**mapping("metadata", metadata), "threshold": threshold},
        )

    @classmethod
    @explains
    def concatenate(cls, results: Sequence[NeuronSharing]) -> NeuronSharing:
        """Join the examples of several results, one result after the other, if all measured the same.

        Metadata that differs between them (batches, device ...) becomes a list, and the borderline fraction their mean.

        Raises:
            NeuronShareError: no result, or results that differ in languages, layers, site, position, threshold, tokens
                or weights.

        Examples:
            >>> NeuronSharing.concatenate([sharing[2:], sharing[:2]]).n_examples == sharing.n_examples
            True
        """
        _check_same_measure(results)
        hashes = [result.prompt_hashes for result in results]
        known = [of_result.numbers for of_result in hashes if of_result is not None]
        return results[0]._like(
            joined([result.bits for result in results]),
            routing=_joined([result.routing for result in results]),
            metadata=merged_metadata(results),
            prompt_hashes=PromptHashes(torch.cat(known)) if len(known) == len(results) else None,
        )

    def _like(
        self,
        packed: UInt8[Tensor, "example language layer byte"] | Bits,
        *,
        routing: Routing | None,
        metadata: Mapping[str, Any],
        prompt_hashes: Sequence[str] | None,
    ) -> NeuronSharing:
        """Other examples in the same languages and layers."""
        return NeuronSharing(
            packed,
            languages=self.languages,
            widths=self.widths,
            hooks=self.hooks,
            metadata=metadata,
            prompt_hashes=prompt_hashes,
            routing=routing,
        )

    @property
    def packed(self) -> UInt8[Tensor, "example language layer byte"]:
        """The bits of all examples, eight neurons to a byte."""
        return self.bits.whole

    @property
    def n_examples(self) -> int:
        """The number of examples."""
        return len(self.bits)

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        return len(self.widths)

    @property
    def d_mlp(self) -> int:
        """The number of neurons of the widest layer."""
        return max(self.widths)

    def __len__(self) -> int:
        return self.n_examples

    def __getitem__(self, examples: Selection) -> NeuronSharing:
        """Select examples by a slice, a list of numbers, or one boolean for each example.

        A slice that goes forward shares its bits with the whole; other selections copy them.
        """
        hashes, places = self.prompt_hashes, selected("sharing", self.n_examples, examples)
        return self._like(
            self.bits.at(places),
            routing=None if self.routing is None else self.routing.at(places),
            metadata=self.metadata,
            prompt_hashes=None if hashes is None else PromptHashes(rows_at(hashes.numbers, places)),
        )

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same activations of the same neurons and languages, in the same order."""
        return (
            isinstance(other, NeuronSharing)
            and (self.languages, self.widths, self.hooks) == (other.languages, other.widths, other.hooks)
            and self.bits == other.bits
            and self.routing == other.routing
        )

    __hash__ = None  # type: ignore[assignment]  # compared by content, like a tensor's values

    def __repr__(self) -> str:
        widths = "/".join(map(str, sorted(set(self.widths))))
        return (
            f"NeuronSharing({self.n_examples} examples x {len(self.languages)} languages "
            f"({', '.join(self.languages)}), {self.n_layers} layers of {widths} neurons)"
        )

    def _repr_html_(self) -> str:
        how = [
            f"{key}: {self.metadata[key]}" for key in ("model", "site", "position", "threshold") if key in self.metadata
        ]
        shown = self[:_SHOWN]
        how += [f"the first {_SHOWN} examples"] if self.n_examples > _SHOWN else []
        table = shown.summary(mismatches=1).groupby("type", sort=False)[["mean", "mismatched", "independent"]].mean()
        table.columns = ["% of a layer", "with different examples", "if independent"]
        html = table.to_html(float_format="{:.1f}".format, border=0, na_rep="")
        return f"<p>{escape(repr(self))}<br>{escape(', '.join(how))}</p>{html}"

    @explains
    def activated(
        self, examples: Selection = slice(None), *, language: str | None = None
    ) -> Bool[Tensor, "example language layer neuron"]:
        """Unpack whether each neuron is activated; False where a layer is narrower than the widest.

        Args:
            examples: which to unpack: a slice, a list of numbers, or one boolean for each example.
            language: only this one, on an axis of size 1; all by default.

        Raises:
            NeuronShareError: no such example or language.
        """
        bits = self.bits.at(selected("sharing", self.n_examples, examples))
        if language is not None:
            if language not in self.languages:
                raise NeuronShareError(f"There is no language {language!r}; use one of {', '.join(self.languages)}.")
            bits = bits[:, [self.languages.index(language)]]
        return unpack(bits, self.d_mlp) & self.is_neuron

    @explains
    def computed(self) -> Iterator[Bool[Tensor, "example language layer neuron"]]:
        """Say which neurons are computed, some examples at a time; all without experts."""
        for examples in self.bits.slices():
            if self.routing is None:
                yield self.is_neuron.expand(len(examples), len(self.languages), -1, -1)
            else:
                yield self.routing.neurons(self.widths, slice(examples.start, examples.stop))

    @property
    def is_neuron(self) -> Bool[Tensor, "layer neuron"]:
        """Whether each place is a neuron; False where a layer is narrower than the widest."""
        return neurons_of(self.widths)

    @property
    def packed_is_neuron(self) -> UInt8[Tensor, "layer byte"]:
        """Whether each place is a neuron, eight neurons to a byte."""
        return pack(self.is_neuron)

    @property
    def types(self) -> UInt8[Tensor, "example layer neuron"]:
        """Each neuron's type (a NeuronType's number); 255 where a layer is narrower than the widest."""
        return self.types_of(range(self.n_examples))

    @explains
    def types_of(self, examples: Sequence[int]) -> UInt8[Tensor, "example layer neuron"]:
        """Give what `types` gives, of some examples alone, by their numbers.

        Examples:
            >>> torch.equal(sharing.types_of([2, 0, 0]), sharing.types[[2, 0, 0]])
            True
        """
        examples = numbers_of("examples", examples, self.n_examples)
        types = torch.empty((len(examples), *self.is_neuron.shape), dtype=torch.uint8, device="cpu")
        for rows, of_types in self._types_of(examples):
            is_of = unpack(of_types, self.d_mlp).view(torch.uint8)
            types[rows] = sum(type * is_of[:, type] for type in NeuronType)
        return types.masked_fill_(~self.is_neuron, _NO_NEURON)

    @explains
    def mask(
        self, type: NeuronType | str, *, examples: Sequence[int] | None = None
    ) -> Bool[Tensor, "example layer neuron"]:
        """Say which neurons are of one type, given as a NeuronType or by its label.

        Args:
            type: the type.
            examples: the numbers of some examples; all by default.

        Raises:
            NeuronShareError: an unknown type.
        """
        type, every = as_type(type), range(self.n_examples)
        examples = every if examples is None else numbers_of("examples", examples, self.n_examples)
        mask = torch.empty((len(examples), *self.is_neuron.shape), dtype=torch.bool, device="cpu")
        for rows, of_types in self._types_of(examples):
            mask[rows] = unpack(of_types[:, type], self.d_mlp)
        return mask

    @explains
    def times_of_types(self) -> Int[Tensor, "type layer neuron"]:
        """Count for how many examples each neuron is of each type, in the order of NeuronType.

        Examples:
            >>> sharing.times_of_types().sum(0).unique()  # three examples
            tensor([3])
        """
        times = torch.zeros((len(NeuronType), *self.is_neuron.shape), dtype=torch.long, device="cpu")
        for _, of_types in self._types_of(range(self.n_examples)):
            times += unpack(of_types, self.d_mlp).sum(0)
        return times

    def _types_of(self, examples: Sequence[int]) -> Iterator[tuple[slice, UInt8[Tensor, "row type layer byte"]]]:
        """Some examples at a time, where they stand among all that are asked for, and the packed types."""
        for start in range(0, len(examples), step := self.bits.step):
            rows = slice(start, start + step)
            yield rows, packed_types(self.bits.at(examples[rows]), self.packed_is_neuron)

    @explains
    def mismatched(self, *, seed: int = 0) -> NeuronSharing:
        """Show a different example in each language, to see what is shared without shared meaning.

        Each language's examples are moved round by an offset of its own, so that every example of every language
        is used once, and no two languages of a new example show the same example. What is all-shared here is activated
        by whatever the examples have in common: their form, their task, or being text at all. Where examples are of
        several kinds, the kinds are mixed; to keep them apart, mismatch each kind's examples alone. No bits are copied.

        Args:
            seed: the seed of the offsets.

        Raises:
            NeuronShareError: fewer examples than languages, or a seed that is not a whole number.

        Examples:
            >>> two = NeuronSharing.from_activated(sharing.activated()[:, :2], languages=["en", "de"])
            >>> moved = two.mismatched()
            >>> [torch.equal(moved.activated(language=name), two.activated(language=name)) for name in two.languages]
            [True, False]
        """
        offsets = _offsets(self.n_examples, len(self.languages), seed)
        return self._like(
            self.bits.moved(offsets),
            routing=None if self.routing is None else Routing(self.routing.bits.moved(offsets), self.routing.experts),
            metadata={**self.metadata, "mismatched": offsets},
            prompt_hashes=None,
        )

    @explains
    def summary(self, *, mismatches: int = tables.MISMATCHES, seed: int = 0) -> pd.DataFrame:
        """Tabulate how many of each layer's neurons are of each type, in percent, beside what chance would give.

        Args:
            mismatches: the number of draws of mismatched examples; 0 leaves this chance level out and saves its time.
            seed: the seed of the first draw; the next draws count on from it.

        Returns:
            A table with a row for each layer and type: layer, type, mean, std, min, max over the examples (the standard
            deviation is the population's), and two chance levels. `independent` is the mean share if each language's
            activated neurons were drawn at random, as many as there are (`chance.independent_types`). `mismatched` is
            the mean share when each language shows a different example (see the method of that name). `excess` is the
            mean minus that, in percent of the layer: what is shared because it is the same input. `excess_low` and
            `excess_high` are the ends of its 95 % interval over examples (`maths.excess`). These are NaN where there
            are fewer examples than languages, and the interval for fewer than ten examples or two draws.

            In a mixture of experts, a neuron can be activated only where its expert is used. There the table also has
            `of_routed`, the mean percent among the neurons whose expert at least one language is routed to, and
            `of_routed_in_all`, that among the neurons whose expert every language is routed to; NaN if there are never
            such neurons. What differs between languages in the latter is not due to routing.

        Raises:
            NeuronShareError: mismatches is not a number of draws, or seed is not a whole number.

        Source: the paper's "patterns by layer"; chance levels are ours.

        Examples:
            >>> sharing.summary().query("type == 'all-shared' and layer == 3")[["mean", "independent"]].round(1)
                mean  independent
            12   4.4          0.0
        """
        return tables.summary(self, mismatches=mismatches, seed=seed)

    @explains
    def by_language(self) -> pd.DataFrame:
        """Tabulate how many of each layer's neurons each language activates, in percent.

        Returns:
            A table with a row for each layer and language: layer, language, mean, std, min, max over the examples. In a
            mixture of experts also `of_routed`, the mean percent of the neurons that are computed, and `experts`, those
            that most examples are routed to, the most used first.
        """
        return tables.by_language(self)

    @explains
    def experts(self) -> pd.DataFrame:
        """Tabulate how many examples are routed to each expert of a mixture, in percent.

        Returns:
            A table with a row for each layer with experts, language and expert: layer, language, expert, percent.

        Raises:
            NeuronShareError: the model is not a mixture of experts.
        """
        return routings.table(self)

    @explains
    def persistence(self) -> pd.DataFrame:
        """Tabulate how many of each layer's neurons are of one type for *every* example, in percent.

        The more examples there are, the fewer neurons can be of one type in all of them, so compare only results with
        the same number of examples.

        Returns:
            A table with a row for each layer and type: layer, type, average (the mean over examples), every (the
            percent that is of the type for every example), and chance (what `every` would be if each example drew its
            neurons of the type at random, as many as there are).

        Source: the paper's "persistence across inputs".

        Examples:
            >>> list(sharing.persistence().columns)
            ['layer', 'type', 'average', 'every', 'chance']
        """
        return tables.persistence(self)

    @explains
    def never_activated(self) -> pd.DataFrame:
        """Tabulate how many of each layer's neurons a language does not activate, and how many no language activates.

        With a result of `categorise(position="any")` these are the neurons that no token of the prompt activates.

        Returns:
            A table of percents with a row for each layer and language: layer, language, mean, std, min, max over the
            examples, and `every`, the percent that no example activates. The rows of language "all" are the neurons
            that no language activates.

        Source: the paper's "across tokens".

        Examples:
            >>> in_english, in_german = [True, True, False], [True, False, False]
            >>> toy = NeuronSharing.from_activated(torch.tensor([[[in_english], [in_german]]]), languages=["en", "de"])
            >>> toy.never_activated()[["language", "mean", "every"]].round(1)
              language  mean  every
            0       en  33.3   33.3
            1       de  66.7   66.7
            2      all  33.3   33.3
        """
        return tables.never_activated(self)

    @explains
    def intersections(self) -> Int[Tensor, "example layer language language"]:
        """Count how many neurons two languages both activate; the diagonal says how many each activates.

        Examples:
            >>> in_english, in_german = [True, True, False], [True, False, False]
            >>> toy = NeuronSharing.from_activated(torch.tensor([[[in_english], [in_german]]]), languages=["en", "de"])
            >>> toy.intersections()[0, 0]
            tensor([[2, 1],
                    [1, 1]])
        """
        return tables.intersections(self)

    @explains
    def overlap(self, layer: int | None = None) -> pd.DataFrame:
        """Measure how far two languages activate the same neurons: the mean over examples of the Jaccard index.

        The index of an example is |A and B| / |A or B|, from 0 to 1, where A and B are the neurons that each language
        activates in `layer`, or in all layers together. An example in which neither language activates a neuron is left
        out; where no example is left, the index is NaN. `language_overlap` shows all layers, with intervals and chance
        levels.

        Raises:
            NeuronShareError: there is no such layer.

        Examples:
            >>> sharing.overlap().loc["de", "de"]
            np.float64(1.0)
        """
        return tables.overlap(self, layer)

    @explains
    def same_last_token(self) -> pd.DataFrame:
        """Say for which share of the examples the prompts of two languages end in the same token.

        Types at the last token are then of the same token in both languages, which makes them alike. Where this share
        differs between pairs of languages, so does what they share for this reason alone.

        Returns:
            A table of shares, from 0 to 1, with languages as index and columns.

        Raises:
            NeuronShareError: the last tokens are not known, because the result was not made by `categorise`.

        Examples:
            >>> sharing.same_last_token().loc["en", "th"]  # every prompt ends in an arrow
            np.float64(1.0)
        """
        shares = self.metadata.get("same_last_token")
        if shares is None:
            raise NeuronShareError("The last tokens are not known; make the result with categorise.")
        table = pd.DataFrame(1.0, index=self.languages, columns=self.languages)
        for first, of_first in shares.items():
            for second, share in of_first.items():
                table.loc[first, second] = table.loc[second, first] = share
        return table

    @explains
    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, with the metadata in its header.

        Raises:
            NeuronShareError: there is no such directory, or the metadata holds what JSON cannot say.
        """
        write_sharing(
            path,
            self.bits.stream(),
            languages=self.languages,
            widths=self.widths,
            hooks=self.hooks,
            metadata=self.metadata,
            prompt_hashes=self.prompt_hashes,
            routed=None if self.routing is None else self.routing.bits.stream(),
            experts=None if self.routing is None else self.routing.experts,
        )

    @classmethod
    @explains
    def load(cls, path: str | Path) -> NeuronSharing:
        """Open what `save` wrote, or `categorise` in a folder. The bits stay in the file until they are used.

        Args:
            path: the file, or a folder that has the result of one threshold.

        Raises:
            NeuronShareError: no such file, a file of another kind, a damaged one, or a folder with several thresholds.
        """
        path = path_of("path", path)
        if path.is_dir():
            path = _in_folder(path)

        def made(tensors: dict[str, Tensor], header: dict[str, Any]) -> NeuronSharing:
            experts: Experts | None = header.pop("experts", None)
            pairs = [None if each is None else (each[0], each[1]) for each in experts or ()]
            routing = None if experts is None else Routing(tensors["routed"], pairs)
            if "prompt_hashes" in tensors:  # files of the older kind have them in the header
                header["prompt_hashes"] = PromptHashes(tensors["prompt_hashes"])
            return cls(tensors["packed"], routing=routing, **header)

        return read_tensors(path, made, kind=_KIND, older=[_OLDER])


def write_sharing(
    path: str | Path,
    packed: UInt8[Tensor, "example language layer byte"] | Stream,
    *,
    languages: Sequence[str],
    widths: Sequence[int],
    hooks: Sequence[str],
    metadata: Mapping[str, Any],
    prompt_hashes: PromptHashes | Stream | None,
    routed: UInt8[Tensor, "example language layer byte"] | Stream | None = None,
    experts: Experts | None = None,
) -> None:
    """Write the file of a result, whose bits and hashes may be streams; see `NeuronSharing` for what the arguments are.

    Raises:
        NeuronShareError: as for `files.write_tensors`.
    """
    tensors: dict[str, Tensor | Stream] = {"packed": packed}
    header: dict[str, Any] = {"languages": languages, "widths": widths, "hooks": hooks, "metadata": metadata}
    if prompt_hashes is not None:
        tensors["prompt_hashes"] = prompt_hashes if isinstance(prompt_hashes, Stream) else prompt_hashes.numbers
    if routed is not None:
        tensors["routed"] = routed
        header["experts"] = experts
    write_tensors(tensors, path, kind=_KIND, header=header)


def _in_folder(folder: Path) -> Path:
    """The file of the one result that a folder has."""
    several = sorted(path.name for path in folder.glob("threshold-*.safetensors"))
    if several and not (folder / FILE).is_file():
        raise NeuronShareError(
            f"{str(folder)!r} has the results of several thresholds: {', '.join(several)}; load one of these files."
        )
    return folder / FILE


def _shape_of_values(values: Mapping[str, Tensor]) -> torch.Size:
    """The one shape that the values of all languages have."""
    if not isinstance(values, Mapping) or not values:
        raise NeuronShareError("values is not a mapping from language to tensor; give {'en': values, ...}.")
    shape = getattr(next(iter(values.values())), "shape", ())
    for language, of_language in values.items():
        if not isinstance(of_language, Tensor) or not of_language.is_floating_point() or of_language.ndim != 3:
            raise NeuronShareError(
                f"Language {language!r}: the values are not a tensor of real numbers with axes example, layer, neuron; "
                "give one, such as torch.stack(values_of_layers, dim=1)."
            )
        if of_language.shape != shape:
            raise NeuronShareError(
                f"Language {language!r}: values of shape {tuple(of_language.shape)}, in the first {tuple(shape)}; give "
                "the same examples, layers and neurons in every language."
            )
    return torch.Size(shape)


def _joined(routings: Sequence[Routing | None]) -> Routing | None:
    """The routing of the examples of several results, of which all have one or none has."""
    known = [routing for routing in routings if routing is not None]
    if not known:
        return None
    return Routing(joined([routing.bits for routing in known]), known[0].experts)


def _check_sizes(
    packed: Tensor,
    languages: Sequence[str],
    widths: Sequence[int],
    hooks: Sequence[str],
    hashes: PromptHashes | None,
) -> None:
    """Refuse bits, languages, widths, hooks and hashes that do not fit each other."""
    names_of("languages", languages)
    names_of("hooks", hooks)
    sizes_of("widths", widths)
    expected = (len(packed), len(languages), len(widths), packed_width(max(widths, default=0)))
    if tuple(packed.shape) != expected or packed.dtype != torch.uint8 or len(hooks) != len(widths):
        raise NeuronShareError(
            f"The packed activations are {packed.dtype} of shape {tuple(packed.shape)}, with {len(hooks)} hooks; "
            f"{len(languages)} languages and {len(widths)} layers of {max(widths, default=0)} neurons need "
            f"torch.uint8 of shape {expected}."
        )
    if len(languages) < 2 or len(packed) == 0 or not widths:
        raise NeuronShareError(
            f"Packed activations of shape {tuple(packed.shape)} share nothing; give at least one example, two "
            "languages and one layer."
        )
    refuse_language_all(languages)
    if len(set(languages)) < len(languages):
        raise NeuronShareError(f"The languages {', '.join(languages)} are not all different; name each once.")
    if hashes is not None and tuple(hashes.numbers.shape) != (len(packed), len(languages)):
        raise NeuronShareError(
            f"prompt_hashes have shape {tuple(hashes.numbers.shape)} for {len(packed)} examples in {len(languages)} "
            "languages; give one hash for each."
        )


def _check_same_measure(results: Sequence[NeuronSharing]) -> None:
    """Refuse results that cannot be joined."""
    if isinstance(results, Mapping | NeuronSharing) or not all(isinstance(each, NeuronSharing) for each in results):
        raise NeuronShareError(
            "results is not a list of NeuronSharing; with several thresholds, concatenate those of each threshold."
        )
    if not results:
        raise NeuronShareError("There is no result to concatenate; give at least one.")
    for number, other in enumerate(results[1:], start=1):
        difference = first_difference(results[0], other)
        if difference is not None:
            what, ours, theirs = difference
            raise NeuronShareError(
                f"Result {number} has {what} {theirs!r}, result 0 {ours!r}; concatenate results that measured the "
                "same, or compare their tables."
            )


def _offsets(n_examples: int, n_languages: int, seed: int) -> list[int]:
    """Draw by how many examples each language is moved round: the first by none, and no two by as many."""
    if n_examples < n_languages:
        raise NeuronShareError(
            f"{n_examples} example(s) for {n_languages} languages; a different one in each language needs at least as "
            "many examples as languages."
        )
    generator = torch.Generator().manual_seed(whole("seed", seed))
    others = 1 + torch.randperm(n_examples - 1, generator=generator, device="cpu")
    return [0, *others[: n_languages - 1].tolist()]

"""How often each neuron is activated over the tokens of each language, and what such counts add up to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import distinct, mapping, measured_layers, names_of, refuse_language_all, sizes_of
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import neurons_of
from tl_neuronshare.results.files import read_tensors, write_tensors
from tl_neuronshare.results.hub import OnHub
from tl_neuronshare.results.identity import weights_of
from tl_neuronshare.results.routing import Experts

_KIND = "tl_neuronshare.rates/1"
# Counts that differ in one of these count different things.
_MEASURED = ("site", "threshold", "prepend_bos", "special_tokens_left_out", "weights", "dtype", "counted")


class NeuronRates(OnHub):
    """Hold how many tokens of each language activate each neuron, and how many tokens there are.

    Counts of other texts of the same model add up: `rates + more`, or `sum(parts)`, also where the parts are of
    different languages.

    Args:
        counts: how many tokens activate each neuron; 0 where a layer is narrower than the widest.
        tokens: how many tokens each language has.
        languages: the names of the languages.
        widths: how many neurons each layer has.
        hooks: the names of the layers' hook points; none if they are not known.
        experts: for each layer, how many routed experts it has and how many neurons each of them; None where it has
            none. Without it no layer has experts.
        n_measured: how many of the layers are measured, counted from the first; all by default. In an encoder-decoder
            those of the decoder are not.
        metadata: how the counts were made.

    Raises:
        NeuronShareError: the arguments do not fit each other, or a count is beyond the number of tokens.

    Examples:
        >>> rates = NeuronRates(torch.tensor([[[3, 1]], [[0, 2]]]), [4, 2], languages=["en", "de"], widths=[2])
        >>> rates.rates
        tensor([[[0.7500, 0.2500]],
        <BLANKLINE>
                [[0.0000, 1.0000]]], dtype=torch.float64)
        >>> (rates + rates.select(["de"])).tokens
        tensor([4, 4])
    """

    @explains
    def __init__(
        self,
        counts: Int[Tensor, "language layer neuron"],
        tokens: Int[Tensor, " language"] | Sequence[int],
        *,
        languages: Sequence[str],
        widths: Sequence[int],
        hooks: Sequence[str] = (),
        experts: Experts | None = None,
        n_measured: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(tokens, Tensor | Sequence) or isinstance(tokens, str | bytes):
            raise NeuronShareError(f"tokens is a {type(tokens).__name__}; give a number for each language.")
        counts, tokens = torch.as_tensor(counts, device="cpu"), torch.as_tensor(tokens, device="cpu")
        if counts.is_floating_point() or tokens.is_floating_point():
            raise NeuronShareError(f"The counts are {counts.dtype} and the tokens {tokens.dtype}; give whole numbers.")
        self.counts, self.tokens = counts.long(), tokens.long()
        self.languages, self.hooks = names_of("languages", languages), names_of("hooks", hooks)
        self.widths = tuple(sizes_of("widths", widths))
        self.experts: Experts = tuple(experts) if experts is not None else (None,) * len(self.widths)
        self.n_measured = measured_layers(n_measured, len(self.widths))
        self.metadata = mapping("metadata", metadata)
        self._check()

    def _check(self) -> None:
        """Refuse what does not fit together."""
        refuse_language_all(self.languages)
        distinct("languages", self.languages, what="names of languages")
        expected = (len(self.languages), len(self.widths), max(self.widths, default=0))
        if tuple(self.counts.shape) != expected or tuple(self.tokens.shape) != expected[:1]:
            raise NeuronShareError(
                f"The counts have shape {tuple(self.counts.shape)} and the tokens {tuple(self.tokens.shape)}; "
                f"{expected[0]} languages and {expected[1]} layers of at most {expected[2]} neurons need {expected} "
                f"and {expected[:1]}."
            )
        for number, language in enumerate(self.languages):
            if not self.tokens[number] > 0:
                raise NeuronShareError(f"Language {language!r} has no token; give it some text.")
            counts = self.counts[number]
            if counts.min() < 0 or counts.max() > self.tokens[number]:
                raise NeuronShareError(
                    f"Language {language!r}: a neuron has {int(counts.max())} activated tokens of "
                    f"{int(self.tokens[number])}; counts are from 0 to the number of tokens."
                )
        if self.counts[:, ~self.is_neuron].any():
            raise NeuronShareError("There are counts beyond the width of a layer, or in one that is not measured.")

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        return len(self.widths)

    @property
    def d_mlp(self) -> int:
        """The number of neurons of the widest layer."""
        return max(self.widths)

    @property
    def is_neuron(self) -> Bool[Tensor, "layer neuron"]:
        """Whether each place is a neuron that is measured."""
        return neurons_of(self.widths, self.n_measured)

    @property
    def rates(self) -> Float[Tensor, "language layer neuron"]:
        """The share of each language's tokens that activate each neuron; NaN where no neuron is measured."""
        rates = self.counts.double() / self.tokens[:, None, None]
        return rates.masked_fill(~self.is_neuron, torch.nan)

    @explains
    def select(self, languages: Sequence[str]) -> NeuronRates:
        """Keep only these languages, in this order.

        Raises:
            NeuronShareError: a language is unknown or appears twice.
        """
        chosen = distinct("languages", languages, known=self.languages)
        places = [self.languages.index(language) for language in chosen]
        texts = self.metadata.get("texts")
        metadata = self.metadata | ({} if texts is None else {"texts": {each: texts[each] for each in chosen}})
        return self._like(self.counts[places], self.tokens[places], chosen, metadata)

    def _like(
        self, counts: Tensor, tokens: Tensor, languages: Sequence[str], metadata: Mapping[str, Any]
    ) -> NeuronRates:
        """Other counts of the same neurons."""
        return NeuronRates(
            counts,
            tokens,
            languages=languages,
            widths=self.widths,
            hooks=self.hooks,
            experts=self.experts,
            n_measured=self.n_measured,
            metadata=metadata,
        )

    def __add__(self, other: NeuronRates) -> NeuronRates:
        """Add the counts of other texts, in the same languages or in others.

        Raises:
            NeuronShareError: the counts are of different weights, layers or options, or of the same texts.
        """
        if not isinstance(other, NeuronRates):
            return NotImplemented
        _require_same_measure(self, other)
        languages = [*self.languages, *(each for each in other.languages if each not in self.languages)]
        shape = (len(languages), self.n_layers, self.d_mlp)
        counts = torch.zeros(shape, dtype=torch.int64, device="cpu")
        tokens = torch.zeros(len(languages), dtype=torch.int64, device="cpu")
        for part in (self, other):
            places = [languages.index(language) for language in part.languages]
            counts[places] += part.counts
            tokens[places] += part.tokens
        return self._like(counts, tokens, languages, self.metadata | {"texts": _texts_of(self, other)})

    def __radd__(self, other: object) -> NeuronRates:
        """Let `sum` begin with 0."""
        return self if other == 0 else NotImplemented

    def __eq__(self, other: object) -> bool:
        """Return whether both hold the same counts of the same neurons and languages, in the same order."""
        return (
            isinstance(other, NeuronRates)
            and (self.languages, self.widths, self.hooks) == (other.languages, other.widths, other.hooks)
            and (tuple(self.experts), self.n_measured) == (tuple(other.experts), other.n_measured)
            and torch.equal(self.counts, other.counts)
            and torch.equal(self.tokens, other.tokens)
        )

    __hash__ = None  # type: ignore[assignment]  # compared by content, like a tensor's values

    def __repr__(self) -> str:
        of_languages = ", ".join(f"{each} {n:,}" for each, n in zip(self.languages, self.tokens.tolist(), strict=True))
        widths = "/".join(map(str, sorted(set(self.widths))))
        return f"NeuronRates(tokens: {of_languages}; {self.n_layers} layers of {widths} neurons)"

    def _repr_html_(self) -> str:
        rates = self.by_language().groupby("language", sort=False)[["rate", "never"]].mean()
        rates.columns = ["activated at a token, % of neurons", "at no token, % of neurons"]
        rates.insert(0, "tokens", self.tokens.tolist())
        return f"<p>{escape(repr(self))}</p>" + rates.to_html(float_format="{:.1f}".format, border=0)

    @explains
    def by_language(self) -> pd.DataFrame:
        """Tabulate, in percent, how often a language's tokens activate the neurons of each layer.

        Returns:
            A table with a row for each measured layer and language: layer, language, rate (the mean over the layer's
            neurons), never and always (which share of the neurons no token and every token activates).

        Examples:
            >>> rates = NeuronRates(torch.tensor([[[3, 1]], [[0, 2]]]), [4, 2], languages=["en", "de"], widths=[2])
            >>> print(rates.by_language().to_string(index=False))
             layer language  rate  never  always
                 0       en  50.0    0.0     0.0
                 0       de  50.0   50.0    50.0
        """
        return pd.DataFrame(self._rows())

    def _rows(self) -> Iterator[dict[str, Any]]:
        rates = self.rates.numpy()
        for layer, width in enumerate(self.widths[: self.n_measured]):
            for number, language in enumerate(self.languages):
                of_layer = rates[number, layer, :width]
                yield {
                    "layer": layer,
                    "language": language,
                    "rate": 100 * of_layer.mean(),
                    "never": 100 * np.mean(of_layer == 0),
                    "always": 100 * np.mean(of_layer == 1),
                }

    @explains
    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, with the metadata in its header.

        Raises:
            NeuronShareError: there is no such directory, or the metadata holds what JSON cannot say.
        """
        header = {name: getattr(self, name) for name in ("languages", "widths", "hooks", "experts", "n_measured")}
        tensors = {"counts": self.counts, "tokens": self.tokens}
        write_tensors(tensors, path, kind=_KIND, header=header | {"metadata": self.metadata})

    @classmethod
    @explains
    def load(cls, path: str | Path) -> NeuronRates:
        """Read what `save` wrote.

        Raises:
            NeuronShareError: no such file, a file of another kind, or a damaged one.
        """

        def made(tensors: dict[str, Tensor], header: dict[str, Any]) -> NeuronRates:
            experts = [None if each is None else (each[0], each[1]) for each in header.pop("experts")]
            counts, tokens = (tensors[name].clone() for name in ("counts", "tokens"))
            return cls(counts, tokens, experts=experts, **header)

        return read_tensors(path, made, kind=_KIND)


def _require_same_measure(rates: NeuronRates, other: NeuronRates) -> None:
    """Refuse to add counts of different things, or of the same texts."""

    def measured(each: NeuronRates) -> dict[str, Any]:
        names = ("widths", "hooks", "experts", "n_measured")
        known = {key: each.metadata.get(key) for key in _MEASURED}
        own = {name: getattr(each, name) for name in names}
        return own | known | {"fingerprint of the weights": weights_of(each.metadata)}

    ours, theirs = measured(rates), measured(other)
    different = [what for what in ours if ours[what] != theirs[what]]
    if different:
        what = different[0]
        raise NeuronShareError(
            f"The counts have {what} {ours[what]!r} and {theirs[what]!r}; add up counts that measured the same."
        )
    texts, more = rates.metadata.get("texts", {}), other.metadata.get("texts", {})
    for language in (each for each in texts if each in more):
        if set(texts[language]) & set(more[language]):
            raise NeuronShareError(
                f"Language {language!r}: both counts have the same text, which would count twice; add up counts of "
                "different texts."
            )


def _texts_of(rates: NeuronRates, other: NeuronRates) -> dict[str, list[str]]:
    """The hashes of both counts' texts, by language."""
    parts = [each.metadata.get("texts", {}) for each in (rates, other)]
    return {each: [*parts[0].get(each, []), *parts[1].get(each, [])] for each in {**parts[0], **parts[1]}}

"""How each neuron's values are distributed over the tokens of each language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import distinct, mapping, measured_layers, names_of, refuse_language_all, sizes_of
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import neurons_of
from tl_neuronshare.results.files import read_tensors, write_tensors

_KIND = "tl_neuronshare.histograms/1"


class ValueHistograms:
    """Hold how many tokens of each language give a neuron a value in each bin.

    The bins of a neuron are equally wide, and the same for all languages. The first and the last of them are for what
    is below and above the others.

    Args:
        counts: how many tokens have a value in each bin.
        low: where each neuron's second bin begins; NaN where it is not known.
        high: where each neuron's last but one bin ends.
        languages: the names of the languages.
        widths: how many neurons each layer has.
        n_measured: how many of the layers are measured, counted from the first; all by default.
        metadata: how the counts were made.

    Raises:
        NeuronShareError: the arguments do not fit each other, or a neuron has fewer tokens than others of the language.

    Examples:
        >>> counts = torch.tensor([[[[0, 9, 1, 0], [0, 5, 5, 0]]], [[[0, 0, 8, 2], [0, 5, 5, 0]]]])
        >>> histograms = ValueHistograms(counts, languages=["en", "de"], widths=[2])
        >>> histograms.shares[0, 0, 0]  # of English, for the first neuron
        tensor([0.0000, 0.9000, 0.1000, 0.0000], dtype=torch.float64)
    """

    @explains
    def __init__(
        self,
        counts: Int[Tensor, "language layer neuron bin"],
        low: Float[Tensor, "layer neuron"] | None = None,
        high: Float[Tensor, "layer neuron"] | None = None,
        *,
        languages: Sequence[str],
        widths: Sequence[int],
        n_measured: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.languages, self.widths = names_of("languages", languages), tuple(sizes_of("widths", widths))
        self.n_measured = measured_layers(n_measured, len(self.widths))
        self.counts, self.metadata = counts, mapping("metadata", metadata)
        unknown = torch.full((len(self.widths), max(self.widths, default=0)), torch.nan, device="cpu")
        self.low, self.high = (unknown if end is None else end for end in (low, high))
        self._check()

    def _check(self) -> None:
        """Refuse what does not fit together."""
        if self.counts.is_floating_point():
            raise NeuronShareError(f"The histograms are {self.counts.dtype}; counts are whole numbers.")
        refuse_language_all(self.languages)
        distinct("languages", self.languages, what="names of languages")
        shape = (len(self.widths), max(self.widths, default=0))
        expected, ends = (len(self.languages), *shape), (tuple(self.low.shape), tuple(self.high.shape))
        if self.counts.ndim != 4 or tuple(self.counts.shape[:3]) != expected or ends != (shape, shape):
            raise NeuronShareError(
                f"The histograms have shape {tuple(self.counts.shape)} and the ends of their bins {ends[0]} and "
                f"{ends[1]}; {expected[0]} languages and {expected[1]} layers of at most {expected[2]} neurons need "
                f"{(*expected, 'bins')} and {shape}."
            )
        for number, language in enumerate(self.languages):
            tokens = self.counts[number].sum(-1)[self.is_neuron]
            if len(tokens) and (tokens[0] == 0 or (tokens != tokens[0]).any()):
                raise NeuronShareError(
                    f"Language {language!r}: the neurons have values at {int(tokens.min())} to {int(tokens.max())} "
                    "tokens; give each of them a value at every token, and at least one."
                )

    @property
    def is_neuron(self) -> Bool[Tensor, "layer neuron"]:
        """Whether each place is a neuron that is measured."""
        return neurons_of(self.widths, self.n_measured)

    @property
    def tokens(self) -> Int[Tensor, " language"]:
        """How many tokens each language has."""
        return self.counts[:, 0, 0].sum(-1)

    @property
    def shares(self) -> Float[Tensor, "language layer neuron bin"]:
        """The share of each language's tokens with a value in each bin; 0 where no neuron is measured."""
        return self.counts / self.tokens[:, None, None, None].double()

    def __repr__(self) -> str:
        of_languages = ", ".join(f"{each} {n:,}" for each, n in zip(self.languages, self.tokens.tolist(), strict=True))
        widths = "/".join(map(str, sorted(set(self.widths))))
        n_bins, n_layers = self.counts.shape[-1], len(self.widths)
        return f"ValueHistograms(tokens: {of_languages}; {n_layers} layers of {widths} neurons; {n_bins} bins)"

    @explains
    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, with the metadata in its header.

        Raises:
            NeuronShareError: there is no such directory, or the metadata holds what JSON cannot say.
        """
        header = {name: getattr(self, name) for name in ("languages", "widths", "n_measured", "metadata")}
        tensors = {"counts": self.counts, "low": self.low, "high": self.high}
        write_tensors(tensors, path, kind=_KIND, header=header)

    @classmethod
    @explains
    def load(cls, path: str | Path) -> ValueHistograms:
        """Read what `save` wrote.

        Raises:
            NeuronShareError: no such file, a file of another kind, or a damaged one.
        """

        def made(tensors: dict[str, Tensor], header: dict[str, Any]) -> ValueHistograms:
            counts, low, high = (tensors[name].clone() for name in ("counts", "low", "high"))
            return cls(counts, low, high, **header)

        return read_tensors(path, made, kind=_KIND)

"""What is shared between languages: the types of neurons, and tables of them. Pure: no model is known here.

A neuron is one coordinate of an MLP's post-activation vector. For one example, asked in K languages, it is
activated in c of them and so is all-shared (c = K), partial-shared (1 < c < K), specific (c = 1) or
non-activated (c = 0). Source: Wang et al., "Sharing Matters" (arXiv 2406.09265), section 3. A type belongs
to one example, not to the neuron for good.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError

_FORMAT = "tl_neuronshare.NeuronSharing/1"
_NO_NEURON = 255  # fills the types of layers that are narrower than the widest
_CHUNK_BYTES = 1 << 27  # how much is unpacked at a time


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
        metadata: where the result comes from: model, site, position, threshold, versions.

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
        if len(set(languages)) < len(languages):
            raise NeuronShareError(f"The languages {', '.join(languages)} are not all different; name each once.")
        self._packed = packed
        self.languages, self.widths, self.hooks = tuple(languages), tuple(widths), tuple(hooks)
        self.metadata = dict(metadata)

    @classmethod
    def from_activated(
        cls,
        activated: Bool[Tensor, "example language layer neuron"],
        *,
        languages: Sequence[str],
        metadata: Mapping[str, Any] | None = None,
    ) -> NeuronSharing:
        """From a boolean tensor of one's own, all layers of the same width."""
        n_layers, width = activated.shape[-2:]
        hooks = [f"blocks.{layer}.mlp.hook_post" for layer in range(n_layers)]
        return cls(
            pack(activated), languages=languages, widths=[width] * n_layers, hooks=hooks, metadata=metadata or {}
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
        if not isinstance(examples, slice):
            raise NeuronShareError(f"{examples!r} selects no examples; use a slice, such as sharing[3:4].")
        return NeuronSharing(
            self._rows(examples),
            languages=self.languages,
            widths=self.widths,
            hooks=self.hooks,
            metadata=self.metadata,
        )

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same activations of the same neurons; where they come from does not count."""
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

    def activated(self, examples: slice = slice(None)) -> Bool[Tensor, "example language layer neuron"]:
        """Whether each neuron is activated, unpacked for this call; False where a layer is narrower."""
        return unpack(self._rows(examples), self.d_mlp) & self._is_neuron()

    @property
    def types(self) -> UInt8[Tensor, "example layer neuron"]:
        """Each neuron's type (a NeuronType's number); 255 where a layer is narrower than the widest."""
        return torch.cat([neuron_types(activated) for activated in self._chunks()]).masked_fill_(
            ~self._is_neuron(), _NO_NEURON
        )

    def mask(self, type: NeuronType | str) -> Bool[Tensor, "example layer neuron"]:
        """The neurons of one type, given as a NeuronType or by its label.

        Raises:
            NeuronShareError: an unknown type.
        """
        return self.types == as_type(type)

    def summary(self) -> pd.DataFrame:
        """Percent of each layer's neurons that are of each type: mean, std, min and max over the examples.

        The standard deviation is the population's. Source: the paper's "patterns by layer".
        """
        types = self.types
        percent = {type: self._percent(types == type) for type in TYPES}
        return pd.DataFrame(
            {"layer": layer, "type": type.label, **_statistics(percent[type][:, layer])}
            for layer in range(self.n_layers)
            for type in TYPES
        )

    def by_language(self) -> pd.DataFrame:
        """Percent of each layer's neurons that each language activates: mean, std, min and max over the examples."""
        percent = torch.cat([self._percent(activated) for activated in self._chunks()])
        return pd.DataFrame(
            {"layer": layer, "language": language, **_statistics(percent[:, index, layer])}
            for layer in range(self.n_layers)
            for index, language in enumerate(self.languages)
        )

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, with the metadata in its header.

        Raises:
            NeuronShareError: there is no such directory, or the metadata holds what JSON cannot say.
        """
        if not Path(path).parent.is_dir():
            raise NeuronShareError(f"There is no directory {str(Path(path).parent)!r}; make it first.")
        header = {
            "languages": self.languages,
            "widths": self.widths,
            "hooks": self.hooks,
            "metadata": self.metadata,
        }
        try:
            texts = {"format": _FORMAT, **{key: json.dumps(value) for key, value in header.items()}}
        except TypeError as error:
            raise NeuronShareError(
                f"The metadata cannot be saved: {error}. Keep to text, numbers and lists."
            ) from error
        save_file({"packed": self._packed.contiguous()}, path, texts)

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
        backwards = examples.step is not None and examples.step < 0
        return self._packed[list(range(self.n_examples)[examples])] if backwards else self._packed[examples]

    def _chunks(self) -> Iterator[Bool[Tensor, "example language layer neuron"]]:
        """All activations, unpacked some examples at a time."""
        bytes_per_example = 8 * self._packed[0].numel()
        step = max(1, _CHUNK_BYTES // bytes_per_example)
        for start in range(0, self.n_examples, step):
            yield self.activated(slice(start, start + step))

    def _is_neuron(self) -> Bool[Tensor, "layer neuron"]:
        return torch.arange(self.d_mlp) < rearrange(torch.tensor(self.widths), "layer -> layer 1")

    def _percent(self, chosen: Bool[Tensor, "*batch layer neuron"]) -> Float[Tensor, "*batch layer"]:
        """Percent of each layer's own neurons."""
        return 100 * chosen.sum(-1).double() / torch.tensor(self.widths)


def as_type(type: NeuronType | str) -> NeuronType:
    """The NeuronType of this label or number.

    Raises:
        NeuronShareError: an unknown type.
    """
    for known in NeuronType:
        if type in (known, known.label):
            return known
    raise NeuronShareError(f"{type!r} is no type of neuron; use one of {', '.join(known.label for known in TYPES)}.")


def packed_width(width: int) -> int:
    """How many bytes hold one bit for each of so many neurons."""
    return -(-width // 8)


def pack(activated: Bool[Tensor, "*batch neuron"]) -> UInt8[Tensor, "*batch byte"]:
    """Eight neurons to a byte."""
    return torch.from_numpy(np.packbits(activated.numpy(force=True), axis=-1))


def unpack(packed: UInt8[Tensor, "*batch byte"], width: int) -> Bool[Tensor, "*batch {width}"]:
    """The reverse of `pack`, for so many neurons."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1, count=width).view(np.bool_))


def _statistics(values: Float[Tensor, " example"]) -> dict[str, float]:
    return {
        "mean": values.mean().item(),
        "std": values.std(correction=0).item(),
        "min": values.min().item(),
        "max": values.max().item(),
    }

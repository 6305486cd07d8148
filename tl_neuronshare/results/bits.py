"""Packed bits of examples, which may lie in a file: they are used some examples at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from tl_neuronshare.results.files import Stream

_CHUNK_BYTES = 1 << 24  # how much there is at a time, when unpacked


@dataclass(frozen=True, eq=False)
class Bits:
    """Hold packed bits of examples; each language may show, instead of each example, one that is some places further.

    Attributes:
        stored: the bits as they were measured.
        offsets: for each language by how many examples it is moved round; empty where no language is.

    Examples:
        >>> stored = torch.arange(6, dtype=torch.uint8).reshape(3, 2, 1, 1)  # example language layer byte
        >>> Bits(stored, (0, 2)).whole.flatten(1)
        tensor([[0, 5],
                [2, 1],
                [4, 3]], dtype=torch.uint8)
    """

    stored: UInt8[Tensor, "example language layer byte"]
    offsets: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.stored)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Bits)
            and self.stored.shape == other.stored.shape
            and all(torch.equal(ours, other.at(places)) for places, ours in self.pieces())
        )

    __hash__ = None  # type: ignore[assignment]  # compared by content, like a tensor's values

    @property
    def whole(self) -> UInt8[Tensor, "example language layer byte"]:
        """All bits; where languages are moved, they are brought together anew."""
        return self.at(range(len(self)))

    def at(self, examples: Sequence[int]) -> UInt8[Tensor, "example language layer byte"]:
        """The bits of these examples; a view where torch has one."""
        if not self.offsets:
            return rows_at(self.stored, examples)
        places = (np.array(examples)[:, None] + np.array(self.offsets)) % len(self)
        return torch.from_numpy(self.stored.numpy()[places, np.arange(len(self.offsets))])

    def moved(self, offsets: Sequence[int]) -> Bits:
        """Move each language round by as many examples as its offset says; no bits are copied."""
        before = self.offsets or (0,) * len(offsets)
        return Bits(self.stored, tuple(a + b for a, b in zip(before, offsets, strict=True)))

    @property
    def step(self) -> int:
        """How many examples are used at a time."""
        return max(1, _CHUNK_BYTES // max(1, 8 * self.stored[:1].numel()))

    def slices(self) -> list[range]:
        """The examples that are used together."""
        return ranges(len(self), self.step)

    def pieces(self) -> Iterator[tuple[range, UInt8[Tensor, "example language layer byte"]]]:
        """All examples, some at a time, and their bits."""
        for examples in self.slices():
            yield examples, self.at(examples)

    def stream(self) -> Stream:
        """The bits for a file."""
        return Stream(self.stored.shape, torch.uint8, (piece for _, piece in self.pieces()))


def joined(parts: Sequence[Bits]) -> Bits:
    """The examples of one after those of the other."""
    first = parts[0].stored
    whole = torch.empty((sum(map(len, parts)), *first.shape[1:]), dtype=torch.uint8, device="cpu")
    start = 0
    for part in parts:
        for examples, piece in part.pieces():
            whole[start + examples.start : start + examples.stop] = piece
        start += len(part)
    return Bits(whole)


def ranges(n: int, step: int, *, start: int = 0) -> list[range]:
    """Cut n examples, counted from 0, into ranges of at most `step`, beginning at `start`.

    Examples:
        >>> ranges(5, 2)
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    return [range(first, min(first + step, n)) for first in range(start, n, step)]


def rows_at(rows: Tensor, places: Sequence[int]) -> Tensor:
    """The rows at these places; a view where torch has one."""
    if isinstance(places, range) and places.step > 0:
        return rows[places.start : places.stop : places.step]
    return rows[list(places)]

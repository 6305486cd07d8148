"""What `categorise` keeps of its examples, segment by segment, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tl_neuronshare.maths.activation import Threshold
from tl_neuronshare.results.bits import ranges
from tl_neuronshare.results.files import Stream, read_tensors, write_tensors
from tl_neuronshare.results.sharing import FILE, NeuronSharing, write_sharing

# What a segment has at most: prompts whose tokens are in memory, and bytes of bits.
_MOST_PROMPTS, _MOST_BYTES = 1 << 13, 1 << 28
_KIND = "tl_neuronshare.segment/2"


def segments_of(n_examples: int, n_languages: int, bytes_a_prompt: int) -> list[range]:
    """Cut the examples into segments, each with all languages.

    Examples:
        >>> segments_of(5, 2, 1 << 26)
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    step = max(1, min(_MOST_PROMPTS, _MOST_BYTES // bytes_a_prompt) // n_languages)
    return ranges(n_examples, step)


@dataclass(frozen=True)
class Segment:
    """What is kept of a segment's examples.

    Attributes:
        packed: which neurons are activated, eight to a byte.
        routed: which experts each prompt is routed to, eight to a byte; without experts no bytes.
        hashes: the hashes of the prompts.
        borderline: how many values are near each threshold.
        common_prefix: the sum of the shares of the prompts with which they begin in all languages alike.
        same_last: for how many examples the prompts of two languages end in the same token.
        batches: how many batches were run.
    """

    packed: UInt8[Tensor, "threshold example language layer byte"]
    routed: UInt8[Tensor, "example language layer expert_byte"]
    hashes: Int[Tensor, "example language"]
    borderline: Int[Tensor, " threshold"]
    common_prefix: Float[Tensor, ""]
    same_last: Int[Tensor, "language language"]
    batches: Int[Tensor, ""]

    def write(self, path: Path) -> None:
        """Write the segment to a file."""
        write_tensors(vars(self), path, kind=_KIND)

    @classmethod
    def read(cls, path: Path) -> Segment:
        """Open a file that `write` wrote; its tensors stay there."""
        return read_tensors(path, lambda tensors, header: cls(**tensors), kind=_KIND)


def segment_file(number: int) -> str:
    """Name the file of a segment."""
    return f"segment-{number:06}.safetensors"


def result_file(thresholds: Sequence[Threshold], threshold: Threshold) -> str:
    """Name the file of the result for a threshold, which says so where there are several."""
    return FILE if len(thresholds) == 1 else f"threshold-{threshold}.safetensors"


def write_result(
    parts: Sequence[Segment], number: int, path: Path, *, experts: Sequence[tuple[int, int] | None], **header: Any
) -> None:
    """Write the result for one threshold from all segments, one segment at a time.

    Args:
        parts: the segments in order, whose tensors lie in files.
        number: which of the thresholds.
        path: the file of the result.
        experts: as in `Routing`, for each layer.
        header: the languages, widths, hooks and metadata of the result.
    """
    write_sharing(
        path,
        _joined([part.packed[number] for part in parts]),
        **header,
        prompt_hashes=_joined([part.hashes for part in parts]),
        routed=_joined([part.routed for part in parts]) if any(experts) else None,
        experts=list(experts) if any(experts) else None,
    )


def _joined(pieces: Sequence[Tensor]) -> Stream:
    """The examples of one piece after those of the other."""
    return Stream((sum(map(len, pieces)), *pieces[0].shape[1:]), pieces[0].dtype, pieces)


def has_results(folder: Path, thresholds: Sequence[Threshold]) -> bool:
    """Return whether a folder has the results for all thresholds."""
    return all((folder / result_file(thresholds, threshold)).exists() for threshold in thresholds)


def results_in(folder: Path, thresholds: Sequence[Threshold]) -> dict[Threshold, NeuronSharing]:
    """Open the results in a folder, by threshold."""
    return {threshold: NeuronSharing.load(folder / result_file(thresholds, threshold)) for threshold in thresholds}

"""What makes two results comparable: their prompts, their weights, and how they were measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tl_neuronshare.prompts import ParallelPrompts, are_of, hashes_of

if TYPE_CHECKING:
    from tl_neuronshare.results.sharing import NeuronSharing

# Results that differ in one of these measure different things.
_MEASURED = ("site", "position", "threshold", "prepend_bos", "special_tokens_left_out", "weights", "dtype")
_SHARES = ("borderline_fraction", "common_prefix_share", "same_last_token")


def fingerprint(weights: str, prompt_hashes: Iterable[str] | None) -> str:
    """Name a result's weights and prompts in one text; prompts that are not known are `unknown`.

    Examples:
        >>> fingerprint("0123456789abcdef", None)
        '0123456789abcdef-unknown'
    """
    if prompt_hashes is None:
        return f"{weights}-unknown"
    digest = hashlib.sha256()
    for hashes in prompt_hashes:  # as `short_hash` of all of them, without a text of all of them
        digest.update(hashes.encode())
    return f"{weights}-{digest.hexdigest()[:16]}"


def weights_of(metadata: Mapping[str, Any]) -> str:
    """Give the half of a result's fingerprint that names its weights; empty where it has no fingerprint.

    Examples:
        >>> weights_of({"fingerprint": "0123456789abcdef-unknown"})
        '0123456789abcdef'
    """
    return str(metadata.get("fingerprint", "")).split("-")[0]


def first_differing(prompts: ParallelPrompts, sharing: NeuronSharing) -> int | None:
    """Find the first example whose prompts are not those of the result; None where all are, or it knows no prompts."""
    if sharing.prompt_hashes is None:
        return None
    pairs = zip(sharing.prompt_hashes, hashes_of(prompts), strict=False)
    return next((i for i, (theirs, ours) in enumerate(pairs) if not are_of(theirs, ours)), None)


def first_difference(result: NeuronSharing, other: NeuronSharing) -> tuple[str, object, object] | None:
    """Say what two results measured differently, with both values; None where their examples fit in one result."""
    ours, theirs = _measured(result), _measured(other)
    for what in ours:
        if ours[what] != theirs[what] and not (what == "prepend_bos" and None in (ours[what], theirs[what])):
            return what, ours[what], theirs[what]
    return None


def _measured(result: NeuronSharing) -> dict[str, Any]:
    """Everything in which examples of one result must agree, by its name."""
    return {
        "experts": None if result.routing is None else result.routing.experts,
        **{name: getattr(result, name) for name in ("languages", "widths", "hooks")},
        **{key: result.metadata.get(key) for key in _MEASURED},
        "fingerprint of the weights": weights_of(result.metadata),
    }


def merged_metadata(results: Sequence[NeuronSharing]) -> dict[str, Any]:
    """Merge the metadata of results that are concatenated.

    A value that all have in common stays; of shares the mean over examples is kept; of others a list of all values.
    """
    sizes = [len(result) for result in results]
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for result in results for key in result.metadata):
        values: list[Any] = [result.metadata.get(key) for result in results]
        if key == "fingerprint" or all(value == values[0] for value in values):
            merged[key] = values[0]  # the fingerprint's second half, of the prompts, is made anew
        elif key in _SHARES and None not in values:
            merged[key] = _mean(values, sizes)
        else:
            merged[key] = values
    return merged


def _mean(values: Sequence[Any], sizes: Sequence[int]) -> Any:
    """The mean of shares over all examples, or of each share in a dictionary of the same keys."""
    if isinstance(values[0], Mapping):
        return {key: _mean([value[key] for value in values], sizes) for key in values[0]}
    return sum(share * size for share, size in zip(values, sizes, strict=True)) / sum(sizes)

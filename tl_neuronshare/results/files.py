"""Tensors in safetensors files, which load without pickle and are read where they lie."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tl_neuronshare.checks import path_of
from tl_neuronshare.errors import NeuronShareError

Result = TypeVar("Result")

# The names of dtypes in the format.
_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
_PIECE_BYTES = 1 << 24  # how much of a tensor is copied at a time, where it must be copied to be written


@dataclass(frozen=True)
class Stream:
    """A tensor that comes in pieces along its first axis, so that it never needs to be in memory as a whole.

    Attributes:
        shape: the shape of the whole tensor.
        dtype: its dtype.
        pieces: its pieces in order; they are made when they are written.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> stream = Stream((5, 2), torch.int64, (torch.full((n, 2), n) for n in (2, 3)))
        >>> with TemporaryDirectory() as folder:
        ...     write_tensors({"numbers": stream}, f"{folder}/x.safetensors", kind="mine/1")
        ...     read_tensors(f"{folder}/x.safetensors", lambda tensors, header: tensors["numbers"][:, 0], kind="mine/1")
        tensor([2, 2, 3, 3, 3])
    """

    shape: Sequence[int]
    dtype: torch.dtype
    pieces: Iterable[Tensor]


def write_tensors(
    tensors: Mapping[str, Tensor | Stream], path: str | Path, *, kind: str, header: Mapping[str, Any] | None = None
) -> None:
    """Write tensors to one file, whole or not at all.

    They are first written to a file beside it, whose name ends in `.part`. This then takes the file's name, so that
    under this name there is always a whole file, or none. A result that was read from an older file of the name keeps
    that file's content.

    Args:
        tensors: what to write, by name: tensors, or streams of their pieces.
        path: the file, in a folder that exists.
        kind: what is written, with a version, such as `tl_neuronshare.masks/1`; `read_tensors` asks for the same.
        header: what else is to be known of the tensors: texts, numbers and lists.

    Raises:
        NeuronShareError: there is no such directory, the header holds what JSON cannot say, the pieces of a stream do
            not make the tensor that it says, or the file cannot be written (a full disk, no permission ...).

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_tensors({"ones": torch.ones(1)}, f"{folder}/x.safetensors", kind="mine/1")
        ...     read_tensors(f"{folder}/x.safetensors", lambda tensors, header: tensors["ones"], kind="mine/1")
        tensor([1.])
    """
    path = path_of("path", path)
    if not path.parent.is_dir():
        raise NeuronShareError(f"There is no directory {str(path.parent)!r}; make the directory first.")
    if path.is_dir():
        raise NeuronShareError(f"{str(path)!r} is a directory; name a file in it.")
    try:
        texts = {"format": kind, **{key: json.dumps(value) for key, value in (header or {}).items()}}
    except TypeError as error:
        raise NeuronShareError(f"The metadata cannot be saved: {error}. Keep to text, numbers and lists.") from error
    # As the library does it: numbers of many bytes come first, so that all lie at multiples of their size.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(_head({name: tensors[name] for name in names}, texts))
            for name in names:
                _write(tensors[name], name, file)
            file.flush()
            os.fsync(file.fileno())  # some disks say only now that they are full
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):  # where the folder cannot be written, there is nothing to remove
            part.unlink()
        if not isinstance(error, OSError):
            raise
        raise NeuronShareError(
            f"{str(path)!r} cannot be written ({error}); is the disk full, or the folder read-only?"
        ) from error


def _head(tensors: Mapping[str, Tensor | Stream], texts: Mapping[str, str]) -> bytes:
    """The beginning of a file: the length of its header, and the header, which says where each tensor lies."""
    places: dict[str, Any] = {"__metadata__": texts}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + prod(tensor.shape) * tensor.dtype.itemsize
        places[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(places, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(tensor: Tensor | Stream, name: str, file: BinaryIO) -> None:
    """Write the content of a tensor, or of a stream's pieces."""
    if isinstance(tensor, Tensor):
        for piece in _pieces(tensor):
            file.write(_bytes(piece))
        return
    n_rows = 0
    for piece in tensor.pieces:
        n_rows += len(piece)
        if tuple(piece.shape[1:]) != tuple(tensor.shape[1:]) or piece.dtype != tensor.dtype:
            raise NeuronShareError(
                f"A piece of {name!r} is {piece.dtype} of shape {tuple(piece.shape)}; {tensor.dtype} of shape "
                f"{tuple(tensor.shape)} is to be written: give pieces along its first axis."
            )
        _write(piece, name, file)
    if n_rows != tensor.shape[0]:
        raise NeuronShareError(f"The pieces of {name!r} have {n_rows} rows in all, not {tensor.shape[0]}; give all.")


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor itself or, if it must be copied to be written, one part after the other."""
    if tensor.ndim == 0 or (tensor.is_contiguous() and tensor.device.type == "cpu"):
        return iter([tensor])
    step = max(1, _PIECE_BYTES // max(1, tensor[:1].nbytes))
    return (tensor[start : start + step] for start in range(0, len(tensor), step))


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in the order of its places."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def read_tensors(
    path: str | Path,
    make: Callable[[dict[str, Tensor], dict[str, Any]], Result],
    *,
    kind: str,
    older: Collection[str] = (),
) -> Result:
    """Open a file that `write_tensors` wrote, and make a result of its tensors and header.

    The tensors stay in the file: the operating system reads what is used of them, and lets it go where memory is
    needed. What is written to such a tensor is in memory only and does not change the file.

    Args:
        path: the file.
        make: takes tensors by name, in alphabetical order, and the header; a KeyError or TypeError that it raises
            means that the file is damaged.
        kind: what the file must hold.
        older: other kinds that `make` understands, of earlier versions.

    Raises:
        NeuronShareError: there is no such file, it holds another kind, or it is damaged.
    """
    path = path_of("path", path)
    if not path.is_file():
        raise NeuronShareError(f"There is no file {str(path)!r}; save a result there first, or check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            if texts.pop("format", None) not in (kind, *older):
                name = kind.removeprefix("tl_neuronshare.").split("/")[0]
                raise NeuronShareError(
                    f"{str(path)!r} holds no {name} ({kind}); give a file that tl_neuronshare saved as such."
                )
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            return make(tensors, {key: json.loads(text) for key, text in texts.items()})
    except NeuronShareError:
        raise
    # A number of JSON may have too many digits, and lists too many levels.
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise NeuronShareError(
            f"{str(path)!r} cannot be read ({error}); it is damaged, or not a safetensors file."
        ) from error

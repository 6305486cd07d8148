"""Tensors in safetensors files, which load without pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError

Result = TypeVar("Result")


def write_tensors(
    tensors: Mapping[str, Tensor], path: str | Path, *, kind: str, header: Mapping[str, Any] | None = None
) -> None:
    """Write tensors to one file; if it cannot be written whole, no new file is left.

    Args:
        tensors: what to write, by name.
        path: the file, in a folder that exists.
        kind: what is written, with a version, such as `tl_neuronshare.masks/1`; `read_tensors` asks for the same.
        header: what else is to be known of the tensors: texts, numbers and lists.

    Raises:
        NeuronShareError: there is no such directory, the header holds what JSON cannot say, or the file cannot be
            written (a full disk, no permission ...).

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_tensors({"ones": torch.ones(1)}, f"{folder}/x.safetensors", kind="mine/1")
        ...     read_tensors(f"{folder}/x.safetensors", lambda tensors, header: tensors["ones"], kind="mine/1")
        tensor([1.])
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise NeuronShareError(f"There is no directory {str(path.parent)!r}; make the directory first.")
    if path.is_dir():
        raise NeuronShareError(f"{str(path)!r} is a directory; name a file in it.")
    try:
        texts = {"format": kind, **{key: json.dumps(value) for key, value in (header or {}).items()}}
    except TypeError as error:
        raise NeuronShareError(f"The metadata cannot be saved: {error}. Keep to text, numbers and lists.") from error
    existed = path.exists()
    try:
        save_file(dict(tensors), path, texts)
    except (SafetensorError, OSError) as error:
        if not existed:
            path.unlink(missing_ok=True)
        raise NeuronShareError(f"{str(path)!r} cannot be written ({error}); is the disk full?") from error


def read_tensors(path: str | Path, make: Callable[[dict[str, Tensor], dict[str, Any]], Result], *, kind: str) -> Result:
    """Read a file that `write_tensors` wrote, and make a result of its tensors and header.

    Args:
        path: the file.
        make: takes tensors by name, in alphabetical order, and the header; a KeyError or TypeError that it raises
            means that the file is damaged.
        kind: what the file must hold.

    Raises:
        NeuronShareError: there is no such file, it holds another kind, or it is damaged.
    """
    if not Path(path).is_file():
        raise NeuronShareError(f"There is no file {str(path)!r}; save a result there first, or check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            if texts.pop("format", None) != kind:
                name = kind.removeprefix("tl_neuronshare.").split("/")[0]
                raise NeuronShareError(
                    f"{str(path)!r} holds no {name} ({kind}); give a file that tl_neuronshare saved as such."
                )
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            return make(tensors, {key: json.loads(text) for key, text in texts.items()})
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise NeuronShareError(
            f"{str(path)!r} cannot be read ({error}); it is damaged, or not a safetensors file."
        ) from error

"""Tensors in safetensors files, which load without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError


def write_tensors(tensors: Mapping[str, Tensor], path: str | Path, header: Mapping[str, str]) -> None:
    """Write one file; nothing is left of one that could not be written whole.

    Raises:
        NeuronShareError: the file cannot be written (a full disk, no permission ...).

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_tensors({"one": torch.ones(1)}, f"{folder}/one.safetensors", {"format": "mine"})
        ...     [path.name for path in Path(folder).iterdir()]
        ['one.safetensors']
    """
    existed = Path(path).exists()
    try:
        save_file(dict(tensors), path, dict(header))
    except (SafetensorError, OSError) as error:
        if not existed:
            Path(path).unlink(missing_ok=True)
        raise NeuronShareError(f"{str(path)!r} cannot be written ({error}); is the disk full?") from error

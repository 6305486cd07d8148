"""The folder in which a run keeps what its batches give, so that the same call goes on where an earlier one stopped.

A folder belongs to one call. `about.json` says which model, prompts, options and versions it has, and every other call
is refused. Each process appends to a file of its own, one record for each batch: its name, its tensors in the
safetensors format, and a checksum. If the process is killed while it writes, the next call cuts the broken record off.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from safetensors.torch import load, save
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError

Record = dict[str, Tensor]
ABOUT = "about.json"
_RECORDS, _PART = "records-{}.bin", ".part"
_HEAD = struct.Struct("<QQI")  # how long the name and the tensors of a record are, and the checksum of both


class Shards:
    """The records of a run, those of earlier calls and of other processes included.

    Args:
        folder: where they are; it is made if it does not exist.
        about: what the results depend on, as JSON has it.
        name: the name of this process's file.

    Raises:
        NeuronShareError: the folder belongs to a different call, holds something else, or cannot be used; or a
            different process writes to this process's file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with Shards(Path(folder), {"seed": 0}, "1") as shards:
        ...         shards.add("scores", 3, {"ones": torch.ones(2)})
        ...     with Shards(Path(folder), {"seed": 0}, "1") as shards:
        ...         shards.known("scores"), shards.read("scores", 3)
        ({3}, {'ones': tensor([1., 1.])})
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], name: str) -> None:
        self.folder = folder
        self._places: dict[str, dict[int, tuple[Path, int, int]]] = {}  # stage -> batch -> where its tensors are
        self._seen: dict[Path, int] = {}  # how far each file has been read
        path = folder / _RECORDS.format(name)
        with _Writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._claim(json.loads(json.dumps(about)), name)
            self._file: IO[bytes] = path.open("ab")
        try:
            locked(self._file)
        except BlockingIOError as error:
            self._file.close()
            raise NeuronShareError(
                f"A different process is writing to the folder {str(folder)!r}; wait until it ends, or name a "
                "different folder."
            ) from error
        self.look()
        with _Writing(folder):
            self._file.truncate(self._seen[path])  # without what a kill has left unfinished

    def _claim(self, about: dict[str, Any], name: str) -> None:
        """Write what the folder belongs to, or refuse a folder that belongs to something else."""
        path = self.folder / ABOUT
        try:
            theirs = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            foreign = [file.name for file in self.folder.iterdir() if not file.name.endswith((_PART, ".bin"))]
            if foreign:
                raise NeuronShareError(
                    f"The folder {str(self.folder)!r} holds other files ({foreign[0]}); name a new folder."
                ) from None
            part = path.with_name(f"{ABOUT}.{name}{_PART}")
            part.write_text(json.dumps(about, indent=1, ensure_ascii=False), "utf-8")
            part.replace(path)
            return
        except ValueError as error:
            raise NeuronShareError(f"{str(path)!r} cannot be read ({error}); remove the folder.") from error
        difference = _difference(about, theirs)
        if difference is not None:
            what, ours, other = difference
            raise NeuronShareError(
                f"The folder {str(self.folder)!r} belongs to a different call: its {what} is {other!r}, and here it is "
                f"{ours!r}; name a different folder, or remove that one."
            )

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *error: object) -> None:
        path = Path(self._file.name)
        if not self._seen[path]:
            path.unlink(missing_ok=True)  # nothing is in it
        self._file.close()

    def known(self, stage: str) -> set[int]:
        """Return the batches of a stage that have records."""
        return set(self._places.get(stage, ()))

    def read(self, stage: str, batch: int) -> Record:
        """Return the record of a batch."""
        path, start, length = self._places[stage][batch]
        with path.open("rb") as file:
            file.seek(start)
            return dict(load(file.read(length)))

    def add(self, stage: str, batch: int, record: Record) -> None:
        """Append the record of a batch.

        Raises:
            NeuronShareError: it cannot be written; earlier records are kept.
        """
        name = json.dumps([stage, batch]).encode()
        tensors = save({key: tensor.contiguous() for key, tensor in record.items()})
        path, start = Path(self._file.name), self._seen[Path(self._file.name)]
        with _Writing(self.folder):
            self._file.write(_HEAD.pack(len(name), len(tensors), zlib.crc32(tensors, zlib.crc32(name))))
            self._file.write(name + tensors)
            self._file.flush()
        self._note(path, stage, batch, start + _HEAD.size + len(name), len(tensors))

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Write a file into the folder, whole or not at all, whichever other processes write it too."""
        own = Path(self._file.name)
        with _Writing(self.folder):
            part = own.with_name(f"{own.stem}-{name}{_PART}")
            write(part)
            part.replace(self.folder / name)

    def look(self) -> None:
        """Read which records have been written since the last look, by this process and by others."""
        for path in sorted(self.folder.glob(_RECORDS.format("*"))):
            with path.open("rb") as file:
                file.seek(self._seen.setdefault(path, 0))
                for stage, batch, start, length in _records(file):
                    self._note(path, stage, batch, start, length)

    def _note(self, path: Path, stage: str, batch: int, start: int, length: int) -> None:
        self._places.setdefault(stage, {})[batch] = path, start, length
        self._seen[path] = start + length

    def forget(self) -> None:
        """Remove the records of this process, and of processes that have ended."""
        own = Path(self._file.name)
        self._places.clear()
        with _Writing(self.folder):
            self._file.truncate(0)
            for path in set(self._seen) - {own}:
                _remove_unless_locked(path)
        self._seen = {own: 0}


def _records(file: IO[bytes]) -> Iterator[tuple[str, int, int, int]]:
    """Give each whole record from here on: its stage, its batch, and where its tensors begin and how long they are."""
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        n_name, n_tensors, checksum = _HEAD.unpack(head)
        left = os.fstat(file.fileno()).st_size - file.tell()
        if n_name + n_tensors > left:
            return
        name, start = file.read(n_name), file.tell()
        if zlib.crc32(file.read(n_tensors), zlib.crc32(name)) != checksum:
            return
        stage, batch = json.loads(name)
        yield stage, batch, start, n_tensors


def _difference(ours: Any, theirs: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Return the first entry in which two records differ, with both values; None if they are equal."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys([*ours, *theirs]):
            found = _difference(ours.get(key), theirs.get(key), f"{name}.{key}" if name else key)
            if found is not None:
                return found
        return None
    return None if ours == theirs else (name, ours, theirs)


class _Writing:
    """Turn an error of the file system into one that says what to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, OSError):
            raise NeuronShareError(
                f"The folder {str(self.folder)!r} cannot be written to ({error}). What is in it is kept: make room or "
                "allow writing, and run the same again, or name a different folder."
            ) from error


def _remove_unless_locked(path: Path) -> None:
    with suppress(FileNotFoundError, BlockingIOError), path.open("ab") as file:
        locked(file)
        path.unlink()


def locked(file: IO[Any]) -> None:
    """Lock a file until it is closed, if the system has such locks; if not, two runs at once are not noticed.

    Raises:
        BlockingIOError: a different process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return

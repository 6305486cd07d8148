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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from io import FileIO
from math import isnan
from pathlib import Path
from typing import IO, Any

from safetensors.torch import load, save
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError

Record = dict[str, Tensor]
ABOUT = "about.json"
_RECORDS, _PART = "records-{}.bin", ".part"
_ABOUT_PART, _FILE_PART = f"{ABOUT}.*{_PART}", f"records-*-*{_PART}"  # what a kill leaves half written
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

    Examples:
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
        self._places: dict[str, dict[int, tuple[Path, int]]] = {}  # stage -> batch -> where its record begins
        self._seen: dict[Path, int] = {}  # how far each file has been read
        self._own = folder / _RECORDS.format(name)
        try:
            call = json.loads(json.dumps(about))
        except TypeError as error:
            raise NeuronShareError(
                f"The folder {str(folder)!r} cannot say which call it belongs to ({error}); keep metadata, names and "
                "values to text, numbers and lists, or leave out= out."
            ) from error
        with _Writing(folder):
            if folder.exists() and not folder.is_dir():
                raise NeuronShareError(f"{str(folder)!r} is a file, and not a folder; name a different one.")
            folder.mkdir(parents=True, exist_ok=True)
            self._claim(call, name)
            self._file = _opened(self._own)
            self.look()
            self._file.truncate(self._seen[self._own])  # without what a kill has left unfinished

    def _claim(self, about: dict[str, Any], name: str) -> None:
        """Write what the folder belongs to, or refuse a folder that belongs to something else."""
        path = self.folder / ABOUT
        if not path.exists():
            foreign = [
                file.name
                for file in self.folder.iterdir()
                if not (file.name.startswith(".") or file.match(_ABOUT_PART))
            ]
            if foreign and not path.exists():  # a different process may have begun meanwhile
                raise NeuronShareError(
                    f"The folder {str(self.folder)!r} holds other files ({foreign[0]}); name a new folder."
                )
            part = path.with_name(f"{ABOUT}.{name}{_PART}")
            part.write_text(json.dumps(about, indent=1, ensure_ascii=False), "utf-8")
            put_first(part, path)
        try:
            theirs = dict(json.loads(path.read_text("utf-8")))
        except (TypeError, ValueError) as error:
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
        if not self._seen[self._own]:
            with suppress(OSError):
                self._own.unlink()  # nothing is in it
        self._file.close()

    def known(self, stage: str) -> set[int]:
        """Return the batches of a stage that have records."""
        return set(self._places.get(stage, ()))

    def read(self, stage: str, batch: int) -> Record:
        """Return the record of a batch.

        Raises:
            NeuronShareError: a different call has removed it since it was found.
        """
        path, start = self._places[stage][batch]
        with suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(start)
            name, tensors = next(_records(file), (None, b""))
            if name == (stage, batch):
                return dict(load(tensors))
        raise NeuronShareError(
            f"A different call has joined the records in the folder {str(self.folder)!r} meanwhile, and removed them; "
            "run the same again."
        )

    def add(self, stage: str, batch: int, record: Record) -> None:
        """Append the record of a batch.

        Raises:
            NeuronShareError: it cannot be written; earlier records are kept.
        """
        name = json.dumps([stage, batch]).encode()
        tensors = save({key: tensor.contiguous() for key, tensor in record.items()})
        start = self._seen[self._own]
        head = _HEAD.pack(len(name), len(tensors), zlib.crc32(tensors, zlib.crc32(name)))
        with _Writing(self.folder):
            try:
                _write(head + name + tensors, self._file)
            except BaseException:
                self._file.truncate(start)  # what follows must follow a whole record
                raise
        self._note(self._own, stage, batch, start, self._file.tell())

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Write a file into the folder, whole or not at all, whichever other processes write it too."""
        with _Writing(self.folder):
            part = self._own.with_name(f"{self._own.stem}-{name}{_PART}")
            write(part)
            part.replace(self.folder / name)

    def look(self) -> None:
        """Read which records have been written since the last look, by this process and by others."""
        for path in sorted(self.folder.glob(_RECORDS.format("*"))):
            # A process that ends removes its file if nothing is in it.
            with suppress(FileNotFoundError), path.open("rb") as file:
                start = file.seek(self._seen.setdefault(path, 0))
                for (stage, batch), _ in _records(file):
                    self._note(path, stage, batch, start, file.tell())
                    start = file.tell()

    def _note(self, path: Path, stage: str, batch: int, start: int, end: int) -> None:
        self._places.setdefault(stage, {})[batch] = path, start
        self._seen[path] = end

    def forget(self, stages: Collection[str] | None = None) -> None:
        """Forget the records of some stages, or all; remove the files in which no others are.

        The files of processes that are at work stay.
        """
        self.look()
        for stage in list(self._places) if stages is None else stages:
            self._places.pop(stage, None)
        needed = {path for of_stage in self._places.values() for path, _ in of_stage.values()}
        with _Writing(self.folder):
            for path in set(self._seen) - needed:
                if path == self._own:
                    self._file.truncate(0)
                else:
                    _remove_unless_locked(path, self._seen[path])
        self._seen = {self._own: 0} | {path: end for path, end in self._seen.items() if path in needed}

    def remove(self, files: Iterable[Path]) -> None:
        """Remove these files, and those that a kill has left half written."""
        with _Writing(self.folder):
            for file in (*files, *self.folder.glob(_ABOUT_PART), *self.folder.glob(_FILE_PART)):
                file.unlink(missing_ok=True)


def _records(file: IO[bytes]) -> Iterator[tuple[tuple[str, int], bytes]]:
    """Give each whole record from here on: its stage and batch, and its tensors in the safetensors format."""
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        n_name, n_tensors, checksum = _HEAD.unpack(head)
        left = os.fstat(file.fileno()).st_size - file.tell()
        if n_name + n_tensors > left:
            return
        name, tensors = file.read(n_name), file.read(n_tensors)
        if zlib.crc32(tensors, zlib.crc32(name)) != checksum:
            return
        stage, batch = json.loads(name)
        yield (stage, batch), tensors


def _difference(ours: Any, theirs: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Return the first entry in which two records differ, with both values; None if they are equal."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys([*ours, *theirs]):
            found = _difference(ours.get(key), theirs.get(key), f"{name}.{key}" if name else key)
            if found is not None:
                return found
        return None
    are_nan = all(isinstance(each, float) and isnan(each) for each in (ours, theirs))
    return None if ours == theirs or are_nan else (name, ours, theirs)


class _Writing:
    """Turn an error of the file system into one that says what to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, OSError):
            raise NeuronShareError(
                f"The folder {str(self.folder)!r} cannot be written to ({error.strerror}). What is in it is kept: make "
                "room or allow writing, and run the same again, or name a different folder."
            ) from error


def _opened(path: Path) -> FileIO:
    """Open a process's own file, which no other process writes to as long as it is open.

    Raises:
        NeuronShareError: a different process writes to it.
    """
    while True:
        file = FileIO(path, "ab")
        try:
            locked(file)
        except BlockingIOError as error:
            file.close()
            raise NeuronShareError(
                f"A different process is writing to the folder {str(path.parent)!r}; wait until it ends, or name a "
                "different folder."
            ) from error
        # A process that ends may have removed the file before it was locked here.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def _write(content: bytes, file: FileIO) -> None:
    """Write all of it; a disk that gets full takes a part, and says so at the next one."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def put_first(part: Path, path: Path) -> None:
    """Give a file its name, unless a different process has been faster."""
    with suppress(FileExistsError):
        try:
            path.hardlink_to(part)
        except FileExistsError:
            raise
        except OSError:  # a file system without such links
            part.replace(path)
    part.unlink(missing_ok=True)


def _remove_unless_locked(path: Path, end: int) -> None:
    """Remove the file of a process that has ended, if it ends here."""
    with suppress(OSError), path.open("r+b") as file:
        if locked(file) and os.fstat(file.fileno()).st_size <= end:
            path.unlink()


def is_locked(path: Path) -> bool:
    """Return whether a process that is at work has locked a file; False where the system has no locks."""
    try:
        with path.open("r+b") as file:
            locked(file)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def locked(file: IO[Any]) -> bool:
    """Lock a file until it is closed; return False if the system has no locks, so that two runs at once go unnoticed.

    Raises:
        BlockingIOError: a different process has locked it.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError):  # Windows, or a file system without locks
        return False
    return True

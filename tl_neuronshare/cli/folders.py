"""The folder of a run: its name, and how a new run takes the place of an old one only when it is complete.

A run writes into the folder `unfinished` inside its own folder. When it is complete its files move up, `run.json` last:
where that is, the run is complete. A run that ends early leaves `unfinished` behind, and the old run as it was. What
its batches gave is in `unfinished/kept`: the next run goes on from there if it is the same, and otherwise empties it.
Where the kill came while the files moved up, the next run first moves up the rest. The working folder is inside and not
beside, because the user may own the folder and nothing around it (a mounted disk, say), or may keep other files in it,
which stay.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from tl_neuronshare.cli.arguments import task_name
from tl_neuronshare.cli.inputs import short_name
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.prompts import short_hash
from tl_neuronshare.running.shards import is_locked, locked, put_first

RECORD = "run.json"
UNFINISHED = "unfinished"
_KEPT, _BEGUN = "kept", "begun.json"  # in `unfinished`: what batches gave, and of which run
_LOCK = ".lock"  # in `unfinished`, held by the run that writes there: the system frees it when the run dies
_REPLACED = "replaced.json"  # in `unfinished`, the old run's record, while the new files move up
LONGEST = 120  # characters of a name: file systems take 255 bytes
_DIGITS = 10  # of the hash
# The model and the task begin a name in any case; --out only says where results go, --parts and --shard which part of
# the work is done now. All other arguments are in the name, even --device and --batch-size: rounding depends on them,
# and a value next to the threshold may fall on its other side. Who compares two devices wants both runs.
_NOT_NAMED = ("command", "experiment", "model", "task", "out", "page", "parts", "shard")


def default_folder(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Path:
    """Return the default folder of a run, named by the model, the task and every argument that is not the default."""
    return Path("runs", args.experiment) / _name(vars(args), task_name(args), vars(parser.parse_args([])))


def _name(arguments: dict[str, Any], task: str, defaults: dict[str, Any]) -> str:
    """The name of a run's folder: different for different arguments, and possible on every file system.

    Where the arguments are not small letters and digits throughout, or too long, a hash of them is at the end.
    """
    changed = {
        name: arguments[name]
        for name, default in defaults.items()  # in the order in which they are declared
        if name not in _NOT_NAMED and _as_texts(arguments[name]) != _as_texts(default)
    }
    given = {"model": arguments["model"], "task": task} | changed
    parts = [short_name(arguments["model"]), task, *(_argument(name, value) for name, value in changed.items())]
    name = re.sub(r"[^\w.,=+-]+", "-", "-".join(parts), flags=re.ASCII)
    values = [text for value in given.values() if value is not True for text in _as_texts(value)]
    if len(name) <= LONGEST and all(_is_plain(text, defaults) for text in values):
        return name
    digest = short_hash(json.dumps({name: _as_texts(value) for name, value in given.items()}))[:_DIGITS]
    return f"{name[: LONGEST - 1 - _DIGITS].rstrip('-.')}-{digest}"


def _as_texts(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else () if value is None else (value,)
    return [str(each) for each in values]


def _argument(name: str, value: Any) -> str:
    name = name.replace("_", "-")
    return name if value is True else f"{name}={','.join(_as_texts(value))}"


def _is_plain(text: str, names: dict[str, Any]) -> bool:
    """Whether a value can be read back from a name: no letter was replaced, none is taken for the next argument.

    Capitals are not plain, because some file systems take them for small letters.
    """
    has_argument = any(f"-{name.replace('_', '-')}" in text for name in names)
    return re.fullmatch(r"[a-z0-9_=+.-]*[a-z0-9_]", text) is not None and not has_argument


def make_folder(folder: Path) -> None:
    """Make a folder and check that it can be written to, before anything that takes long."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("it cannot be written to")
    except OSError as error:
        raise NeuronShareError(f"The folder {str(folder)!r}: {error}; name another with --out.") from error


def write_whole(path: Path, text: str) -> None:
    """Write a file completely, or not at all, whichever other processes write it too."""
    _part_of(path, text).replace(path)


def _part_of(path: Path, text: str) -> Path:
    """Write what is to be a file, under a name of its own beside it."""
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")
    part.write_text(text, "utf-8")
    return part


def recorded(folder: Path) -> dict[str, Any]:
    """Read what the complete run in a folder has recorded; return nothing if there is none."""
    return _read(folder / RECORD)


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise NeuronShareError(f"{str(path)!r} cannot be read ({error}); remove it.") from error
    if not isinstance(record, dict) or not {"experiment", "files"} <= set(record):
        raise NeuronShareError(f"{str(path)!r} is not the record of a run; remove it, or name another folder.")
    return record


def _read_begun(path: Path) -> dict[str, Any] | None:
    """Read of which run the kept batches are; None if that is not known."""
    try:
        begun: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return begun


def _files(record: Path) -> list[str]:
    """Return the files of a run, all of which are in its folder."""
    return [name for name in _read(record).get("files", []) if Path(name).name == name]


class RunFolder:
    """The folder of one run, which alone writes its results there.

    Attributes:
        folder: where the run is once it is complete.
        unfinished: where it is until then.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.unfinished = folder, folder / UNFINISHED
        self._lock: IO[str] | None = None
        make_folder(folder)

    def open(self) -> RunFolder:
        """Take the folder for writing, unless it is taken already, and return this.

        Raises:
            NeuronShareError: a different run writes there, or the folder holds something else.
        """
        if self._lock is None:
            self._lock = _locked(self.unfinished)
            try:
                if (self.unfinished / RECORD).exists():
                    self.publish()
                self._empty()
            except BaseException:
                self.close()
                raise
        return self

    def kept(self, run: dict[str, Any], *, alone: bool) -> Path:
        """Return the folder for what the batches of a run give, without that of different runs.

        Args:
            run: what the results depend on.
            alone: whether no other processes work on the same run.

        Raises:
            NeuronShareError: other processes work, or may work, on a different run there.
        """
        kept = self.unfinished / _KEPT
        begun, run = kept / _BEGUN, json.loads(json.dumps(run))
        if _read_begun(begun) not in (None, run):
            at_work = any(map(is_locked, kept.rglob("records-*.bin")))
            if at_work or not alone:
                which = "a different run, which is at work" if at_work else "a different run"
                raise NeuronShareError(
                    f"The folder {str(kept)!r} holds parts of {which}; remove it, or name another with --out."
                )
            print(f"Removed what an unfinished, different run had left in {str(kept)!r}.")
            shutil.rmtree(kept)
        kept.mkdir(parents=True, exist_ok=True)
        (self.unfinished / _LOCK).touch()  # without it the folder is not known as ours
        if not begun.exists():
            put_first(_part_of(begun, json.dumps(run, indent=2, ensure_ascii=False)), begun)
        if _read_begun(begun) != run:
            raise NeuronShareError(f"A different run has begun in the folder {str(kept)!r}; name another with --out.")
        return kept

    def publish(self) -> None:
        """Move the complete run to its place and remove the old one; a move that was interrupted is continued."""
        record, replaced = self.folder / RECORD, self.unfinished / _REPLACED
        new, old = _files(self.unfinished / RECORD), _files(replaced) or _files(record)
        waiting = [name for name in new if (self.unfinished / name).exists()]
        foreign = [name for name in waiting if name not in old and os.path.lexists(self.folder / name)]
        if foreign:
            raise NeuronShareError(
                f"The folder {str(self.folder)!r} has files that no run wrote, by names that the run needs: "
                f"{', '.join(foreign)}. Move them away. The run is complete, in {str(self.unfinished)!r}, and the next "
                "run here first puts it in its place."
            )
        if record.exists():
            record.replace(replaced)
        for name in set(old) - set(new):
            (self.folder / name).unlink(missing_ok=True)
        for name in [*waiting, RECORD]:
            (self.unfinished / name).replace(self.folder / name)
        shutil.rmtree(self.unfinished / _KEPT, ignore_errors=True)

    def close(self) -> None:
        """Release the folder, and remove files of a run that is not complete; what its batches gave stays."""
        if self._lock is None:
            return
        try:
            if not (self.unfinished / RECORD).exists():
                self._empty()
                kept = self.unfinished / _KEPT
                if kept.exists() and {path.name for path in kept.iterdir()} <= {_BEGUN}:
                    shutil.rmtree(kept)  # no batch has run
                if not kept.exists():
                    (self.unfinished / _LOCK).unlink()
        finally:
            self._lock.close()
            with suppress(OSError):  # not empty: complete, with kept batches, or another run's by now
                self.unfinished.rmdir()

    def _empty(self) -> None:
        for left in self.unfinished.iterdir():
            if left.name not in (_LOCK, _KEPT):  # the lock goes last: without it the folder is not known as ours
                left.unlink()


def _locked(folder: Path) -> IO[str]:
    """Make the folder and take its lock; refuse if a different run has it or the folder is not ours."""
    path = folder / _LOCK
    while True:
        folder.mkdir(exist_ok=True)
        try:
            if not path.exists() and any(folder.iterdir()):
                raise NeuronShareError(f"{str(folder)!r} is not the folder of a run; move it, or choose --out.")
            lock = path.open("a")
            try:
                locked(lock)
            except BlockingIOError as error:
                lock.close()
                raise NeuronShareError(
                    f"Another run is writing to the folder {str(folder.parent)!r}; wait until it ends, or name another "
                    "with --out."
                ) from error
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
            lock.close()
        except FileNotFoundError:
            continue  # another run ended just now, and removed the folder

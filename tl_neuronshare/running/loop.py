"""The one loop over the batches of plans: progress, records on disk, several processes, and too little memory.

What a batch gives is a record, which depends on the batch's rows alone. So it is the same whichever process computes
it, and whether it is computed now or was read from disk. Records are taken into a result in the order of the plan.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from tqdm.auto import tqdm

from tl_neuronshare import models
from tl_neuronshare.checks import Options, is_count, option, or_none
from tl_neuronshare.errors import NeuronShareError, UnfinishedError
from tl_neuronshare.launch import warn
from tl_neuronshare.models import LensModel
from tl_neuronshare.running.plan import Batch, Plan
from tl_neuronshare.running.processes import Processes, launched
from tl_neuronshare.running.provenance import surroundings_of
from tl_neuronshare.running.shards import Record, Shards

Compute = Callable[[Batch], Record]
Keep = Callable[[list[int], Record], None]
_Value = TypeVar("_Value")


def _as_folder(name: str, value: Any) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise NeuronShareError(f"{name}={value!r} is not a folder; give its path.")
    if "\0" in str(value):
        raise NeuronShareError(f"{name}={value!r} is not a folder (a zero byte); give its path.")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # there is no such user
        raise NeuronShareError(f"{name}={value!r} is not a folder ({error}); give its path.") from error


def as_shard(name: str, value: Any) -> tuple[int, int]:
    """Which part of how many, written as "2/4" or given as (2, 4)."""
    parts = value.split("/") if isinstance(value, str) else value
    is_pair = isinstance(parts, tuple | list) and len(parts) == 2
    digits = [str(part) for part in parts if is_count(part) or isinstance(part, str)] if is_pair else []
    number, of = map(int, digits) if len(digits) == 2 and all(map(str.isdecimal, digits)) else (0, 0)
    if not 1 <= number <= of:
        raise NeuronShareError(f'{name}={value!r}; give which part of how many, such as "2/4", counted from 1.')
    return number, of


@dataclass(frozen=True)
class Keeping(Options):
    """Where a run keeps what its batches give, and which part of them this process computes."""

    out: str | Path | None = option(None, or_none(_as_folder))
    shard: tuple[int, int] | str | None = option(
        None,
        or_none(as_shard),
        help="compute only part I of N, for job arrays; the run that finds all parts in --out joins them",
        type=lambda text: as_shard("--shard", text),
        metavar="I/N",
    )

    @property
    def folder(self) -> Path | None:
        """The folder; None if nothing is kept."""
        return None if self.out is None else Path(self.out)

    @property
    def part(self) -> tuple[int, int] | None:
        """Which part of how many is computed; None for all."""
        return self.shard if isinstance(self.shard, tuple) else None

    def check_together(self) -> None:
        """Refuse a part without a folder in which the parts meet."""
        if self.shard is not None and self.out is None:
            raise NeuronShareError(f"shard={self.shard} needs out=, the folder in which the parts are joined.")

    def divided(self, names: Sequence[str]) -> dict[str, Keeping]:
        """Return the same for each of several loops, which have folders of their own in the folder.

        Raises:
            NeuronShareError: the folder holds something else.
        """
        if self.folder is None:
            return dict.fromkeys(names, self)
        other = {file.name for file in self.folder.iterdir()} - set(names) if self.folder.is_dir() else set()
        if other:
            raise NeuronShareError(
                f"The folder {str(self.folder)!r} holds other files ({min(other)}); name a new folder."
            )
        return {name: Keeping(self.folder / name, self.part) for name in names}

    def opened(self, model: LensModel, about: Callable[[], Mapping[str, Any]], among: Processes) -> Shards | None:
        """Open the folder; None if nothing is kept.

        Raises:
            NeuronShareError: as in `Shards`; or hooks of the user are on the model, which a folder cannot identify.
        """
        if self.folder is None:
            return None
        if models.has_hooks(model):
            raise NeuronShareError(
                f"out={str(self.out)!r}: hooks of your own are on the model, and a later call could not know whether "
                "they are the same; take them off, or leave out= out."
            )
        number, of = self.part or (1, 1)
        folder, name = self.folder, f"{number}-of-{of}-{among.rank + 1}-of-{among.size}"
        shards: list[Shards] = []

        def open_it(is_turn: bool) -> None:
            if is_turn:
                shards.append(Shards(folder, {**about(), **surroundings_of(model)}, name))

        for is_turn in (among.is_main, not among.is_main):  # the main process makes the folder, or refuses it
            among.together(partial(open_it, is_turn))
        return shards[0]


class Loop:
    """Goes through the batches of plans, and takes what they give into a result.

    Args:
        bar: a progress bar, which counts rows.
        among: the processes that share the batches.
        shards: the records on disk, if there are any.
        shard: which part of how many is computed here; the other parts are read.
    """

    def __init__(
        self,
        bar: Any = None,
        among: Processes | None = None,
        shards: Shards | None = None,
        shard: tuple[int, int] | None = None,
    ) -> None:
        self._bar, self._among, self.shards, self._shard = bar, among or Processes(), shards, shard
        self._most: int | None = None  # tokens in a batch, once memory has run out
        self._n_parts, self._n_missing = 0, 0
        self._is_mine: bool | None = None  # whether this process computes the present part; None: its share of batches
        self._stages: set[str] = set()  # those whose records nothing has been sealed of

    def __call__(self, plan: Plan, compute: Compute, keep: Keep, *, stage: str = "", shown: bool = True) -> None:
        """Compute each batch that has no record yet, and give all records to `keep`, in the order of the plan.

        Args:
            plan: the batches.
            compute: gives the record of a batch: tensors with the batch's rows on their first axis, in order; a row may
                have any number of entries. It does nothing else.
            keep: takes the rows of a batch and its record, which is on the CPU, into the result.
            stage: what is computed, different for each loop of a run.
            shown: whether the progress bar counts the rows.

        Raises:
            UnfinishedError: this process has computed its part, and other parts are missing.
            NeuronShareError: there is too little memory for a single row.
        """
        if self.shards or self._among.size > 1:
            stage = f"{stage} {plan.fingerprint}"
            self._stages.add(stage)
        known = self._known(stage)
        left = [number for number in range(len(plan.batches)) if number not in known]
        own = self._own(left, first=zlib.crc32(stage.encode()))
        self._count(sum(len(plan.batches[number]) for number in known) if shown else 0)

        def computed(number: int) -> Record:
            record = self._computed(plan, plan.batches[number], compute)
            if self.shards:
                self.shards.add(stage, number, record)
            self._count(len(plan.batches[number]) if shown else 0)
            return record

        if own == left and self._among.size == 1:  # nothing to wait for, so that no record has to be held
            for number, rows in enumerate(plan.batches):
                keep(rows, computed(number) if number not in known else self._read(stage, number))
            return
        records: dict[int, Record] = {}
        for of_process in self._among.together(lambda: {number: computed(number) for number in own}):
            records |= of_process
        self._count(sum(len(plan.batches[number]) for number in set(records) - set(own)) if shown else 0)
        if self._shard is not None and self.shards:
            self.shards.look()
            known = self._known(stage)
        if any(number not in records and number not in known for number in left):
            raise UnfinishedError("Other parts of the work are not done yet.")
        for number, rows in enumerate(plan.batches):
            keep(rows, records[number] if number in records else self._read(stage, number))

    def part(self, work: Callable[[], _Value], *, whole: bool = False) -> _Value | None:
        """Do a part of the run, and return what it gives; None if it needs what other processes have not done yet.

        Args:
            work: the part, which may have several loops.
            whole: whether a job array deals such parts to its processes, and not the batches in them. This is for
                parts in which one loop needs all that an earlier one gave.
        """
        if whole and self._shard is not None:
            number, of = self._shard
            self._is_mine, self._n_parts = self._n_parts % of == number - 1, self._n_parts + 1
        try:
            return work()
        except UnfinishedError:
            self._n_missing += 1
            return None
        finally:
            self._is_mine = None

    def seal(self, name: str, write: Callable[[Path], None]) -> None:
        """Write a file of what a finished part of the run gave, and remove its records; do nothing without a folder.

        In a job array records stay, since its other processes may need them.

        Args:
            name: the name of the file, which appears only when it is whole.
            write: writes the file at the path that it gets.
        """
        if self.shards is None:
            return
        shards = self.shards
        self.of_main(lambda: shards.put(name, write))
        if self._shard is None:
            self._among.together(lambda: shards.forget(self._stages))
        self._stages.clear()

    def clear(self, files: Iterable[Path] = ()) -> None:
        """Remove files of the folder, and all records, once the whole result is there; not in a job array."""
        if self.shards is None or self._shard is not None:
            return
        shards = self.shards
        self.of_main(lambda: shards.remove(files))
        self._among.together(shards.forget)

    def of_main(self, work: Callable[[], _Value]) -> _Value:
        """Do something in the main process, and return what it gives, in every process.

        So all of them decide alike about a folder in which a job array's other processes write at the same time.
        """
        return cast(_Value, self._among.together(lambda: work() if self._among.is_main else None)[0])

    def expect(self, n_rows: int) -> None:
        """Tell the progress bar how many rows all loops have together."""
        if self._bar is not None:
            self._bar.total = n_rows

    def finish(self) -> None:
        """Refuse a result of which parts are missing.

        Raises:
            UnfinishedError: there are such parts.
        """
        if self._n_missing and self._shard is not None and self.shards:
            number, of = self._shard
            raise UnfinishedError(
                f"Part {number} of {of} is done and kept in {str(self.shards.folder)!r}; other parts are not done yet. "
                "The call that finds all of them there, with or without shard=, gives the whole result."
            )

    def _known(self, stage: str) -> set[int]:
        """The batches that all processes of a launch have found records of.

        Raises:
            NeuronShareError: the processes do not run the same stage and plan.
        """
        known = self.shards.known(stage) if self.shards else set()
        of_all = self._among.gathered((stage, known))
        if len({of_process for of_process, _ in of_all}) > 1:
            raise NeuronShareError(
                "The processes of this launch are not at the same work; call the same function in each of them, with "
                "the same model, prompts and options. It deals the work to them by itself."
            )
        return set.intersection(*(of_process for _, of_process in of_all))

    def _own(self, left: list[int], first: int) -> list[int]:
        """The batches that this process computes, of those that have no record yet.

        `first` says who gets the first one. Otherwise many small plans would all be computed by the same process.
        """
        if self._shard is not None:
            number, of = self._shard
            if self._is_mine is None:
                left = [batch for batch in left if (batch + first) % of == number - 1]
            elif not self._is_mine:
                left = []
        return left[(self._among.rank + first) % self._among.size :: self._among.size]

    def _read(self, stage: str, batch: int) -> Record:
        assert self.shards is not None  # it is known from there
        return self.shards.read(stage, batch)

    def _count(self, n_rows: int) -> None:
        if self._bar is not None:
            self._bar.update(n_rows)

    def _computed(self, plan: Plan, rows: list[int], compute: Compute) -> Record:
        """The record of a batch; it is cut in halves, and these again, as long as memory does not suffice."""
        batch = plan.batch(rows)
        n_tokens = sum(each.tokens.numel() for each in (batch, batch.source) if each is not None)
        half = (len(rows) + 1) // 2
        if len(rows) == 1 or self._most is None or n_tokens <= self._most:
            try:
                record = compute(batch)
                return dict(zip(record, models.on_cpu(list(record.values())), strict=True))
            except (RuntimeError, MemoryError) as error:
                if not _is_lack_of_memory(error):
                    raise
                if len(rows) == 1:
                    raise NeuronShareError(
                        f"There is too little memory to run a single row of {n_tokens} tokens ({error}). Use a GPU "
                        "with more memory, a smaller dtype, or a model that is split over several GPUs (device_map)."
                    ) from error
            self._cut(n_tokens, half * n_tokens // len(rows))
        first, second = (self._computed(plan, part, compute) for part in (rows[:half], rows[half:]))
        return {name: torch.cat([first[name], second[name]]) for name in first}

    def _cut(self, n_tokens: int, most: int) -> None:
        """From now on, put fewer tokens in a batch, since there was too little memory for so many; say so once."""
        from accelerate.utils.memory import clear_device_cache

        clear_device_cache(garbage_collection=True)
        if self._most is None:
            warn(
                f"Memory does not suffice for a batch of {n_tokens} tokens; it is run in halves, and later batches "
                "are made smaller too. A smaller batch_size avoids this."
            )
        self._most = most


def _is_lack_of_memory(error: Exception) -> bool:
    from accelerate.utils.memory import should_reduce_batch_size

    # What a driver or a library says if it finds no memory for itself.
    by_others = any(text in str(error) for text in ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"))
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error) or by_others


def each_of(works: Iterable[Callable[[], _Value]]) -> list[_Value]:
    """Do several works, each with loops of its own, and return what they give.

    Raises:
        UnfinishedError: this process has done its part of all of them, and other processes have not yet.
    """
    missing: list[UnfinishedError] = []

    def attempt(work: Callable[[], _Value]) -> Iterator[_Value]:
        try:
            yield work()
        except UnfinishedError as error:
            missing.append(error)

    done = [value for work in works for value in attempt(work)]
    if missing:
        raise missing[0]
    return done


@contextmanager
def running(
    model: LensModel,
    task: str,
    *,
    n_rows: int | None = None,
    progress: bool = True,
    keeping: Keeping | None = None,
    about: Callable[[], Mapping[str, Any]] = dict,
) -> Iterator[Loop]:
    """Give a loop over batches, and restore the model's state at the end, whatever happens.

    Args:
        model: the model that runs the batches.
        task: the name of the progress bar.
        n_rows: how many rows all plans have together, if that is known.
        progress: whether to show a progress bar, if the run takes more than two seconds.
        keeping: where records are kept; nowhere by default.
        about: gives what the results depend on, to which a folder of records belongs.

    Raises:
        UnfinishedError: a part of the work was done, and other parts are missing.
    """
    keeping, among = keeping or Keeping(), launched()
    with (
        keeping.opened(model, about, among) or nullcontext() as shards,
        models.left_as_found(model),
        tqdm(total=n_rows, desc=task, unit=" prompts", disable=not (progress and among.is_main), delay=2) as bar,
    ):
        loop = Loop(bar, among, shards, keeping.part)
        yield loop
        loop.finish()

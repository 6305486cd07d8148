"""The processes of one launch (`accelerate launch`, `torchrun`), which share the batches of every plan.

Each process runs the same program with a model of its own, computes a part of the batches, and gets the results of all
others. So every process ends with the whole result, and only the command that launches the program changes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch.distributed as dist

_Value = TypeVar("_Value")
# A process that dies closes its connections, which the others notice at once; a slow one is waited for.
_PATIENCE = timedelta(days=7)
_OF_A_LAUNCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what a launcher tells each process


@dataclass(frozen=True)
class Processes:
    """The processes of a launch, seen from one of them; a single one by default.

    Example:
        >>> Processes().gathered("mine")
        ['mine']
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process shows progress and writes what is written once."""
        return self.rank == 0

    def gathered(self, own: _Value) -> list[_Value]:
        """Return what each process gives here, in the order of the processes; all of them must call this."""
        if self.size == 1:
            return [own]
        of_all: list[Any] = [None] * self.size
        dist.all_gather_object(of_all, own, group=self.group)
        return of_all

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self.gathered(None)


def launched() -> Processes:
    """Return the processes of this launch; they are connected if they are not yet."""
    if not dist.is_available():
        return Processes()
    if not dist.is_initialized():
        if not set(_OF_A_LAUNCH) <= set(os.environ) or int(os.environ["WORLD_SIZE"]) < 2:
            return Processes()
        dist.init_process_group("gloo", timeout=_PATIENCE)
    if dist.get_world_size() < 2:
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size(), _group())


@cache
def _group() -> Any:
    """The connection for results, which are on the CPU; a user's own may be for GPUs only."""
    return dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=_PATIENCE)

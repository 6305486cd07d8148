"""The processes of one launch (`accelerate launch`, `torchrun`), which share the batches of every plan.

Each process runs the same program with a model of its own, computes a part of the batches, and gets the results of all
others. So every process ends with the whole result, and only the command that launches the program changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch.distributed as dist

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.launch import is_launched

_Value = TypeVar("_Value")
# A process that dies closes its connections, which the others notice at once; a slow one is waited for.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """The processes of a launch, seen from one of them; a single one by default.

    Examples:
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

    def together(self, work: Callable[[], _Value]) -> list[_Value]:
        """Do work in each process, and return what it gives in each; all of them must call this.

        Raises:
            NeuronShareError: the work has failed in a different process. So all stop, and none waits for another.
        """
        if self.size == 1:
            return [work()]
        own: Any = None
        failure: Exception | None = None
        try:
            own = work()
        except Exception as error:
            failure = error
        of_all = self.gathered((own, None if failure is None else f"{type(failure).__name__}: {failure}"))
        if failure is not None:
            raise failure
        for rank, (_, said) in enumerate(of_all):
            if said is not None:
                raise NeuronShareError(f"Process {rank} of {self.size} has failed ({said}).")
        return [of_process for of_process, _ in of_all]


def launched() -> Processes:
    """Return the processes of this launch; they are connected if they are not yet."""
    if not dist.is_available():
        return Processes()
    if not dist.is_initialized():
        if not is_launched():
            return Processes()
        dist.init_process_group("gloo")
    if dist.get_world_size() < 2:
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size(), _group(dist.group.WORLD))


@cache
def _group(world: Any) -> Any:
    """The connection for results. The user's own may be for GPUs only, or may not wait long for slow processes."""
    return dist.new_group(backend="gloo", timeout=_PATIENCE)

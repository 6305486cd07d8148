"""What a launcher (`accelerate launch`, `torchrun`) tells each of the processes that it starts."""

from __future__ import annotations

import os
import sys
import warnings

import torch.distributed as dist

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def is_launched() -> bool:
    """Return whether this is one of several processes of a launcher.

    RANK and the like alone do not show it: a batch system's script may have them, without other processes.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and dist.is_available() and dist.is_torchelastic_launched()


def rank() -> int:
    """Return the number of this process; 0 is the main one, which alone shows progress, warns and writes results."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ["RANK"]) if is_launched() else 0


def local_rank() -> int | None:
    """Return the number of this process on its machine; None without a launcher."""
    return int(os.environ["LOCAL_RANK"]) if is_launched() else None


def warn(message: str) -> None:
    """Warn of the line outside this package that called it, in the main process only."""
    if rank() != 0:
        return
    frame, level = sys._getframe(), 0
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level + 1)

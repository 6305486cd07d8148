"""How much memory a function takes at most beyond the model and its prompts, in a process of its own.

Counted is anonymous memory, which no file can give back; on a GPU, what torch allocates there.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Bench, Job, again, numbered, passes_of

import tl_neuronshare as ns

SUBJECT = "memory"
FUNCTIONS = ("bare trunk", "categorise", "attribute", "evaluate", "ablation_study")
_EVERY = 0.002  # seconds between two looks at the memory


def measure(bench: Bench, place: Place) -> None:
    """Add the rows."""
    for name in FUNCTIONS:
        command = [sys.executable, __file__, name, *place.arguments, "--examples", str(bench.sizes.fewer)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        bench.add(SUBJECT, f"{name}, {9 * bench.sizes.fewer} prompts", value=f"{int(said.split()[-1]) / 2**20:.0f} MiB")


class Place:
    """Where a process finds a model that another one has made or found."""

    def __init__(self, directory: str, backend: str, device: str | None, dtype: str) -> None:
        self.arguments = [directory, backend, "--dtype", dtype, *(["--device", device] if device else [])]


def _job(name: str, model: Any, prompts: ns.ParallelPrompts) -> Job:
    if name == "bare trunk":
        return partial(again, model, passes_of(model, partial(ns.categorise, model, prompts, progress=False)))
    if name == "categorise":
        return partial(ns.categorise, model, prompts, progress=False)
    if name == "evaluate":
        return partial(ns.evaluate, model, prompts, progress=False)
    sharing = ns.categorise(model, prompts, progress=False)
    if name == "attribute":
        return partial(ns.attribute, model, prompts, sharing, progress=False)
    return partial(ns.ablation_study, model, prompts, sharing, types=["all-shared"], seeds=[0], progress=False)


def _anonymous() -> int:
    """The bytes of anonymous memory that this process holds."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"RssAnon:\s+(\d+)", status)[0])


@contextmanager
def watched(every: float = _EVERY, *, gives_back: bool = False) -> Iterator[list[int]]:
    """Collect how much memory is held, again and again, maybe after giving back what was freed."""
    seen, is_over = [_anonymous()], threading.Event()

    def look() -> None:
        while not is_over.wait(every):
            if gives_back:
                give_back()
            seen.append(_anonymous())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


def _most(job: Job, device: torch.device) -> int:
    """The most memory beyond what is held before the job."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return torch.cuda.max_memory_allocated() - before
    give_back()
    with watched() as seen:
        job()
    return max(seen) - seen[0]


def give_back() -> None:
    """Give what was freed back to the system, where the C library can: otherwise a job would use it unseen."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    """Print the bytes of one function; the process is told where the model is."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("function", "directory", "backend"):
        parser.add_argument(name)
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--examples", type=int, required=True)
    args = parser.parse_args()
    model = ns.load_model(args.directory, backend=args.backend, device=args.device, dtype=getattr(torch, args.dtype))
    _job(args.function, model, numbered(1))()  # what is done once for a model
    job = _job(args.function, model, numbered(args.examples))
    print(_most(job, next(model.parameters()).device))


if __name__ == "__main__":
    main()

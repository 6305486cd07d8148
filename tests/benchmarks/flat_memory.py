"""Whether memory grows with the examples: `categorise(out=...)` and each table, for so many of them.

    python tests/benchmarks/flat_memory.py 10000
    python tests/benchmarks/flat_memory.py 100000      # half an hour on one core

Counted is anonymous memory beyond that of the model and the prompts. What was freed is given back to the system before
each look, since what the C library keeps for later differs from run to run. The facts are repeated under numbered
wordings.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import memory
from common import numbered

import tl_neuronshare as ns

TABLES = ("summary", "by_language", "persistence", "never_activated", "overlap")
EVERY = 0.05  # seconds between two looks, each of which gives memory back


def measured(name: str, job: Callable[[], Any]) -> Any:
    """Print the most memory that a job takes, and its time; return its result."""
    memory.give_back()
    start = time.perf_counter()
    with memory.watched(EVERY, gives_back=True) as seen:
        result = job()
    mebibytes = (max(seen) - seen[0]) / 2**20
    print(f"{name}: {mebibytes:.1f} MiB, {time.perf_counter() - start:.0f} s", flush=True)
    return result


def main() -> None:
    """Print the memory of each function."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("examples", type=int)
    args = parser.parse_args()
    model = ns.demo.load_model(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        ns.categorise(model, numbered(1), progress=False)  # what is done once for a model
        prompts = numbered(args.examples)
        job = partial(ns.categorise, model, prompts, out=f"{folder}/kept", progress=False)
        sharing = measured("categorise", job)
        for name in TABLES:
            measured(name, getattr(sharing, name))
        measured("language_overlap", partial(ns.language_overlap, sharing, n_resamples=1000))
        parts = {"half": sharing[: len(sharing) // 2], "whole": sharing}
        measured("side_by_side", partial(ns.side_by_side, parts, name="task"))


if __name__ == "__main__":
    main()

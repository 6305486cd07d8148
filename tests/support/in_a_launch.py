"""What each process of a launch runs, or a task of an array: every function, with and without a folder.

    torchrun --nproc-per-node 2 tests/support/in_a_launch.py RESULTS [--out FOLDER] [--shard I/N] [--names ...]

The process writes what each result says to RESULTS/NAME.RANK, or that other parts are not done yet.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import tl_neuronshare as ns
from support.runs import HOW, KEPT, SHARED, facts, passes
from tl_neuronshare import launch
from tl_neuronshare.running import loop, segments


def kill(results: Path) -> Exception:
    """End this process at once; the error is never raised."""
    (results / "killed").touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return SystemError()


def main() -> None:
    """Make the runs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shard")
    parser.add_argument("--kill", type=int, help="kill process 1 after so many forward passes of each run")
    parser.add_argument("--most-tokens", type=float, default=float("inf"), help="there is no memory for more")
    parser.add_argument("--own-prompts", action="store_true", help="each process has prompts of its own")
    parser.add_argument("--names", nargs="*")
    given = parser.parse_args()
    model, rank = ns.demo.load_model(backend="bridge", device="cpu"), launch.rank()
    prompts = ns.demo.prompts().select(["en", "zh"])[:5]
    segments._MOST_PROMPTS = 6
    HOW["progress"], loop.tqdm = True, partial(loop.tqdm, mininterval=0)
    given.results.mkdir(exist_ok=True)
    for name in ("choice", "exact"):  # make the checks
        SHARED[name](model, prompts)
    if given.own_prompts:
        prompts = prompts[rank : rank + 2]
    for name in given.names or (SHARED if given.out is None else KEPT):
        to: dict[str, Any] = {} if given.out is None else {"out": given.out / name.replace(" ", "-")}
        to |= {} if given.shard is None else {"shard": given.shard}
        limit = given.kill if given.kill is not None and rank == 1 else float("inf")
        try:
            with passes(model, limit=limit, stop=partial(kill, given.results), most_tokens=given.most_tokens):
                said = facts(SHARED[name](model, prompts, **to))
        except ns.NeuronShareError as error:
            said = f"{type(error).__name__}: {error}"
        (given.results / f"{name}.{rank}").write_text(said, "utf-8")


if __name__ == "__main__":
    main()

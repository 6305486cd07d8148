"""Measure what the library costs, everything side by side in one run.

    python tests/benchmarks/run.py                                   # three models, an hour and a half on two cores
    python tests/benchmarks/run.py --write                           # and put the table into docs/performance.md
    python tests/benchmarks/run.py --model bloom --only categorise --examples 40
    python tests/benchmarks/run.py --model DIRECTORY --device cuda --dtype bfloat16

In each round the jobs of a comparison take turns. A ratio is the median over rounds, with the smallest and the largest.
What each row is, docs/performance.md says.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import ablating
import attributing
import categorising
import evaluating
import growing
import kinds
import memory
import tabulating
import torch
from common import CLOCKS, Bench, Row, Sizes

import tl_neuronshare as ns
from tl_neuronshare import models

SUBJECTS = (categorising, attributing, evaluating, ablating)
DOCUMENT = Path(__file__).parents[2] / "docs" / "performance.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=list(kinds.DENSE), metavar="MODEL",
                        help=f"{', '.join(kinds.KINDS)}, or a directory (default: the dense ones)")  # fmt: skip
    parser.add_argument("--only", default="", metavar="TEXT", help="only subjects with this in their name")
    parser.add_argument("--examples", type=int, metavar="N", help="at most so many examples")
    parser.add_argument("--repeats", type=int, metavar="N", help="how many rounds")
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--clock", choices=CLOCKS, default="wall",
                        help="cpu: processor seconds, which other work on the machine disturbs less")  # fmt: skip
    parser.add_argument("--write", action="store_true", help=f"write the table into docs/{DOCUMENT.name}")
    args = parser.parse_args()
    if args.write and args.only:
        parser.error("--write is for a whole table; leave out --only")
    return args


def sizes_for(kind: str, args: argparse.Namespace) -> Sizes:
    """How much is measured on a model."""
    sizes = kinds.SIZES.get(kind, kinds.OTHER)
    most = args.examples or sizes.examples
    return replace(
        sizes,
        examples=min(most, sizes.examples) if args.examples else sizes.examples,
        fewer=min(most, sizes.fewer),
        study=min(most, sizes.study),
        single=min(most, sizes.single),
        repeats=args.repeats or sizes.repeats,
    )


def rows_of(kind: str, args: argparse.Namespace, temporary: Path) -> list[Row]:
    """Measure one model."""
    directory = kinds.directory_of(kind, temporary)
    backend = "hooked" if kind in ("built-in", "bloom") and models.has_hooked_transformer() else "bridge"
    model = ns.load_model(directory, backend=backend, device=args.device, dtype=getattr(torch, args.dtype))
    name = kind if kind in kinds.KINDS else directory.name
    bench = Bench(name, model, sizes_for(kind, args), args.clock)
    for subject in SUBJECTS:
        if args.only in subject.SUBJECT:
            subject.measure(bench)
    if kind == "built-in":
        for subject in (tabulating, growing):
            if args.only in subject.SUBJECT:
                subject.measure(bench)
    if args.only in memory.SUBJECT:
        memory.measure(bench, memory.Place(str(directory), backend, args.device, args.dtype))
    return bench.rows


def machine() -> str:
    """The machine in words."""
    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()}"
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores ({platform.machine()}), {gib:.0f} GiB of memory, torch on {torch.get_num_threads()} threads"


def document(rows: Sequence[Row], minutes: float) -> str:
    """The table in Markdown, with what it takes to repeat it."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "transformer_lens"))
    lines = [
        f"`python tests/benchmarks/run.py --write`: {minutes:.0f} minutes on {machine()}; Python "
        f"{platform.python_version()}, {packages}.",
        "",
        "| model | function | what | against | median | range | must be |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *("| " + " | ".join(vars(row).values()) + " |" for row in rows),
    ]
    return "\n".join(lines)


def write(text: str) -> None:
    """Put the table between its two markers."""
    whole = DOCUMENT.read_text(encoding="utf-8")
    between = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
    DOCUMENT.write_text(between.sub(lambda _: f"{BEGIN}\n{text}\n{END}", whole), encoding="utf-8")


def main() -> None:
    """Measure, print, and maybe write."""
    args = arguments()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    start = time.perf_counter()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for kind in args.model:
            if (why_not := kinds.why_not(kind)) is not None:
                print(f"{kind} is left out: {why_not}", file=sys.stderr)
                continue
            rows += rows_of(kind, args, Path(temporary))
    text = document(rows, (time.perf_counter() - start) / 60)
    print(f"\n{text}")
    if args.write:
        write(text)


if __name__ == "__main__":
    main()

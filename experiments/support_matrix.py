"""Which models work: judges tiny random models of every architecture, and writes docs/models.md. `--help` says more."""

from __future__ import annotations

import argparse
import contextlib
import csv
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the literal reference and the tiny models are the tests'

RESULTS = ROOT / "docs" / "models"


def cases() -> list[tuple[Any, str]]:
    """Every tiny model, and the class of TransformerLens that it is loaded with."""
    from support.architectures import HOOKED, architectures
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    from tl_neuronshare.models import has_hooked_transformer

    known = architectures(SUPPORTED_ARCHITECTURES)
    hooked = [(known[name], "hooked") for name in HOOKED] if has_hooked_transformer() else []
    return [*((case, "bridge") for case in known.values()), *hooked]


def judged_apart(case: Any, backend: str, seconds: int) -> dict[str, str]:
    """Judge a model in a process of its own, so that neither a crash nor a patched class touches the next."""
    from support.judging import FIELDS, RAW

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    folder = Path(tempfile.mkdtemp())
    process = context.Process(target=_judge, args=(sender, case, folder / "model", backend))
    process.start()
    sender.close()
    row = dict.fromkeys(FIELDS, "–") | {
        "case": case.name,
        "backend": backend,
        "architecture": case.architecture,
        "model_type": case.model_type,
        "verdict": RAW,
    }
    try:
        if receiver.poll(seconds):
            row = receiver.recv()
        else:
            row["notes"] = f"not done after {seconds} seconds"
    except EOFError:
        row["notes"] = "its process ended without a word"
    finally:
        process.kill()
        process.join()
        shutil.rmtree(folder, ignore_errors=True)
    return row


def _judge(sender: Any, case: Any, directory: Path, backend: str) -> None:
    from support.judging import judge

    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        row = judge(case, directory, backend)
    sender.send(row)
    sender.close()


def read(file: Path) -> list[dict[str, str]]:
    """Read a file of results; there may be none."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def rows_of(wanted: list[tuple[Any, str]], file: Path, seconds: int) -> Iterator[dict[str, str]]:
    """Judge what the file does not have yet, and add it there at once."""
    from support.judging import FIELDS

    done = {(row["case"], row["backend"]): row for row in read(file)}
    file.parent.mkdir(parents=True, exist_ok=True)
    if not done:
        with file.open("w", encoding="utf-8", newline="") as opened:
            csv.DictWriter(opened, FIELDS, lineterminator="\n").writeheader()
    for case, backend in wanted:
        row = done.get((case.name, backend))
        if row is None:
            row = judged_apart(case, backend, seconds)
            with file.open("a", encoding="utf-8", newline="") as opened:
                csv.DictWriter(opened, FIELDS, lineterminator="\n").writerow(row)
        yield row


def run(arguments: list[str]) -> None:
    """Judge all models, or those named, with the installed TransformerLens, and write the page from all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="TEXT", help="judge the cases whose names contain one of these")
    parser.add_argument("--seconds", type=int, default=90, help="how long a case may take")
    parser.add_argument("--again", action="store_true", help="judge these cases even where the file has them")
    given = parser.parse_args(arguments)

    import torch
    from transformers.utils import logging as of_transformers

    import tl_neuronshare as ns  # noqa: F401  # before the first fork, so that no process loads it again

    torch.set_num_threads(1)
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    logging.disable(logging.WARNING)
    file = RESULTS / f"transformer_lens-{version('transformer_lens')}.csv"
    wanted = cases()
    if given.only is not None:
        wanted = [(case, backend) for case, backend in wanted if any(text in case.name for text in given.only)]
    if given.again:
        again = {(case.name, backend) for case, backend in wanted}
        keep = [row for row in read(file) if (row["case"], row["backend"]) not in again]
        _write(file, keep)
    started = time.monotonic()
    for number, row in enumerate(rows_of(wanted, file, given.seconds), start=1):
        print(f"{number}/{len(wanted)} {row['verdict']:24} {row['backend']} {row['case']}  {row['notes']}", flush=True)
    order = {(case.name, backend): number for number, (case, backend) in enumerate(cases())}
    rows = [row for row in read(file) if (row["case"], row["backend"]) in order]
    _write(file, sorted(rows, key=lambda row: order[row["case"], row["backend"]]))
    print(f"{time.monotonic() - started:.0f} seconds; {file}")


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    from support.judging import FIELDS

    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    run(sys.argv[1:])

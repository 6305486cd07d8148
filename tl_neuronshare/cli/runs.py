"""One run of an analysis: what it writes, what it finds, and the record of how it was made."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

import tl_neuronshare as ns
from tl_neuronshare import checks
from tl_neuronshare.cli.arguments import given, task_name, without_shard
from tl_neuronshare.cli.folders import RECORD, RunFolder, recorded, write_whole
from tl_neuronshare.cli.inputs import categorise, inputs_hash, load_model, load_prompts, report_of, short_name
from tl_neuronshare.errors import NeuronShareError, UnfinishedError
from tl_neuronshare.models.fingerprint import fingerprint_of_weights
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.prompts import short_hash
from tl_neuronshare.results.tables import why_not_mismatched
from tl_neuronshare.running import provenance
from tl_neuronshare.running.plan import Running
from tl_neuronshare.running.processes import launched
from tl_neuronshare.running.recording import Reading

BESIDE_CHANCE = ("mismatched", "excess", "independent")  # columns of `summary` that stand beside the mean
SITE_NOT_CHOSEN = (
    "post, act(gate) times up, since no --site was named. WARNING: its sign is positive for about half of the neurons "
    "whatever the prompt says. --site gate asks which neurons the gate opens, and is what we recommend"
)
_ALIKE = 0.2  # how far the shares of prompts that end alike may differ between pairs of languages
PACKAGES = (*provenance.PACKAGES, "babel", "pandas", "numpy", "matplotlib", "lang2vec")


@dataclass(frozen=True)
class Finding:
    """What the paper found, what a run found, and whether they agree (None: cannot be said), by which criterion.

    A control is a question that the paper does not ask.
    """

    claim: str
    here: str
    agrees: bool | None
    criterion: str = ""
    is_control: bool = False

    @property
    def verdict(self) -> str:
        """Say in words whether they agree, and by which criterion."""
        word = "cannot be said" if self.agrees is None else "yes" if self.agrees else "no"
        return f"{word} ({self.criterion})" if self.criterion else word

    def __str__(self) -> str:
        if self.is_control:
            return f"\nBeside the paper: {self.claim}\nThis run: {self.here}"
        return f"\nThe paper: {self.claim}\nThis run: {self.here}\nThey agree: {self.verdict}"


class Run:
    """What one run writes to its folder, and `run.json`, which says how it was made.

    It takes the place of an older run in the folder when its block ends. Where that ends with an error, it is removed,
    except for what its batches gave. Of several processes only the main one writes.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        # Options that cannot be used are refused before a folder is made.
        checks.count("--seed", args.seed, least=0)
        for kind in (Reading, Running):
            kind(**given(args, kind))
        not_recorded = ("experiment", "command", "page", "shard")
        arguments = {name: value for name, value in vars(args).items() if name not in not_recorded}
        self.args = args
        self.record: dict[str, Any] = {
            "experiment": args.experiment,
            "command": without_shard(args.command),
            "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()},
            "versions": versions(),
            "seed": args.seed,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": {},
        }
        self.findings: list[Finding] = []
        self._files: list[str] = []
        self._tables: dict[str, pd.DataFrame] = {}
        self._since = time.perf_counter()
        self._is_main = launched().is_main
        self._folder = RunFolder(args.out)
        self._kept: Path | None = None
        if self._is_main and args.shard is None:  # the parts of a job array share the folder until one joins them
            self._folder.open()
        random.seed(args.seed)
        np.random.seed(args.seed)
        torch.manual_seed(args.seed)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None and self._is_main:
                self._finish()
        finally:
            self._folder.close()

    def begin(self) -> tuple[ns.ParallelPrompts, LensModel]:
        """Begin an analysis: load the prompts and the model."""
        prompts = load_prompts(self.args)
        print(report_of(prompts))
        if prompts.report is not None:
            self.record["prompts"] = prompts.report.to_dict("records")
        model = load_model(self.args)
        self._claim(model)
        if self.args.chat_template:
            prompts = prompts.with_chat_template(model.tokenizer)
        self.record["inputs"] = inputs_hash(self.args, prompts)
        self.timed("load")
        run = _identity(self.record)
        if self.args.shard is not None and _identity(recorded(self.args.out)) == json.loads(json.dumps(run)):
            print(f"All parts are done and joined already, in {str(self.args.out)!r}.")
            raise SystemExit
        if self._is_main:
            self._kept = self._folder.kept(run, alone=self.args.shard is None)
        self._kept = launched().gathered(self._kept)[0]
        return prompts, model

    def start(self, *, dealt: bool = True) -> tuple[ns.ParallelPrompts, LensModel, ns.NeuronSharing]:
        """Begin an analysis that needs the types of neurons too.

        Args:
            dealt: as in `keeping`.
        """
        prompts, model = self.begin()
        sharing = categorise(self.args, model, prompts, **self.keeping("categorise", dealt=dealt))
        self.timed("categorise")
        self.record["sharing"] = sharing.metadata
        self.say_how_it_was_read(sharing)
        return prompts, model, sharing

    def say_how_it_was_read(self, sharing: ns.NeuronSharing, of: str = "") -> None:
        """Record how prompts end in two languages, and a site that nobody named; of some prompts if there are several.

        Args:
            sharing: what was read.
            of: the prompts, if there are several.
        """
        of = f" ({of})" if of else ""
        if not sharing.metadata.get("site_chosen", True):
            self.control(f"which value of the gated MLPs' neurons is read?{of}", SITE_NOT_CHOSEN)
        self.control(f"do the prompts of two languages end in the same token?{of}", last_tokens(sharing))

    def keeping(self, name: str, *, dealt: bool = True) -> dict[str, Any]:
        """Return the options that keep what a function's batches give.

        Args:
            name: what the function does, different for each call of a run.
            dealt: whether the processes of a job array share the work; what all of them need, each does for itself.
        """
        assert self._kept is not None  # `begin` comes first
        shard: tuple[int, int] | None = self.args.shard
        if shard is None or dealt:
            return {"out": self._kept / name, "shard": shard}
        return {"out": self._kept / f"{name} of {shard[0]} of {shard[1]}"}

    def _claim(self, model: LensModel) -> None:
        """Refuse a folder that holds a run of another model, or of another analysis."""
        self.record["weights"] = fingerprint_of_weights(model)
        old = recorded(self.args.out)
        for what, key in (("experiment", "experiment"), ("model (weights)", "weights")):
            if key in old and old[key] != self.record[key]:
                raise ns.NeuronShareError(
                    f"The folder {str(self.args.out)!r} holds a run of another {what}: {old[key]}, not "
                    f"{self.record[key]}; name another with --out, or remove that one."
                )

    def timed(self, part: str) -> None:
        """Record how long the part that has just ended took."""
        now = time.perf_counter()
        self.record["seconds"][part], self._since = round(now - self._since, 3), now

    def table(self, table: pd.DataFrame, name: str, *, index: bool = False) -> None:
        """Write a table as CSV."""
        if not self._writes():
            return
        self._tables[name] = table.reset_index() if index else table
        table.to_csv(self._folder.unfinished / f"{name}.csv", index=index)
        self._files.append(f"{name}.csv")

    def show(self, table: pd.DataFrame, name: str) -> None:
        """Show a table on the page only."""
        self._tables[name] = table

    def save(self, figure: Figure, name: str) -> None:
        """Write a figure as PNG and PDF."""
        if not self._writes():
            return
        for end in ("png", "pdf"):
            figure.savefig(self._folder.unfinished / f"{name}.{end}", dpi=200)
            self._files.append(f"{name}.{end}")

    def tensors(self, write: Callable[[Path], None], name: str) -> None:
        """Let a function write a safetensors file at the path that it gets."""
        if not self._writes():
            return
        write(self._folder.unfinished / f"{name}.safetensors")
        self._files.append(f"{name}.safetensors")

    def _writes(self) -> bool:
        """Take the folder for writing; return False in processes that leave this to the main one."""
        if self._is_main:
            try:
                self._folder.open()
            except NeuronShareError as error:
                if self.args.shard is None:
                    raise
                raise UnfinishedError(f"All parts are done, and a different process joins them. ({error})") from error
        return self._is_main

    def found(self, paper: str, here: str, agrees: Any, *, criterion: str = "") -> None:
        """Record what the paper found, what this run found, and whether they agree; None if that cannot be said."""
        self.findings.append(Finding(paper, here, None if agrees is None else bool(agrees), criterion))

    def control(self, question: str, here: str) -> None:
        """Record what this run found if the paper has nothing to compare with."""
        self.findings.append(Finding(question, here, None, is_control=True))

    def _finish(self) -> None:
        """Write run.json, move the run to its folder, and print what was found and where everything is."""
        for finding in self.findings:
            print(finding)
        self.record |= {"findings": [asdict(finding) for finding in self.findings], "files": self._files}
        self._writes()
        if self.args.page and self._tables:
            title = f"{self.args.experiment}: {short_name(self.args.model)} on {task_name(self.args)}"
            ns.page(self._folder.unfinished / "page.html", title=title, **self._tables)
            self._files.append("page.html")
        text = json.dumps(self.record, indent=2, ensure_ascii=False) + "\n"
        write_whole(self._folder.unfinished / RECORD, text)
        self._folder.publish()
        print(f"\nWritten to {self.args.out}: {', '.join([*self._files, RECORD])}")


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs the same; the folder does not, which may have been moved or be named in a different way."""
    arguments = {name: value for name, value in record.get("arguments", {}).items() if name != "out"}
    return {"arguments": arguments, **{key: record.get(key) for key in ("experiment", "versions", "weights", "inputs")}}


def versions() -> dict[str, str]:
    """Return versions of everything that a result depends on, and a hash of our code, which changes between them."""
    files = sorted(Path(ns.__file__).parent.rglob("*.py"))
    code = short_hash("".join(file.read_text("utf-8") for file in files))
    return {"python": sys.version.split()[0], "code": code, **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def with_interval(
    row: Any, value: str = "value", low: str = "low", high: str = "high", *, digits: int = 2, sign: bool = False
) -> str:
    """Return a value of a table's row with its interval as text; an empty text if there is not a value."""
    if pd.isna(row[value]):
        return ""
    texts = [f"{row[name]:{'+' if sign else ''}.{digits}f}" for name in (value, low, high)]
    return texts[0] if pd.isna(row[low]) else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def count_of_seeds(n_seeds: int) -> str:
    """Say in words how many draws there are."""
    return "1 seed" if n_seeds == 1 else f"{n_seeds} seeds"


def excess_of(sharing: ns.NeuronSharing, rows: pd.DataFrame) -> str:
    """Say how much more neurons are of a type than with mismatched examples, from a type's rows of `summary`."""
    if why_not := why_not_mismatched(sharing):
        return f"with another example in each language {why_not}"
    said = (
        f"with another example in each language {rows['mismatched'].mean():.2f} %, so that "
        f"{rows['excess'].mean():+.2f} points are of the same input"
    )
    if rows["excess_low"].isna().all():
        return f"{said} (too few examples for an interval)"
    above, below = int((rows["excess_low"] > 0).sum()), int((rows["excess_high"] < 0).sum())
    return f"{said} (its interval is above 0 in {above} of {len(rows)} layers, and below in {below})"


def last_tokens(sharing: ns.NeuronSharing) -> str:
    """Say how often the prompts of two languages end in the same token, and what that means for the types."""
    table = sharing.same_last_token().to_numpy()
    pairs = [(a, b) for a in range(len(table)) for b in range(a)]
    shares = np.array([table[pair] for pair in pairs])
    said = f"in {100 * shares.mean():.0f} % of the examples, as a mean over pairs of languages"
    if sharing.metadata["position"] not in ("last", -1) or not shares.any():
        return said
    if shares.min() == 1:
        return f"{said}. WARNING: all types are of this token, whose own neurons count as shared."
    if shares.max() - shares.min() <= _ALIKE:
        return said
    alike = [pair for pair in pairs if table[pair] > shares.mean()]
    overlap = sharing.overlap().to_numpy()
    ends = [np.mean([overlap[pair] for pair in pairs if (pair in alike) == yes]) for yes in (True, False)]
    names = ", ".join(f"{sharing.languages[b]}-{sharing.languages[a]}" for a, b in alike)
    return (
        f"{said}, but {100 * shares.max():.0f} % of one pair and {100 * shares.min():.0f} % of a different one. "
        f"WARNING: pairs that end alike more often ({names}) share {ends[0]:.2f} of their neurons and other pairs "
        f"{ends[1]:.2f} (mean Jaccard index), which may be due to the token alone. Use prompts that end alike."
    )


def title_of(sharing: ns.NeuronSharing, *, prompts: str = "", examples: str = "", how: str = "") -> str:
    """Make a figure's title: the model, the prompts, how many there are, and how it was made."""
    of = sharing.metadata
    how = how or f"{len(sharing.languages)} languages, site {of['site']}, position {of['position']}"
    return f"{short_name(of['model'])} on {prompts or of['prompts']}: {examples or len(sharing)} examples, {how}"

"""What all experiments share: their arguments, the prompts and model these ask for, and the folder of a run."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import inspect
import json
import logging
import os
import random
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

import tl_neuronshare as ns
from tl_neuronshare.maths.activation import Position, as_position
from tl_neuronshare.models.fingerprint import fingerprint_of_weights
from tl_neuronshare.models.layers import Site
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.models.loading import Backend
from tl_neuronshare.prompts import short_hash

DEMO = "demo"
RECORD = "run.json"
DTYPES = ("float32", "bfloat16", "float16")
TASKS: dict[str, Callable[..., ns.ParallelPrompts]] = {name: getattr(ns.tasks, name) for name in ns.tasks.__all__}
PACKAGES = (
    *("tl_neuronshare", "transformer_lens", "transformers", "torch", "babel", "pandas", "numpy", "matplotlib"),
    "lang2vec",
)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every experiment takes; an experiment adds its own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--model",
        default=DEMO,
        metavar="NAME_OR_DIRECTORY",
        help="a name on the Hugging Face hub, or a local directory (default: the built-in model)",
    )
    parser.add_argument("--backend", default="auto", choices=get_args(Backend), help="TransformerLens's model class")
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: a GPU if there is one)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the weights (default: float32)")
    parser.add_argument(
        "--task",
        choices=[DEMO, *TASKS],
        help="the prompts (default: the built-in model's own for the built-in model, world_facts for others)",
    )
    _add_source(parser)
    parser.add_argument(
        "--chat-template", action="store_true", help="each prompt as a user's message, by the tokenizer's template"
    )
    parser.add_argument(
        "--languages",
        nargs="+",
        metavar="LANGUAGE",
        help="some of the task's languages (default: the task's own; all: all that it has)",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="the first N examples (default: 200, 0 for all)", default=200
    )
    parser.add_argument(
        "--site", default="post", choices=get_args(Site), help="which neurons of gated MLPs (default: post)"
    )
    parser.add_argument(
        "--position",
        type=_position,
        default="last",
        help="which token is read: last, any, all, or a negative index from the prompt's end (default: last)",
    )
    parser.add_argument("--threshold", type=float, default=0.0, help="activated is above this (default: 0)")
    parser.add_argument("--batch-size", type=_batch_size, default="auto", metavar="N", help="prompts a forward pass")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is random (default: 0)")
    parser.set_defaults(also=[])  # add_also adds the argument
    parser.add_argument("--out", type=Path, help="folder to write to (default: runs/EXPERIMENT/MODEL-TASK-OPTIONS)")
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    """Where a task comes from, and its options."""
    parser.add_argument("--source", help="of the task: a local file or folder, or the name of a data set on the hub")
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="of the task, such as relations=P37 form=cloze; a comma makes a list (relations=P17,P36)",
    )


def add_also(parser: argparse.ArgumentParser) -> None:
    """Other tasks to compare with."""
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="TASK_AND_ARGUMENTS",
        help='another task, such as "mgsm --source mgsm"; several times for several',
    )


def add_others(parser: argparse.ArgumentParser) -> None:
    """Other models to compare with."""
    parser.add_argument(
        "--others", nargs="+", default=[], metavar="NAME_OR_DIRECTORY", help="other models to compare with"
    )


def _position(text: str) -> Position:
    try:
        return as_position(int(text) if text.lstrip("-").isdigit() else text)
    except ns.NeuronShareError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def ablated_position(text: str) -> str | int:
    """At which tokens to ablate: all, last, or a negative index."""
    if text in ("all", "last"):
        return text
    if text.lstrip("-").isdigit() and int(text) < 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is none of all, last, or a negative index from the prompt's end")


def _batch_size(text: str) -> str | int:
    return text if text == "auto" else int(text)


def load_model(args: argparse.Namespace) -> LensModel:
    """The model that was asked for."""
    if args.model == DEMO:
        if args.dtype != "float32":
            raise ns.NeuronShareError(f"--dtype {args.dtype}: the built-in model is computed in float32 only.")
        return ns.demo.load_model(backend=args.backend, device=args.device)
    return ns.load_model(args.model, backend=args.backend, device=args.device, dtype=getattr(torch, args.dtype))


def load_prompts(args: argparse.Namespace) -> ns.ParallelPrompts:
    """The prompts that were asked for."""
    if args.limit < 0:
        raise ns.NeuronShareError(f"--limit {args.limit} is negative; ask for some examples, or 0 for all.")
    limit = args.limit or None
    name = task_name(args)
    given = list(map(_option, args.options))
    options = dict(given)
    if len(options) < len(given):
        raise ns.NeuronShareError(f"--options {' '.join(args.options)}: one stands there twice; a comma makes a list.")
    if args.source:
        options["source"] = args.source
    if name == DEMO:
        if options:
            raise ns.NeuronShareError(f"--task {DEMO} takes no --source and no --options; name another --task.")
        prompts = ns.demo.prompts()[:limit]
        return prompts if args.languages in (None, ["all"]) else prompts.select(args.languages)
    known = inspect.signature(TASKS[name]).parameters
    of_all = ("languages", "limit", "seed")  # which have arguments of their own
    for option in options:
        if option not in known or option in of_all:
            own = [option for option in known if option not in (*of_all, "source")]
            raise ns.NeuronShareError(f"--task {name} has no option {option!r}; it has {', '.join(own)}.")
    if "source" in known and known["source"].default is inspect.Parameter.empty and not args.source:
        how_to_get = sys.modules[TASKS[name].__module__].HOW_TO_GET
        raise ns.NeuronShareError(f"--task {name} needs a --source. {how_to_get}")
    languages: dict[str, Any] = {"languages": args.languages} if args.languages else {}
    if args.languages == ["all"]:
        languages = {"languages": "all"} if "source" in known else {}
    return TASKS[name](limit=limit, seed=args.seed, **languages, **options)


def load_also(args: argparse.Namespace) -> dict[str, ns.ParallelPrompts]:
    """The prompts of --also, by their names, which differ from each other and from the task's own."""
    found = {load_prompts(args).name: None} if args.also else {}
    for text in args.also:
        own = argparse.ArgumentParser(prog=f"--also {text!r}", allow_abbrev=False, add_help=False)
        own.add_argument("task", choices=[DEMO, *TASKS])
        _add_source(own)
        given = own.parse_args(words(text, "--also"))
        prompts = load_prompts(argparse.Namespace(**{**vars(args), **vars(given)}))
        if prompts.name in found:
            raise ns.NeuronShareError(f"--also {text}: {prompts.name} is there already; name another task.")
        found[prompts.name] = prompts
    return {name: prompts for name, prompts in found.items() if prompts is not None}


def words(text: str, option: str) -> list[str]:
    """The words of an argument that is itself a command line."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ns.NeuronShareError(f"{option} {text}: {error}; close every quotation.") from error


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ns.NeuronShareError(f"--options {text}: write NAME=VALUE.")
    if "," in value:
        return name, [part for part in value.split(",") if part]
    return name, int(value) if value.lstrip("-").isdigit() else value


def report_of(prompts: ns.ParallelPrompts) -> str:
    """What was kept and dropped, a line for each reason."""
    lines = [repr(prompts)]
    if prompts.report is not None:
        for (outcome, reason), rows in prompts.report.groupby(["outcome", "reason"], sort=False):
            counts = (
                f"{row.language} {row.count}" if row.count else row.language for row in rows.itertuples(index=False)
            )
            lines.append(f"  {outcome}, {reason}: {', '.join(counts)}")
    return "\n".join(lines)


def task_name(args: argparse.Namespace) -> str:
    """The task, where none was named too."""
    return args.task or (DEMO if args.model == DEMO else "world_facts")


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
        """In words."""
        word = "cannot be said" if self.agrees is None else "yes" if self.agrees else "no"
        return f"{word} ({self.criterion})" if self.criterion else word


class Run:
    """A folder for what one run of an experiment writes, and `run.json`, which says how it was made."""

    def __init__(self, experiment: str, args: argparse.Namespace) -> None:
        self.folder = args.out or self.folder_of(experiment, args)
        self.record: dict[str, Any] = {
            "experiment": experiment,
            "command": sys.argv[1:],
            "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
            "versions": versions(),
            "seed": args.seed,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": {},
        }
        self._since = time.perf_counter()
        self.findings: list[Finding] = []
        self._files: list[str] = []
        make_folder(self.folder)
        random.seed(args.seed)
        np.random.seed(args.seed)
        torch.manual_seed(args.seed)

    def timed(self, part: str) -> None:
        """Note how long the part that just ended took."""
        now = time.perf_counter()
        self.record["seconds"][part], self._since = round(now - self._since, 3), now

    @staticmethod
    def folder_of(experiment: str, args: argparse.Namespace) -> Path:
        """Where it writes to if nothing else was said."""
        model = short_name(args.model).replace("/", "--")
        of_task = "-".join([task_name(args), *args.options, *["chat"] * args.chat_template])
        return Path("runs") / experiment / re.sub(r"[^\w.,=+-]+|->", "-", f"{model}-{of_task}")

    def claim(self, model: LensModel) -> None:
        """Make the folder this model's: refused where it holds a run of another model, or of another experiment.

        The old run.json goes at once, so that a run that fails half-way is not taken for a complete one.
        """
        weights = fingerprint_of_weights(model)
        for what, ours, theirs in (
            ("experiment", self.record["experiment"], recorded(self.folder).get("experiment")),
            ("model (weights)", weights, recorded(self.folder).get("weights")),
        ):
            if theirs not in (None, ours):
                raise ns.NeuronShareError(
                    f"The folder {str(self.folder)!r} holds a run of another {what}: {theirs}, not {ours}; name "
                    "another with --out, or remove that one."
                )
        self.record["weights"] = weights
        (self.folder / RECORD).unlink(missing_ok=True)

    def table(self, table: pd.DataFrame, name: str, *, index: bool = False) -> None:
        """Write a table as CSV."""
        table.to_csv(self.folder / f"{name}.csv", index=index)
        self._files.append(f"{name}.csv")

    def save(self, figure: Figure, name: str) -> None:
        """Write a figure as PNG and PDF."""
        for end in ("png", "pdf"):
            figure.savefig(self.folder / f"{name}.{end}", dpi=200)
            self._files.append(f"{name}.{end}")

    def found(self, paper: str, here: str, agrees: bool | None, *, criterion: str = "") -> None:
        """Note what the paper found, what this run found, and whether they agree; None where that cannot be said."""
        self.findings.append(Finding(paper, here, None if agrees is None else bool(agrees), criterion))

    def control(self, question: str, here: str) -> None:
        """Note what this run found where the paper has nothing to compare with."""
        self.findings.append(Finding(question, here, None, is_control=True))

    def finish(self, **extra: Any) -> None:
        """Write run.json, in one go: where it is, the run is complete. Say where everything is."""
        for one in self.findings:
            print(f"\n{'Beside the paper' if one.is_control else 'The paper'}: {one.claim}\nThis run: {one.here}")
            if not one.is_control:
                print(f"They agree: {one.verdict}")
        self.record |= {**extra, "findings": [asdict(one) for one in self.findings], "files": self._files}
        text = json.dumps(self.record, indent=2, ensure_ascii=False) + "\n"
        write_whole(self.folder / RECORD, text)
        print(f"\nWritten to {self.folder}: {', '.join([*self._files, RECORD])}")


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text, "utf-8")
    unfinished.replace(path)


def make_folder(folder: Path) -> None:
    """Make a folder, and be sure that it can be written to, before anything that takes long."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("it cannot be written to")
    except OSError as error:
        raise ns.NeuronShareError(f"The folder {str(folder)!r}: {error}; name another with --out.") from error


def versions() -> dict[str, str]:
    """Of whatever a result may hang on; of our own code, which changes between versions, a hash too."""
    files = sorted([*Path(ns.__file__).parent.rglob("*.py"), *Path(__file__).parent.glob("*.py")])
    code = short_hash("".join(file.read_text("utf-8") for file in files))
    return {"python": sys.version.split()[0], "code": code, **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def recorded(folder: Path) -> dict[str, Any]:
    """What the complete run in a folder has recorded; nothing where there is none."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ns.NeuronShareError(f"{str(folder / RECORD)!r} cannot be read ({error}); remove it.") from error
    if not isinstance(record, dict):
        raise ns.NeuronShareError(f"{str(folder / RECORD)!r} is no record of a run; remove it, or name another folder.")
    return record


def begin(experiment: str, args: argparse.Namespace) -> tuple[Run, ns.ParallelPrompts, LensModel]:
    """What every experiment begins with: its run, the prompts and the model, as asked for."""
    run = Run(experiment, args)
    prompts = load_prompts(args)
    print(report_of(prompts))
    if prompts.report is not None:
        run.record["prompts"] = prompts.report.to_dict("records")
    model = load_model(args)
    run.claim(model)
    if args.chat_template:
        prompts = prompts.with_chat_template(model.tokenizer)
    run.record["inputs"] = inputs_hash(args, prompts)
    run.timed("load")
    return run, prompts, model


def inputs_hash(args: argparse.Namespace, prompts: ns.ParallelPrompts) -> str:
    """What identifies all that an experiment reads but for models: prompts, answers, choices, and files of text."""
    texts = [one.to_frame().to_json() for one in (prompts, *load_also(args).values())]
    folder = getattr(args, "texts", None)
    files = sorted(Path(folder).glob("*.txt")) if folder else []
    return short_hash("".join([*texts, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)]))


def categorise(args: argparse.Namespace, model: LensModel, prompts: ns.ParallelPrompts, **others: Any) -> Any:
    """The types of neurons as asked for, but for what is named."""
    options = {name: getattr(args, name) for name in ("site", "position", "threshold", "batch_size")}
    return ns.categorise(model, prompts, **{**options, **others})


def start(experiment: str, args: argparse.Namespace) -> tuple[Run, ns.ParallelPrompts, LensModel, ns.NeuronSharing]:
    """What most experiments begin with: `begin`, and the types of neurons."""
    run, prompts, model = begin(experiment, args)
    sharing = categorise(args, model, prompts)
    run.timed("categorise")
    run.record["sharing"] = sharing.metadata
    return run, prompts, model, sharing


def short_name(model: str) -> str:
    """A model's name in figures: of a directory the last part."""
    return Path(model).name if Path(model).exists() else model


def title_of(sharing: ns.NeuronSharing, *, prompts: str = "", examples: str = "", how: str = "") -> str:
    """What a figure shows: the model, the prompts, how many, and how it was made: by default, what was read."""
    of = sharing.metadata
    how = how or f"{len(sharing.languages)} languages, site {of['site']}, position {of['position']}"
    return f"{short_name(of['model'])} on {prompts or of['prompts']}: {examples or len(sharing)} examples, {how}"


def run_main(main: Callable[[], None]) -> None:
    """Run an experiment; what is wrong with the input is said in a line, without a traceback."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
    try:
        main()
    except ns.NeuronShareError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}. Is the disk full, or the folder read-only? Name another with --out.")

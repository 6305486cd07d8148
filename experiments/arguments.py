"""What all experiments share: their arguments, the prompts and model these ask for, and the folder of a run."""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import os
import random
import re
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from matplotlib.figure import Figure

import tl_neuronshare as ns
from tl_neuronshare.activation import Position, as_position
from tl_neuronshare.models import Backend, LensModel, Site

DEMO = "demo"
DTYPES = ("float32", "bfloat16", "float16")
TASKS: dict[str, Callable[..., ns.ParallelPrompts]] = {name: getattr(ns.tasks, name) for name in ns.tasks.__all__}
PACKAGES = ("tl_neuronshare", "transformer_lens", "transformers", "torch", "babel", "pandas", "numpy")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every experiment takes; an experiment adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    parser.add_argument("--source", help="of the task: a local file or folder, or the name of a data set on the hub")
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="of the task, such as relations=P37 form=cloze; a comma makes a list (relations=P17,P36)",
    )
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
    parser.add_argument("--out", type=Path, help="folder to write to (default: runs/EXPERIMENT/MODEL-TASK-OPTIONS)")
    return parser


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


class Run:
    """A folder for what one run of an experiment writes, and `run.json`, which says how it was made."""

    def __init__(self, experiment: str, args: argparse.Namespace) -> None:
        model = Path(args.model).name if Path(args.model).is_dir() else args.model.replace("/", "--")
        of_task = "-".join([task_name(args), *args.options, *["chat"] * args.chat_template])
        self.folder = args.out or Path("runs") / experiment / re.sub(r"[^\w.,=+-]+|->", "-", f"{model}-{of_task}")
        self.record: dict[str, Any] = {
            "experiment": experiment,
            "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
            "versions": {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}},
            "seed": args.seed,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": {},
        }
        self._since = time.perf_counter()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError("it cannot be written to")
        except OSError as error:
            raise ns.NeuronShareError(f"The folder {str(self.folder)!r}: {error}; name another with --out.") from error
        random.seed(args.seed)
        np.random.seed(args.seed)
        torch.manual_seed(args.seed)

    def timed(self, part: str) -> None:
        """Note how long the part that just ended took."""
        now = time.perf_counter()
        self.record["seconds"][part], self._since = round(now - self._since, 3), now

    def save(self, figure: Figure, name: str) -> None:
        """Write a figure as PNG and PDF."""
        figure.savefig(self.folder / f"{name}.png", dpi=200)
        figure.savefig(self.folder / f"{name}.pdf")

    def finish(self, **extra: Any) -> None:
        """Write run.json."""
        self.record.update(extra)
        (self.folder / "run.json").write_text(json.dumps(self.record, indent=2, ensure_ascii=False) + "\n", "utf-8")


def start(experiment: str, args: argparse.Namespace) -> tuple[Run, ns.ParallelPrompts, LensModel, ns.NeuronSharing]:
    """What every experiment begins with: its run, the prompts, the model, and the types of neurons, as asked for."""
    run = Run(experiment, args)
    prompts = load_prompts(args)
    print(report_of(prompts))
    if prompts.report is not None:
        run.record["prompts"] = prompts.report.to_dict("records")
    model = load_model(args)
    if args.chat_template:
        prompts = prompts.with_chat_template(model.tokenizer)
    run.timed("load")
    sharing = ns.categorise(
        model,
        prompts,
        site=args.site,
        position=args.position,
        threshold=args.threshold,
        batch_size=args.batch_size,
    )
    run.timed("categorise")
    return run, prompts, model, sharing


def run_main(main: Callable[[], None]) -> None:
    """Run an experiment; what is wrong with the input is said in a line, without a traceback."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
    try:
        main()
    except ns.NeuronShareError as error:
        sys.exit(f"error: {error}")

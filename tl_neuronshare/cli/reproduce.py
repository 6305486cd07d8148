"""Every analysis and figure of the paper for one model, beside what chance would give, in one page: report.html.

    tl-neuronshare reproduce                                  # the built-in model, nine languages
    tl-neuronshare reproduce --model DIRECTORY --task fact_probing --source mpararel_reviewed \
        --options relations=P36 --also "mgsm --source mgsm" --others OTHER_DIRECTORY --with "ablation --seeds 1"

Runs each experiment, with the arguments that all of them share, in a process and a folder of its own. What is done
already, for the same model, prompts, arguments and versions, is not done again. Where one fails, it is named, and the
others go on.
"""

from __future__ import annotations

import argparse
import ctypes
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tl_neuronshare as ns
from tl_neuronshare.cli import arguments, report
from tl_neuronshare.cli import command as command_of
from tl_neuronshare.cli import title as title_of_command
from tl_neuronshare.cli.folders import make_folder, recorded
from tl_neuronshare.cli.inputs import inputs_hash, load_model, load_prompts, short_name, words
from tl_neuronshare.cli.runs import versions
from tl_neuronshare.models.fingerprint import fingerprint_of_weights
from tl_neuronshare.running.processes import launched

# In the order of the page; with what an experiment must be told whatever was said for all.
PARTS: dict[str, tuple[str, ...]] = {
    "patterns": (),
    "tasks": (),
    "persistence": (),
    "tokens": ("--position", "any"),
    "thresholds": ("--threshold", "0"),
    "languages": (),
    "models": (),
    "attribution": (),
    "ablation": (),
}
REFUSED = ("--model", "--out", "--also", "--others", "--chat-template", "--help", "-h")  # of --with
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
LAST_WORDS = 25  # lines of a part that failed


def parser() -> argparse.ArgumentParser:
    """Make a parser for the shared arguments and those of a reproduction."""
    parser = arguments.parser(__name__, __doc__)
    _add_own(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Run the parts that are not done yet, and write the page again after each part."""
    if launched().size > 1:
        raise ns.NeuronShareError(
            "reproduce starts its parts by itself. Launch the command of each part over several processes instead, or "
            "divide the work with --shard."
        )
    page = args.out / "report.html"
    make_folder(args.out)
    _refuse_other_pages(page)
    commands = _commands(args)
    expected = _expected(args, commands)
    _refuse_other_models(args.out, expected.weights)
    print(f"Writing to {args.out}: {', '.join(commands)}")
    parts = _there_already(args.out, commands)
    for name, command in commands.items():
        part = _part(name, command, args.out / name, expected)
        if part is None:
            continue
        parts[name] = part
        report.write(
            [parts[name] for name in PARTS if name in parts],
            page,
            title=expected.title,
            command=_shown("reproduce", args.command),
        )
    print(f"\nWritten: {page}")
    failed = [name for name in commands if name in parts and parts[name].error]
    if failed:
        sys.exit(f"error: {len(failed)} of {len(commands)} parts failed: {', '.join(failed)}. The page says why.")


def _add_own(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that are not passed on to parts as they are."""
    arguments.add_also(parser)
    arguments.add_others(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which (default: all)")
    parser.add_argument(
        "--with",
        dest="extra",
        action="append",
        default=[],
        metavar="PART_AND_ARGUMENTS",
        help='arguments for one part, such as "ablation --seeds 1"; several times for several',
    )


def _commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """Return the arguments of each part's command."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_own(own)
    own.add_argument("--out")
    _, shared = own.parse_known_args(args.command)
    extra: dict[str, list[str]] = {}
    for text in args.extra:
        name, *given = words(text, "--with") or [""]
        if any(word.split("=")[0] in REFUSED for word in given):
            raise ns.NeuronShareError(f"--with {text!r}: {', '.join(REFUSED)} are not arguments of a part.")
        if name not in PARTS:
            raise ns.NeuronShareError(f"--with {text!r}: begin with a part, one of {', '.join(PARTS)}.")
        extra.setdefault(name, []).extend(given)
    also = [word for text in args.also for word in ("--also", text)]
    others = ["--others", *args.others] if args.others else []
    return {
        name: [
            *shared,
            *needed,
            *(also if name == "tasks" else others if name == "models" else []),
            *extra.get(name, []),
            *("--out", str(args.out / name)),  # in the end: see _is_done
        ]
        for name, needed in PARTS.items()
        if name in args.parts
    }


@dataclass(frozen=True)
class Expected:
    """What a part that is done must have recorded, and what the page is called."""

    weights: str
    others: list[str]
    inputs: dict[str, str]
    title: str


def _expected(args: argparse.Namespace, commands: dict[str, list[str]]) -> Expected:
    """Load what the parts will read; models go to the CPU, so that they take no memory from the parts."""
    model = load_model(args, device="cpu")
    inputs: dict[str, str] = {}
    known: dict[str, ns.ParallelPrompts] = {}  # most parts read the same
    for name, command in commands.items():  # a part may have been given a limit, or a task, of its own
        of_part = command_of(name).parser().parse_args(command)
        key = str([getattr(of_part, each) for each in ("task", "source", "options", "languages", "limit", "seed")])
        if key not in known:
            prompts = load_prompts(of_part)
            known[key] = prompts.with_chat_template(model.tokenizer) if args.chat_template else prompts
        inputs[name] = inputs_hash(of_part, known[key])
    title = f"{short_name(str(model.cfg.model_name))} on {load_prompts(args).name}"
    weights, others = fingerprint_of_weights(model), args.others if "models" in commands else []
    del model
    weights_of_others = [fingerprint_of_weights(load_model(args, model=other, device="cpu")) for other in others]
    return Expected(weights, weights_of_others, inputs, title)


def _refuse_other_pages(page: Path) -> None:
    if page.exists() and report.GENERATOR not in page.read_text("utf-8", errors="replace"):
        raise ns.NeuronShareError(f"{str(page)!r} is not the page of a reproduction; name another folder with --out.")


def _refuse_other_models(folder: Path, weights: str) -> None:
    """Refuse, before anything runs, a part's folder that holds a run of a different model."""
    for name in PARTS:
        theirs = recorded(folder / name).get("weights")
        if theirs not in (None, weights):
            raise ns.NeuronShareError(
                f"The folder {str(folder / name)!r} holds a run of another model (weights {theirs}, not {weights}); "
                "name another folder with --out."
            )


def _there_already(folder: Path, commands: dict[str, list[str]]) -> dict[str, report.Part]:
    """Find complete parts that are not asked for now, for the page."""
    records = {name: recorded(folder / name) for name in PARTS if name not in commands}
    return {
        name: _described(name, record["command"], folder / name)
        for name, record in records.items()
        if _is_complete(folder / name, record)
    }


def _described(name: str, command: Sequence[str], folder: Path, *, error: str = "") -> report.Part:
    return report.Part(name, folder, title_of_command(name), _shown(name, command), error)


def _part(name: str, command: list[str], folder: Path, expected: Expected) -> report.Part | None:
    """Run one part, unless it is done; None if other processes of a job array have not done their share of it."""
    before = recorded(folder)
    if _is_done(name, command, folder, expected):
        print(f"{name}: done already", flush=True)
        return _described(name, command, folder)
    print(f"{name}: ", end="", flush=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "tl_neuronshare", name, *command],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        preexec_fn=_end_with_the_parent if sys.platform == "linux" else None,  # there are no threads
    )
    seconds = round(time.perf_counter() - start)
    after = recorded(folder)
    if done.returncode == 0 and after != before and _is_complete(folder, after):
        print(f"{seconds} s", flush=True)
        return _described(name, command, folder)
    last, error = _last_words(done)
    if done.returncode == 0 and "--shard" in command:
        print(f"its share is done after {seconds} s; {last}", flush=True)
        return None
    print(f"failed after {seconds} s: {last}", flush=True)
    return _described(name, command, folder, error=error)


def _end_with_the_parent() -> None:
    """Have the system kill this process when its parent ends, so that the next run finds the folder free."""
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def _last_words(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """Return the last output of a part that failed: one line of it, and more."""
    lines = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
    error = "\n".join([*lines[-LAST_WORDS:], f"(exit status {done.returncode})"])
    if done.returncode < 0:
        error += f"\nended by {signal.Signals(-done.returncode).name}; for SIGKILL, memory may have run out"
    return lines[-1], error


def _is_complete(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the folder has all files of a complete run."""
    return "findings" in record and all((folder / name).is_file() for name in record["files"])


def _is_done(name: str, command: list[str], folder: Path, expected: Expected) -> bool:
    """Whether the folder has a complete run of the same models, inputs, arguments (except --out) and versions."""
    record = recorded(folder)
    return (
        _is_complete(folder, record)
        and record["command"][:-2] == arguments.without_shard(command)[:-2]
        and record["weights"] == expected.weights
        and record["inputs"] == expected.inputs[name]
        and record["versions"] == versions()
        and record.get("others", []) == (expected.others if name == "models" else [])
    )


def _shown(name: str, command: Sequence[str]) -> str:
    return shlex.join(["tl-neuronshare", name, *command])

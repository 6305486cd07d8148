"""Every analysis and figure of the paper for one model, beside what chance would give, in one page: report.html.

    python experiments/reproduce.py                                  # the built-in model, nine languages
    python experiments/reproduce.py --model DIRECTORY --task fact_probing --source mpararel_reviewed \
        --options relations=P36 --also "mgsm --source mgsm" --others OTHER_DIRECTORY --with "ablation --seeds 1"

Runs each experiment, with the arguments that all of them share, in a process and a folder of its own. What is done
already, for the same model, prompts, arguments and versions, is not done again. Where one fails, it is named, and the
others go on.
"""

from __future__ import annotations

import argparse
import ast
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arguments
import report
import tl_neuronshare as ns
from tl_neuronshare.models.fingerprint import fingerprint_of_weights
from tl_neuronshare.models.lens import LensModel

HERE = Path(__file__).parent
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
LAST_WORDS = 25  # lines of a part that failed


def main() -> None:
    """Run what is not done yet; after each part write the page anew."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for parser in (whole := arguments.parser(__doc__), own):
        _add_own(parser)
    args = whole.parse_args()
    _, shared = own.parse_known_args()
    if args.out is None:
        args.out = arguments.Run.folder_of("reproduce", args)
    arguments.make_folder(args.out)
    commands = _commands(args, shared)
    expected = _expected(args, commands)
    _refuse_other_models(args.out, expected.weights)
    print(f"Writing to {args.out}: {', '.join(commands)}")
    page, parts = args.out / "report.html", _there_already(args.out, commands)
    for name, command in commands.items():
        parts[name] = _part(name, command, args.out / name, expected)
        report.write(
            [parts[one] for one in PARTS if one in parts],
            page,
            title=expected.title,
            command=_shown(["experiments/reproduce.py", *sys.argv[1:]]),
        )
    print(f"\nWritten: {page}")
    failed = [name for name in commands if parts[name].error]
    if failed:
        sys.exit(f"error: {len(failed)} of {len(commands)} parts failed: {', '.join(failed)}. The page says why.")


def _add_own(parser: argparse.ArgumentParser) -> None:
    """Arguments that are not handed on as they are."""
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
    if not any(action.dest == "out" for action in parser._actions):
        parser.add_argument("--out", type=Path)


def _commands(args: argparse.Namespace, shared: list[str]) -> dict[str, list[str]]:
    """What each part is started with."""
    extra: dict[str, list[str]] = {}
    for text in args.extra:
        name, *given = arguments.words(text, "--with") or [""]
        if any(one.split("=")[0] in REFUSED for one in given):
            raise ns.NeuronShareError(f"--with {text!r}: {', '.join(REFUSED)} are no arguments of a part.")
        if name not in PARTS:
            raise ns.NeuronShareError(f"--with {text!r}: begin with a part, one of {', '.join(PARTS)}.")
        extra.setdefault(name, []).extend(given)
    also = [part for text in args.also for part in ("--also", text)]
    others = ["--others", *args.others] if args.others else []
    return {
        name: [
            *shared,
            *own,
            *(also if name == "tasks" else others if name == "models" else []),
            *extra.get(name, []),
            *("--out", str(args.out / name)),  # in the end: see _is_done
        ]
        for name, own in PARTS.items()
        if name in args.parts
    }


@dataclass(frozen=True)
class Expected:
    """What a part that is done must have recorded; and what the page is called."""

    weights: str
    others: list[str]
    inputs: dict[str, str]
    title: str


def _expected(args: argparse.Namespace, commands: dict[str, list[str]]) -> Expected:
    """Load whatever the parts will read: models on the CPU, where they take nothing from the parts."""

    def load(name: str) -> LensModel:
        return arguments.load_model(argparse.Namespace(**{**vars(args), "model": name, "device": "cpu"}))

    model = load(args.model)
    inputs: dict[str, str] = {}
    known: dict[str, ns.ParallelPrompts] = {}  # most parts read the same
    for name, command in commands.items():  # a part may have been given a limit, or a task, of its own
        parser = arguments.parser(None)
        parser.add_argument("--texts")
        if name == "tasks":
            arguments.add_also(parser)
        of_part, _ = parser.parse_known_args(command)
        key = str([getattr(of_part, one) for one in ("task", "source", "options", "languages", "limit", "seed")])
        if key not in known:
            prompts = arguments.load_prompts(of_part)
            known[key] = prompts.with_chat_template(model.tokenizer) if args.chat_template else prompts
        inputs[name] = arguments.inputs_hash(of_part, known[key])
    title = f"{arguments.short_name(str(model.cfg.model_name))} on {arguments.load_prompts(args).name}"
    weights, others = fingerprint_of_weights(model), args.others if "models" in commands else []
    del model
    return Expected(weights, [fingerprint_of_weights(load(name)) for name in others], inputs, title)


def _refuse_other_models(folder: Path, weights: str) -> None:
    """Before anything is run: no part's folder may hold a run of another model."""
    for name in PARTS:
        theirs = arguments.recorded(folder / name).get("weights")
        if theirs not in (None, weights):
            raise ns.NeuronShareError(
                f"The folder {str(folder / name)!r} holds a run of another model (weights {theirs}, not {weights}); "
                "name another folder with --out."
            )


def _there_already(folder: Path, commands: dict[str, list[str]]) -> dict[str, report.Part]:
    """Complete parts that are not asked for now, for the page."""
    records = {name: arguments.recorded(folder / name) for name in PARTS if name not in commands}
    return {
        name: _described(name, record["command"], folder / name)
        for name, record in records.items()
        if _is_complete(folder / name, record)
    }


def _described(name: str, command: list[str], folder: Path, *, error: str = "") -> report.Part:
    docstring = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text("utf-8"))) or name
    title = docstring.splitlines()[0].removesuffix(".")
    return report.Part(name, folder, title, _shown([f"experiments/{name}.py", *command]), error)


def _part(name: str, command: list[str], folder: Path, expected: Expected) -> report.Part:
    """Run one part, unless it is done."""
    if _is_done(name, command, folder, expected):
        print(f"{name}: done already", flush=True)
        return _described(name, command, folder)
    print(f"{name}: ", end="", flush=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, HERE / f"{name}.py", *command],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    seconds = round(time.perf_counter() - start)
    if done.returncode == 0 and _is_complete(folder, arguments.recorded(folder)):
        print(f"{seconds} s", flush=True)
        return _described(name, command, folder)
    said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-LAST_WORDS:])
    last = said.splitlines()[-1] if said else "it said nothing"
    said += f"\n(exit status {done.returncode})"
    if done.returncode < 0:
        said += f"\nended by {signal.Signals(-done.returncode).name}; for SIGKILL, memory may have run out"
    print(f"failed after {seconds} s: {last}", flush=True)
    return _described(name, command, folder, error=said)


def _is_complete(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the folder has all that a run of ours leaves behind."""
    return "findings" in record and all((folder / name).is_file() for name in record["files"])


def _is_done(name: str, command: list[str], folder: Path, expected: Expected) -> bool:
    """Whether the folder has a complete run of the same models, inputs, arguments (but for --out) and versions."""
    record = arguments.recorded(folder)
    return (
        _is_complete(folder, record)
        and record["command"][:-2] == command[:-2]
        and record["weights"] == expected.weights
        and record["inputs"] == expected.inputs[name]
        and record["versions"] == arguments.versions()
        and record.get("others", []) == (expected.others if name == "models" else [])
    )


def _shown(command: list[str]) -> str:
    return shlex.join(["python", *command])


if __name__ == "__main__":
    arguments.run_main(main)

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
from pathlib import Path
from typing import Any

import arguments
import report
import tl_neuronshare as ns
from tl_neuronshare.provenance import fingerprint_of_weights

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
LAST_WORDS = 25  # lines of a part that failed


def main() -> None:
    """Run what is not done yet, and write the page."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for parser in (whole := arguments.parser(__doc__), own):
        _add_own(parser)
    args = whole.parse_args()
    _, shared = own.parse_known_args()
    if args.out is None:
        args.out = arguments.Run.folder_of("reproduce", args)
    arguments.make_folder(args.out)
    commands = _commands(args, shared)
    record = _expected(args)
    _refuse_other_models(args.out, commands, record["weights"])
    print(f"Writing to {args.out}: {', '.join(commands)}")
    parts = [_part(name, command, args.out / name, record) for name, command in commands.items()]
    page = args.out / "report.html"
    title = f"{record['model']} on {record['prompts']}"
    report.write(parts, page, title=title, command=_shown(["experiments/reproduce.py", *sys.argv[1:]]))
    print(f"\nWritten: {page}")
    failed = [part.name for part in parts if part.error]
    if failed:
        sys.exit(f"error: {len(failed)} of {len(parts)} parts failed: {', '.join(failed)}. The page says why.")


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
        name, *given = shlex.split(text) or [""]
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
            *("--out", str(args.out / name)),
        ]
        for name, own in PARTS.items()
        if name in args.parts
    }


def _expected(args: argparse.Namespace) -> dict[str, Any]:
    """What a part that is done must have recorded; and what the page is called."""
    prompts, also = arguments.load_prompts(args), arguments.load_also(args).values()
    # On the CPU, where it takes nothing from the parts: weights have the same checksum everywhere.
    model = arguments.load_model(argparse.Namespace(**{**vars(args), "device": "cpu"}))
    return {
        "weights": fingerprint_of_weights(model),
        "prompts_hash": {name: arguments.prompts_hash(prompts, *(also if name == "tasks" else ())) for name in PARTS},
        "versions": arguments.versions(),
        "model": arguments.short_name(str(model.cfg.model_name)),
        "prompts": prompts.name,
    }


def _refuse_other_models(folder: Path, names: Any, weights: str) -> None:
    """Before anything is run: no part's folder may hold a run of another model."""
    for name in names:
        theirs = arguments.recorded(folder / name).get("weights")
        if theirs not in (None, weights):
            raise ns.NeuronShareError(
                f"The folder {str(folder / name)!r} holds a run of another model (weights {theirs}, not {weights}); "
                "name another folder with --out."
            )


def _part(name: str, command: list[str], folder: Path, expected: dict[str, Any]) -> report.Part:
    """Run one part, unless it is done."""
    script = HERE / f"{name}.py"
    title = (ast.get_docstring(ast.parse(script.read_text("utf-8"))) or name).splitlines()[0].removesuffix(".")
    part = {"name": name, "folder": folder, "title": title, "command": _shown([f"experiments/{name}.py", *command])}
    if _is_done(name, command, folder, expected):
        print(f"{name}: done already", flush=True)
        return report.Part(**part)
    print(f"{name}: ", end="", flush=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, script, *command], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    seconds = round(time.perf_counter() - start)
    if done.returncode == 0:
        print(f"{seconds} s", flush=True)
        return report.Part(**part)
    said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-LAST_WORDS:])
    if done.returncode < 0:
        said += f"\nended by {signal.Signals(-done.returncode).name}; for SIGKILL, memory may have run out"
    print(f"failed after {seconds} s: {said.splitlines()[-1] if said else 'it said nothing'}", flush=True)
    return report.Part(**part, error=said or f"exit status {done.returncode}, without a word")


def _is_done(name: str, command: list[str], folder: Path, expected: dict[str, Any]) -> bool:
    """Whether the folder has a complete run of the same model, prompts, arguments and versions."""
    record = arguments.recorded(folder)
    same = all(record.get(key) == expected[key] for key in ("weights", "versions"))
    same = same and record.get("prompts_hash") == expected["prompts_hash"][name]
    files = record.get("files", [])
    return same and record.get("command") == command and all((folder / name).is_file() for name in files)


def _shown(command: list[str]) -> str:
    return shlex.join(["python", *command])


if __name__ == "__main__":
    arguments.run_main(main)

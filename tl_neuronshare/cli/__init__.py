"""The command `tl-neuronshare`: every analysis and figure by its name."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from tl_neuronshare.cli import folders
from tl_neuronshare.errors import NeuronShareError, UnfinishedError
from tl_neuronshare.running.processes import launched

# Each is a module of this folder, with `parser()` and `main(args)`. `tl-neuronshare` alone lists them so.
CONTENTS = {
    "Is this model read rightly?": ("verify",),
    "Which neurons do languages share?": ("patterns", "tasks", "persistence", "tokens", "thresholds", "models"),
    "Which languages, and why?": ("languages", "ladder"),
    "What do the types do?": ("attribution", "causal-check", "ablation", "dose-response"),
    "Which neurons belong to a language?": ("methods",),
    "All of it": ("reproduce",),
}
COMMANDS = tuple(name for names in CONTENTS.values() for name in names)


def main(given: Sequence[str] | None = None) -> None:
    """Run the command that the first word names with the words after it; without a name, list the commands."""
    name, *others = (sys.argv[1:] if given is None else given) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: tl-neuronshare NAME [arguments]    (tl-neuronshare NAME --help lists the arguments)\n")
        for heading, names in CONTENTS.items():
            print(heading)
            print("\n".join(f"  {known:<15}{title(known)}" for known in names) + "\n")
    else:
        run(name, others)


def run(name: str, given: Sequence[str]) -> None:
    """Run one command; a mistake in the input is reported in a line, without a traceback."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
    try:
        module = command(name)
        parser = module.parser()
        args = parser.parse_args(given)
        args.command = list(given)
        if "out" in args and args.out is None:
            args.out = folders.default_folder(parser, args)
        with nullcontext() if launched().is_main else _silent():
            module.main(args)
    except UnfinishedError as unfinished:
        print(unfinished)
    except NeuronShareError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}. Is the disk full, or the folder read-only? Name another with --out.")


@contextmanager
def _silent() -> Iterator[None]:
    """Say nothing, in a process whose results are those of the main one."""
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def command(name: str) -> Any:
    """Import the module of a command; `causal_check` is the same as `causal-check`."""
    known = name.replace("_", "-")
    if known not in COMMANDS:
        raise NeuronShareError(f"There is no command {name!r}; use one of {', '.join(COMMANDS)}.")
    return import_module(f"{__name__}.{known.replace('-', '_')}")


def title(name: str) -> str:
    """Say in a line what a command does."""
    return (command(name).__doc__ or name).splitlines()[0].removesuffix(".")

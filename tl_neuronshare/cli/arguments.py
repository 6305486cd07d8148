"""The arguments of the commands: those that all analyses share, those that some do, and options as arguments."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import tl_neuronshare as ns
from tl_neuronshare.checks import Options
from tl_neuronshare.evaluation.evaluating import ScoringName
from tl_neuronshare.models.loading import Backend
from tl_neuronshare.running.loop import Keeping
from tl_neuronshare.running.plan import Running
from tl_neuronshare.running.recording import Reading

DEMO = "demo"
DTYPES = ("float32", "bfloat16", "float16")
TASKS: dict[str, Callable[..., ns.ParallelPrompts]] = {name: getattr(ns.tasks, name) for name in ns.tasks.__all__}


def bare_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """Make a parser without arguments for the command in a module."""
    experiment = module.rpartition(".")[2]
    parser = argparse.ArgumentParser(
        prog=f"tl-neuronshare {experiment.replace('_', '-')}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(experiment=experiment)
    return parser


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """Make a parser with the arguments that every analysis takes; a command adds its own."""
    parser = bare_parser(module, description)
    add_model(parser)
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
        "--limit", type=int, metavar="N", help="the first N examples (default: %(default)s, 0 for all)", default=200
    )
    add_options(parser, Reading)
    add_options(parser, Running)
    add_options(parser, Keeping)
    parser.add_argument("--seed", type=int, default=0, help="of everything that is random (default: 0)")
    parser.add_argument("--out", type=Path, help="folder to write to (default: runs/COMMAND/MODEL-TASK-ARGUMENTS)")
    parser.add_argument("--page", action="store_true", help="also write page.html, on which the tables can be explored")
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which model is used and how it is loaded."""
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
        "--target-language",
        metavar="CODE",
        help="what an encoder-decoder of several languages writes, such as deu_Latn",
    )


def _add_source(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say where a task comes from, and its options."""
    parser.add_argument("--source", help="of the task: a local file or folder, or the name of a data set on the hub")
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="of the task, such as relations=P37 form=cloze; a comma makes a list (relations=P17,P36)",
    )


def add_also(parser: argparse.ArgumentParser) -> None:
    """Add the argument for other tasks to compare with."""
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="TASK_AND_ARGUMENTS",
        help='another task, such as "mgsm --source mgsm"; several times for several',
    )


def also_parser(text: str) -> argparse.ArgumentParser:
    """Make a parser for the text of one --also."""
    parser = argparse.ArgumentParser(prog=f"--also {text!r}", allow_abbrev=False, add_help=False)
    parser.add_argument("task", choices=[DEMO, *TASKS])
    _add_source(parser)
    return parser


def add_others(parser: argparse.ArgumentParser) -> None:
    """Add the argument for other models to compare with."""
    parser.add_argument(
        "--others", nargs="+", default=[], metavar="NAME_OR_DIRECTORY", help="other models to compare with"
    )


def add_options(parser: argparse.ArgumentParser, options: type[Options]) -> None:
    """Add an argument for each option that has a help text, with the option's default."""
    for each in _offered(options):
        how = dict(each.metadata["argument"])
        if isinstance(each.default, bool):
            how["action"] = "store_true"
        else:
            how |= {"default": each.default, "type": _refusing(how.get("type", str))}
        parser.add_argument(f"--{each.name.replace('_', '-')}", **how, help=each.metadata["help"])


def _refusing(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a conversion that says why it refuses a text."""

    def converted(text: str) -> Any:
        try:
            return convert(text)
        except ns.NeuronShareError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not a value of this option") from error

    return converted


def given(args: argparse.Namespace, options: type[Options]) -> dict[str, Any]:
    """Return the values of these options, to pass on to a function."""
    return {each.name: getattr(args, each.name) for each in _offered(options)}


def _offered(options: type[Options]) -> Iterator[dataclasses.Field[Any]]:
    return (each for each in dataclasses.fields(options) if each.metadata["help"])  # type: ignore[arg-type]  # subclasses are dataclasses


def without_shard(command: Sequence[str]) -> list[str]:
    """Return the words of a command without --shard, which changes nothing in the results."""
    words = list(command)
    while "--shard" in words:
        place = words.index("--shard")
        del words[place : place + 2]
    return [word for word in words if not word.startswith("--shard=")]


def task_name(args: argparse.Namespace) -> str:
    """Return the task's name, also if none was given."""
    return str(args.task or (DEMO if args.model == DEMO else "world_facts"))


def ablated_position(text: str) -> str | int:
    """Read at which tokens to ablate: all, last, or a negative index."""
    if text in ("all", "last"):
        return text
    if text.lstrip("-").isdigit() and int(text) < 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is none of all, last, or a negative index from the prompt's end")


def scoring_of(args: argparse.Namespace, *, has_choices: bool) -> ScoringName:
    """Choose how to score if the command line does not say."""
    task = task_name(args)
    if task == "mgsm":
        return "number"
    facts = args.model == DEMO and task in (DEMO, "world_facts")
    return "choice" if has_choices and not facts else "exact"

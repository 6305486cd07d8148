"""What the arguments ask for: the model, the prompts, and the types of neurons."""

from __future__ import annotations

import argparse
import hashlib
import inspect
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

import tl_neuronshare as ns
from tl_neuronshare.cli.arguments import DEMO, TASKS, also_parser, given, task_name
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.prompts import short_hash
from tl_neuronshare.running.plan import Running
from tl_neuronshare.running.recording import Reading

OF_ALL = ("languages", "limit", "seed")  # options of tasks which have arguments of their own


def load_model(args: argparse.Namespace, **others: Any) -> LensModel:
    """Load the model that the arguments ask for, except for what is given here."""
    args = argparse.Namespace(**{**vars(args), **others})
    if args.model == DEMO:
        if args.dtype != "float32":
            raise ns.NeuronShareError(f"--dtype {args.dtype}: the built-in model is computed in float32 only.")
        if args.target_language is not None:
            raise ns.NeuronShareError(
                f"--target-language {args.target_language}: the built-in model marks no languages; leave it out."
            )
        return ns.demo.load_model(backend=args.backend, device=args.device)  # type: ignore[no-any-return]
    model: LensModel = ns.load_model(
        args.model, backend=args.backend, device=args.device, dtype=getattr(torch, args.dtype)
    )
    if args.target_language is not None:
        if not hasattr(model.tokenizer, "tgt_lang"):
            raise ns.NeuronShareError(
                f"--target-language {args.target_language}: the tokenizer of {args.model} marks no languages; leave it "
                "out."
            )
        model.tokenizer.tgt_lang = args.target_language
    return model


def load_prompts(args: argparse.Namespace) -> ns.ParallelPrompts:
    """Load the prompts that the arguments ask for."""
    if args.limit < 0:
        raise ns.NeuronShareError(f"--limit {args.limit} is negative; ask for some examples, or 0 for all.")
    limit, name, options = args.limit or None, task_name(args), _options_of(args)
    if name == DEMO:
        if options:
            raise ns.NeuronShareError(f"--task {DEMO} takes no --source and no --options; name a different --task.")
        prompts: ns.ParallelPrompts = ns.demo.prompts()[:limit]
        return prompts if args.languages in (None, ["all"]) else prompts.select(args.languages)
    known = inspect.signature(TASKS[name]).parameters
    for option in options:
        if option not in known or option in OF_ALL:
            own = [option for option in known if option not in (*OF_ALL, "source")]
            raise ns.NeuronShareError(f"--task {name} has no option {option!r}; it has {', '.join(own)}.")
    if "source" in known and known["source"].default is inspect.Parameter.empty and not args.source:
        how_to_get = sys.modules[TASKS[name].__module__].HOW_TO_GET
        raise ns.NeuronShareError(f"--task {name} needs a --source. {how_to_get}")
    languages: dict[str, Any] = {"languages": args.languages} if args.languages else {}
    if args.languages == ["all"]:
        languages = {"languages": "all"} if "source" in known else {}
    return TASKS[name](limit=limit, seed=args.seed, **languages, **options)


def _options_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the task's own options and its source."""
    pairs = [_option(text) for text in args.options]
    options = dict(pairs)
    if len(options) < len(pairs):
        raise ns.NeuronShareError(f"--options {' '.join(args.options)}: one appears twice; a comma makes a list.")
    return options | ({"source": args.source} if args.source else {})


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ns.NeuronShareError(f"--options {text}: write NAME=VALUE.")
    if "," in value:
        return name, [part for part in value.split(",") if part]
    return name, int(value) if value.lstrip("-").isdigit() else value


def load_also(args: argparse.Namespace) -> dict[str, ns.ParallelPrompts]:
    """Load the prompts of --also by name; all names must differ from each other and from the task's own."""
    texts = getattr(args, "also", [])
    names = {load_prompts(args).name} if texts else set()
    others: dict[str, ns.ParallelPrompts] = {}
    for text in texts:
        task = also_parser(text).parse_args(words(text, "--also"))
        prompts = load_prompts(argparse.Namespace(**{**vars(args), **vars(task)}))
        if prompts.name in names | set(others):
            raise ns.NeuronShareError(f"--also {text}: {prompts.name} is there already; name another task.")
        others[prompts.name] = prompts
    return others


def load_in_other_words(
    args: argparse.Namespace, prompts: ns.ParallelPrompts, options: list[str], model: LensModel
) -> ns.ParallelPrompts:
    """Load the same facts with other options of the task, as the model is asked them, and say how they are asked."""
    if task_name(args) == DEMO:
        asked = " ".join(options)
        raise ns.NeuronShareError(f"{asked}: --task {DEMO} asks its facts in one way only; name a different --task.")
    names = {text.partition("=")[0] for text in options}
    kept = [text for text in args.options if text.partition("=")[0] not in names]
    second = load_prompts(argparse.Namespace(**{**vars(args), "options": [*kept, *options]}))
    print(f"In other words: {report_of(second)}")
    if second.prompts == prompts.prompts:
        raise ns.NeuronShareError(f"{' '.join(options)}: the words are the same; give options that change them.")
    if (second.examples, second.languages) != (prompts.examples, prompts.languages):
        raise ns.NeuronShareError(
            f"{' '.join(options)}: this asks for other facts or languages; give options that change nothing but the "
            "words."
        )
    return second.with_chat_template(model.tokenizer) if args.chat_template else second


def words(text: str, option: str) -> list[str]:
    """Split an argument that is itself a command line into words."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ns.NeuronShareError(f"{option} {text}: {error}; close every quotation.") from error


def report_of(prompts: ns.ParallelPrompts) -> str:
    """Say what was kept and dropped, with a line for each reason."""
    lines = [repr(prompts)]
    if prompts.report is not None:
        for (outcome, reason), rows in prompts.report.groupby(["outcome", "reason"], sort=False):
            counts = (
                f"{language} {count}" if count else str(language)
                for language, count in zip(rows["language"], rows["count"], strict=True)
            )
            lines.append(f"  {outcome}, {reason}: {', '.join(counts)}")
    return "\n".join(lines)


def inputs_hash(args: argparse.Namespace, prompts: ns.ParallelPrompts) -> str:
    """Identify all that a command reads except models: prompts, answers, choices, and files."""
    texts = [each.to_frame().to_json() for each in (prompts, *load_also(args).values())]
    folder, masks = getattr(args, "texts", None), getattr(args, "masks", None)
    files = [*(sorted(Path(folder).glob("*.txt")) if folder else []), *([masks] if masks else [])]
    return short_hash("".join([*texts, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)]))


def categorise(args: argparse.Namespace, model: LensModel, prompts: ns.ParallelPrompts, **others: Any) -> Any:
    """Find the types of neurons as the arguments ask, except for the options that are given here."""
    options = given(args, Reading) | given(args, Running)
    return ns.categorise(model, prompts, **{**options, **others})


def short_name(model: str) -> str:
    """Return a model's name for figures: the last part of a directory."""
    return Path(model).name if Path(model).exists() else model

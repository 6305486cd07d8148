"""What categorising costs: against the bare trunk, against the literal way, and six thresholds against one."""

from __future__ import annotations

from functools import partial
from typing import Any

import literal
from common import Bench, Pass, add_step, again, passes_of, ratios, single_prompts, trunk_job

import tl_neuronshare as ns

SUBJECT = "categorise"
THRESHOLDS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]


def measure(bench: Bench) -> None:
    """Add the rows."""
    _at_the_last_token(bench)
    _beside_each_other(bench)
    _against_the_literal_way(bench)


def _job(bench: Bench, prompts: ns.ParallelPrompts, **options: Any) -> Any:
    return partial(ns.categorise, bench.model, prompts, progress=False, **options)


def _at_the_last_token(bench: Bench) -> None:
    """All examples."""
    prompts = bench.prompts(bench.sizes.examples)
    job = _job(bench, prompts)
    trunk = trunk_job(bench.model, passes_of(bench.model, job))
    seconds = bench.turns({"bare trunk": trunk, "categorise": job})
    n_prompts = len(prompts) * len(prompts.languages)
    bench.add_time(SUBJECT, f"bare trunk, {n_prompts} prompts", seconds["bare trunk"])
    bench.add_ratio(
        SUBJECT,
        f"categorise, last, {n_prompts} prompts",
        "bare trunk",
        ratios(seconds["categorise"], seconds["bare trunk"]),
        "at most 1.15" if bench.name == "built-in" else "at most 1.05",
    )


def _beside_each_other(bench: Bench) -> None:
    """The positions and thresholds, and the logits that nobody asked for."""
    prompts = bench.prompts(bench.sizes.fewer)
    last = _job(bench, prompts)
    jobs = {
        "bare trunk": trunk_job(bench.model, passes_of(bench.model, last)),
        "last": last,
        "any": _job(bench, prompts, position="any"),
        "all": _job(bench, prompts, position="all"),
        "last, six thresholds": _job(bench, prompts, threshold=THRESHOLDS),
        "any, six thresholds": _job(bench, prompts, position="any", threshold=THRESHOLDS),
    }
    seconds = bench.turns(jobs)
    n_prompts = len(prompts) * len(prompts.languages)
    for name in ("last", "any", "all"):
        of_trunk = ratios(seconds[name], seconds["bare trunk"])
        bench.add_ratio(SUBJECT, f"categorise, {name}, {n_prompts} prompts", "bare trunk", of_trunk)
    for name in ("last", "any"):
        of_one = ratios(seconds[f"{name}, six thresholds"], seconds[name])
        bench.add_ratio(SUBJECT, f"categorise, {name}, six thresholds", "one threshold", of_one)


def _against_the_literal_way(bench: Bench) -> None:
    """A step is the time beyond the bare trunk, for a prompt."""
    model, prompts, fewer = bench.model, bench.prompts(bench.sizes.single), bench.prompts(bench.sizes.fewer)
    tokens = single_prompts(model, prompts)
    single = [Pass((one,)) for one in tokens]
    job = _job(bench, fewer)
    passes = passes_of(model, _job(bench, prompts))
    jobs = {
        "the literal way": lambda: literal.categorise(model, tokens, n_languages=len(prompts.languages)),
        "bare trunk, single prompts": trunk_job(model, single),
        "bare forward, single prompts": partial(again, model, single, "all"),
        "bare trunk, same prompts": trunk_job(model, passes),
        "bare forward, same prompts": lambda: again(model, passes, "all"),
        "categorise": job,
        "bare trunk": trunk_job(model, passes_of(model, job)),
    }
    seconds = bench.turns(jobs)
    n_prompts, n_fewer = len(tokens), len(fewer) * len(fewer.languages)
    for name, against in (
        ("bare forward, same prompts", "bare trunk, same prompts"),
        ("bare trunk, single prompts", "bare trunk, same prompts"),
        ("the literal way", "bare trunk, single prompts"),
    ):
        bench.add_ratio(SUBJECT, f"{name}, {n_prompts} prompts", against, ratios(seconds[name], seconds[against]))
    forward = "bare forward, single prompts"
    names = ("the literal way", "bare trunk, single prompts", forward, "categorise", "bare trunk")
    add_step(bench, SUBJECT, seconds, names, (n_prompts, n_fewer), target="at least 30")

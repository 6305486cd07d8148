"""What evaluating costs: by choice, against the prompts' trunk and the logits that are scored, and by decoding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from common import Bench, Job, again, longer, passes_of, ratios, sum_of, trunk_job

import tl_neuronshare as ns
from tl_neuronshare import models
from tl_neuronshare.evaluation.answers import continuations

SUBJECT = "evaluate"
_NEEDED = "bare trunk of the prompts + logits at the scored places"
_LONG = 1000  # tokens
_PLACES = 256  # residual vectors that are unembedded at a time


def measure(bench: Bench) -> None:
    """Add the rows."""
    _of_short_prompts(bench)
    _of_long_prompts(bench)


def _of_short_prompts(bench: Bench) -> None:
    """The facts, with choices that are about as long as they are, and with their own."""
    model, prompts = bench.model, bench.prompts(bench.sizes.fewer)
    several = of_several_tokens(prompts)
    trunk = passes_of(model, partial(ns.categorise, model, prompts, progress=False))
    options = {"progress": False}
    by_choice = partial(ns.evaluate, model, several, **options)
    jobs = {
        "trunk": trunk_job(model, trunk),
        "logits": _logits(model, scored_places(model, several)),
        "by choice": by_choice,
        "passes of by choice": partial(again, model, passes_of(model, by_choice), "as before"),
        "logits, short": _logits(model, scored_places(model, prompts)),
        "by choice, short": partial(ns.evaluate, model, prompts, **options),
        "exact": partial(ns.evaluate, model, prompts, scoring="exact", **options),
    }
    seconds = bench.turns(jobs)
    n_prompts = len(prompts) * len(prompts.languages)
    needed = sum_of(seconds["trunk"], seconds["logits"])
    needed_short = sum_of(seconds["trunk"], seconds["logits, short"])
    bench.add_time(SUBJECT, f"{_NEEDED}, {n_prompts} prompts", needed)
    bench.add_ratio(SUBJECT, "evaluate by choice, four of several tokens", _NEEDED,
                    ratios(seconds["by choice"], needed), "at most 1.6")  # fmt: skip
    bench.add_ratio(SUBJECT, "evaluate by choice, four of several tokens", "the passes and logits that it makes",
                    ratios(seconds["by choice"], seconds["passes of by choice"]))  # fmt: skip
    bench.add_ratio(SUBJECT, "evaluate by choice, the facts' own", _NEEDED,
                    ratios(seconds["by choice, short"], needed_short))  # fmt: skip
    bench.add_ratio(SUBJECT, "evaluate exact", "bare trunk of the prompts", ratios(seconds["exact"], seconds["trunk"]))


def _of_long_prompts(bench: Bench) -> None:
    """Each of a few facts after many others, so that a prompt is much longer than its choices, as in few-shot tasks."""
    model, few = bench.model, bench.prompts(bench.sizes.study)
    most = max(len(row) for texts in few.prompts.values() for row in models.tokenise(model, texts))
    n_tokens = min(_LONG, model.cfg.n_ctx // 2)
    prompts = of_several_tokens(longer(few, n_tokens // most))
    seconds = bench.turns(
        {
            "trunk": trunk_job(model, passes_of(model, partial(ns.categorise, model, prompts, progress=False))),
            "logits": _logits(model, scored_places(model, prompts)),
            "by choice": partial(ns.evaluate, model, prompts, progress=False),
        }
    )
    n_prompts = len(prompts) * len(prompts.languages)
    needed = sum_of(seconds["trunk"], seconds["logits"])
    what = f"evaluate by choice, four of several tokens, {n_prompts} prompts of up to {n_tokens} tokens"
    bench.add_ratio(SUBJECT, what, _NEEDED, ratios(seconds["by choice"], needed), "at most 1.6")


def of_several_tokens(prompts: ns.ParallelPrompts) -> ns.ParallelPrompts:
    """The same prompts with longer choices: each is followed by the next one."""

    def joined(choices: Sequence[str]) -> tuple[str, ...]:
        return tuple(one + other for one, other in zip(choices, [*choices[1:], choices[0]], strict=True))

    choices = {language: [joined(each) for each in prompts.choices[language]] for language in prompts.languages}
    answers = {
        language: [
            choices[language][example][own.index(prompts.answers[language][example])]
            for example, own in enumerate(prompts.choices[language])
        ]
        for language in prompts.languages
    }
    return ns.ParallelPrompts(dict(prompts.prompts), answers=answers, choices=choices)


def scored_places(model: Any, prompts: ns.ParallelPrompts) -> int:
    """How many logit vectors score all choices: one for each different beginning of a prompt's choices."""
    places = set()
    for language in prompts.languages:
        for one in continuations(model, prompts, language, prompts.choices[language]).each:
            places |= {(language, one.example, one.scored[:length]) for length in range(len(one.scored))}
    return len(places)


def _logits(model: Any, n_places: int) -> Job:
    """Turn so many residual vectors into logits, some at a time."""
    residual = torch.randn(min(_PLACES, n_places), model.cfg.d_model).to(
        models.device_of(model), models.dtype_of(model)
    )

    def unembed() -> None:
        with torch.no_grad():
            for start in range(0, n_places, _PLACES):
                model.unembed(residual[None, : n_places - start])

    return unembed

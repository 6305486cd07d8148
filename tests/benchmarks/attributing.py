"""What attribution costs: its parts against the bare trunk, and its scoring against the literal way."""

from __future__ import annotations

from functools import partial
from typing import Any

import literal
from common import Bench, Pass, add_step, again, passes_of, ratios, single_prompts, trunk_job

import tl_neuronshare as ns
from tl_neuronshare import models

SUBJECT = "attribute"
NO_INTERVALS = 1  # one resample


def measure(bench: Bench) -> None:
    """Add the rows."""
    model, prompts, few = bench.model, bench.prompts(bench.sizes.fewer), bench.prompts(bench.sizes.single)
    sharing = ns.categorise(model, prompts, progress=False)

    def job(**options: Any) -> Any:
        return partial(ns.attribute, model, prompts, sharing, progress=False, **options)

    scoring = job(n_resamples=NO_INTERVALS)
    tokens, answers = single_prompts(model, few), _first_tokens(model, few)
    single = [Pass((one,)) for one in tokens]
    layers = models.neuron_layers(model, "post")
    weights = [layer.W_out() for layer in layers]
    types = [sharing.types[example] for example in range(len(few)) for _ in few.languages]
    jobs = {
        "bare trunk": trunk_job(model, passes_of(model, scoring)),
        "attribute, without intervals": scoring,
        "attribute": job(),
        "attribute, without intervals, norm frozen": job(n_resamples=NO_INTERVALS, norm="frozen"),
        "attribute, without intervals, norm full": job(n_resamples=NO_INTERVALS, norm="full"),
        "attribute, without intervals, whole answer": job(n_resamples=NO_INTERVALS, answer="all"),
        "top_neurons": partial(ns.top_neurons, model, prompts, sharing, progress=False),
        "the literal way": lambda: literal.attribute(model, tokens, answers, types, weights),
        "bare trunk, single prompts": trunk_job(model, single),
        "bare forward, single prompts": partial(again, model, single, "all"),
    }
    seconds = bench.turns(jobs)
    n_prompts = len(prompts) * len(prompts.languages)
    bench.add_time(SUBJECT, f"bare trunk, {n_prompts} prompts", seconds["bare trunk"])
    for name in [name for name in jobs if name.startswith(("attribute", "top"))]:
        bench.add_ratio(SUBJECT, name, "bare trunk", ratios(seconds[name], seconds["bare trunk"]))
    trunk = "bare trunk, single prompts"
    bench.add_ratio(SUBJECT, f"the literal way, {len(tokens)} prompts", trunk,
                    ratios(seconds["the literal way"], seconds[trunk]))  # fmt: skip
    names = ("the literal way", trunk, "bare forward, single prompts", "attribute, without intervals", "bare trunk")
    add_step(bench, SUBJECT, seconds, names, (len(tokens), n_prompts), target="at least 20")


def _first_tokens(model: Any, prompts: ns.ParallelPrompts) -> list[int]:
    """The first token of each prompt's answer, in the order of `single_prompts`."""
    by_language = [
        [tokens[0] for tokens in models.tokenise(model, prompts.answers[language], prepend_bos=False)]
        for language in prompts.languages
    ]
    return [token for example in zip(*by_language, strict=True) for token in example]

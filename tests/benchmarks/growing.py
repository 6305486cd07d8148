"""How the time of one unit grows with examples, languages, layers, length and vocabulary: flat is linear."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from common import Bench, Job, longer, numbered
from kinds import random_bloom

import tl_neuronshare as ns
from tl_neuronshare import models

SUBJECT = "growth"


def measure(bench: Bench) -> None:
    """Add the rows: for each axis a row for each function, with the time of one unit at each size."""
    n = bench.sizes.examples
    facts = ns.demo.prompts()
    some = facts[: max(1, n // 4)]
    with tempfile.TemporaryDirectory() as directory:
        _grow(bench, "examples", "prompt", ((size, (bench.model, numbered(size))) for size in (n // 4, n, 5 * n)))
        _grow(bench, "languages", "prompt", ((size, (bench.model, _languages(some, size))) for size in (3, 9, 27)))
        _grow(bench, "times the length", "token", ((size, (bench.model, longer(some, size))) for size in (1, 4, 8)))
        layers = ((size, (_random(Path(directory), n_layer=size), some)) for size in (4, 8, 16))
        _grow(bench, "layers", "prompt and layer", layers)
        vocabulary = ((size, (_random(Path(directory), vocab_size=size), some)) for size in (4_000, 64_000, 256_000))
        _grow(bench, "tokens in the vocabulary", "prompt", vocabulary)


def _random(directory: Path, **sizes: int) -> Any:
    return ns.load_model(random_bloom(directory, **{"hidden_size": 128, "n_layer": 8, "n_head": 4} | sizes))


def _languages(prompts: ns.ParallelPrompts, n_languages: int) -> ns.ParallelPrompts:
    """The same prompts in as many languages, which repeat under other names."""
    of_name = {f"{language}{k}" if k else language: language for k in range(3) for language in prompts.languages}
    chosen = dict(islice(of_name.items(), n_languages))

    def of(by_language: Any) -> dict[str, Any]:
        return {name: by_language[language] for name, language in chosen.items()}

    return ns.ParallelPrompts(of(prompts.prompts), answers=of(prompts.answers), choices=of(prompts.choices))


def _jobs(model: Any, prompts: ns.ParallelPrompts) -> dict[str, Job]:
    sharing = ns.categorise(model, prompts, progress=False)
    return {
        "categorise": partial(ns.categorise, model, prompts, progress=False),
        "summary": sharing.summary,
        "attribute": partial(ns.attribute, model, prompts, sharing, n_resamples=1, progress=False),
        "evaluate": partial(ns.evaluate, model, prompts, progress=False),
    }


def _grow(bench: Bench, axis: str, unit: str, cases: Iterator[tuple[int, tuple[Any, ns.ParallelPrompts]]]) -> None:
    """Add the rows of one axis; the sizes take one round each, since only their order of magnitude matters."""
    per_unit: dict[str, list[str]] = {}
    sizes = []
    for size, (model, prompts) in cases:
        sizes.append(f"{size:,}")
        n_units = _units(unit, model, prompts)
        for name, seconds in bench.turns(_jobs(model, prompts)).items():
            per_unit.setdefault(name, []).append(f"{1e3 * min(seconds) / n_units:.3g}")
    for name, each in per_unit.items():
        value = f"{' / '.join(each)} ms a {unit}"
        bench.add(SUBJECT, name, against=f"{' / '.join(sizes)} {axis}", value=value)


def _units(unit: str, model: Any, prompts: ns.ParallelPrompts) -> int:
    """How many units a run has."""
    n_prompts = len(prompts) * len(prompts.languages)
    count: dict[str, Callable[[], int]] = {
        "prompt": lambda: n_prompts,
        "prompt and layer": lambda: n_prompts * model.cfg.n_layers,
        "token": lambda: sum(len(row) for texts in prompts.prompts.values() for row in models.tokenise(model, texts)),
    }
    return count[unit]()

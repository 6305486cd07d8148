"""What all benchmarks share: jobs that take turns, forward passes that are run again bare, and the table's rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from typing import Any, Literal

import torch
from torch import Tensor

import tl_neuronshare as ns
from tl_neuronshare import models
from tl_neuronshare.models.hooks import hooked

Job = Callable[[], object]
_FEWER_LOGITS = ("stop_at_layer", "logits_to_keep")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Sizes:
    """How many examples each kind of measurement takes on a model, and how often it is repeated.

    Attributes:
        examples: for categorising at the last token and its bare trunk.
        fewer: for everything else that runs in batches.
        study: for the study, which runs them many times.
        single: for what runs one prompt at a time, or needs the logits of every token.
        repeats: how many rounds are measured.
    """

    examples: int
    fewer: int
    study: int
    single: int
    repeats: int


@dataclass(frozen=True)
class Row:
    """One row of the table: a time, or a ratio of two, as the median over rounds and the range."""

    model: str
    subject: str
    what: str
    against: str = ""
    value: str = ""
    spread: str = ""
    target: str = ""


@dataclass
class Bench:
    """A model with its prompts, and the rows that were measured on it."""

    name: str
    model: Any
    sizes: Sizes
    clock: str = "wall"
    rows: list[Row] = field(default_factory=list)

    def prompts(self, n_examples: int) -> ns.ParallelPrompts:
        """Facts in nine languages."""
        return ns.demo.prompts()[:n_examples]

    def add(self, subject: str, what: str, **known: str) -> None:
        """Add a row, and print it."""
        self.rows.append(Row(self.name, subject, what, **known))
        print("  ".join(filter(None, vars(self.rows[-1]).values())), flush=True)

    def add_ratio(self, subject: str, what: str, against: str, ratios: Sequence[float], target: str = "") -> None:
        """Add a row for a ratio of two jobs."""
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        self.add(
            subject, what, against=against, value=f"{statistics.median(ratios):.3f} x", spread=spread, target=target
        )

    def add_time(self, subject: str, what: str, seconds: Sequence[float]) -> None:
        """Add a row for the seconds that a job takes."""
        spread = f"{min(seconds):.3g} to {max(seconds):.3g}"
        self.add(subject, what, value=f"{statistics.median(seconds):.3g} s", spread=spread)

    def turns(self, jobs: Mapping[str, Job], repeats: int | None = None) -> dict[str, list[float]]:
        """Run the jobs in turn, again and again, and give the seconds of each in each round."""
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        now = CLOCKS[self.clock]
        for _ in range(repeats or self.sizes.repeats):
            for name, job in jobs.items():
                start = now()
                job()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                seconds[name].append(now() - start)
        return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The ratio of two jobs in each round."""
    return [one / other for one, other in zip(above, below, strict=True)]


def less(whole: Sequence[float], part: Sequence[float], n: int = 1) -> list[float]:
    """How much longer one job takes than another in each round, for each of `n` prompts."""
    return [(one - other) / n for one, other in zip(whole, part, strict=True)]


def sum_of(*jobs: Sequence[float]) -> list[float]:
    """The seconds of several jobs together in each round."""
    return [sum(of_round) for of_round in zip(*jobs, strict=True)]


def add_step(
    bench: Bench,
    subject: str,
    seconds: Mapping[str, Sequence[float]],
    names: tuple[str, str, str, str, str],
    sizes: tuple[int, int],
    *,
    target: str = "",
) -> None:
    """Add the rows of a step: the time beyond the bare trunk, literally and here, for each prompt.

    `names` are the jobs: the literal way, its bare trunk, its bare forward, ours, and our bare trunk. `sizes` are how
    many prompts the literal way and ours run. The ratio is that of the medians, since a difference of two near times
    may be about zero in one round. A second ratio leaves out the logits that the literal way makes of every token.
    """
    whole, trunk, forward, here, here_trunk = names
    ours = less(seconds[here], seconds[here_trunk], sizes[1])
    _add_milliseconds(bench, subject, f"step of {here}, a prompt", ours)
    for beyond, its_target in ((trunk, target), (forward, "")):
        literal = less(seconds[whole], seconds[beyond], sizes[0])
        _add_milliseconds(bench, subject, f"step of {whole} beyond its {beyond}, a prompt", literal)
        ratio = statistics.median(literal) / statistics.median(ours)
        bench.add(
            subject,
            f"step of {whole} beyond its {beyond}",
            against=f"step of {here}",
            value=f"{ratio:.1f} x",
            target=its_target,
        )


def _add_milliseconds(bench: Bench, subject: str, what: str, seconds: Sequence[float]) -> None:
    spread = f"{1e3 * min(seconds):.3g} to {1e3 * max(seconds):.3g}"
    bench.add(subject, what, value=f"{1e3 * statistics.median(seconds):.3g} ms", spread=spread)


@dataclass
class Pass:
    """One forward pass as a function of the library made it.

    Attributes:
        positional: what the model was given.
        named: what it was given by name.
        n_unembedded: how many residual vectors it turned into logits.
    """

    positional: tuple[Any, ...]
    named: dict[str, Any] = field(default_factory=dict)
    n_unembedded: int = 0


def passes_of(model: Any, job: Job) -> list[Pass]:
    """Run a job once, and collect its forward passes. What is done only once for a model has been done before."""
    passes: list[Pass] = []
    forward = model.forward

    def collecting(*positional: Any, **named: Any) -> Any:
        # How the library leaves out logits is its own affair; here a cut before the unembedding does that.
        passes.append(Pass(positional, fresh({name: named[name] for name in named if name not in _FEWER_LOGITS})))
        return forward(*positional, **named)

    def count(module: Any, inputs: Any, logits: Tensor) -> None:
        passes[-1].n_unembedded = logits.shape[:-1].numel()

    job()
    model.forward = collecting
    counter = model.unembed.register_forward_hook(count)
    try:
        job()
    finally:
        del model.forward
        counter.remove()
    return passes


def fresh(named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, with copies of caches of keys and values, which a forward pass adds to."""
    return {name: value if isinstance(value, Tensor) else deepcopy(value) for name, value in named.items()}


def again(
    model: Any,
    passes: Sequence[Pass],
    logits: Literal["none", "as before", "all"] = "none",
    hooks: Sequence[tuple[str, Callable[..., Any]]] = (),
) -> None:
    """Run the same forward passes bare: without the library, with no logits, with as many as before, or with all."""
    n_places = 0

    def cut(residual: Tensor, hook: Any) -> Tensor:
        return residual.flatten(0, -2)[:n_places][None]

    only = [] if logits == "all" else [("unembed.hook_in", cut)]
    # A HookedTransformer's unembedding takes its time even for no places at all.
    without = {} if models.is_bridge(model) else {"stop_at_layer": model.cfg.n_layers}
    with models.left_as_found(model), hooked(model, [*hooks, *only]):
        for one in passes:
            n_places = one.n_unembedded if logits == "as before" else 0
            model(*one.positional, **fresh(one.named), **({} if n_places or logits == "all" else without))


def trunk_job(model: Any, passes: Sequence[Pass]) -> Job:
    """The bare trunk: the same forward passes through all blocks, with nothing else."""
    return partial(again, model, passes)


def single_prompts(model: Any, prompts: ns.ParallelPrompts) -> list[Tensor]:
    """Each prompt's tokens by itself, without padding: all languages of an example, then the next example."""
    by_language = [models.tokenise(model, texts) for texts in prompts.prompts.values()]
    device = next(model.parameters()).device
    return [torch.tensor([tokens], device=device) for example in zip(*by_language, strict=True) for tokens in example]


def numbered(n_examples: int) -> ns.ParallelPrompts:
    """As many examples as are asked for: the facts again and again, each time under another number."""
    facts = ns.demo.prompts()
    whole = range(-(-n_examples // len(facts)))

    def every(by_language: Mapping[str, Sequence[Any]], wording: str) -> dict[str, list[Any]]:
        return {
            language: list(
                islice((wording.format(k, one) if wording else one for k in whole for one in each), n_examples)
            )
            for language, each in by_language.items()
        }

    return ns.ParallelPrompts(
        every(facts.prompts, "{}. {}"), answers=every(facts.answers, ""), choices=every(facts.choices, "")
    )


def longer(prompts: ns.ParallelPrompts, times: int) -> ns.ParallelPrompts:
    """Each prompt after some of the others, so that it is about so many times as long."""
    texts_of = {}
    for language, texts in prompts.prompts.items():
        every = cycle(texts)
        texts_of[language] = [" ".join([*islice(every, times - 1), text]) for text in texts]
    return ns.ParallelPrompts(texts_of, answers=dict(prompts.answers), choices=dict(prompts.choices))

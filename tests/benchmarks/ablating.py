"""What a study of ablations costs, against the forward passes that it needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import Bench, again, passes_of, ratios, sum_of, trunk_job
from evaluating import of_several_tokens
from torch import Tensor

import tl_neuronshare as ns
from tl_neuronshare import models
from tl_neuronshare.ablation.controls import CONTROLS

SUBJECT = "ablation_study"


def measure(bench: Bench) -> None:
    """Add the rows."""
    model, prompts = bench.model, bench.prompts(bench.sizes.fewer)
    sharing = ns.categorise(model, prompts, progress=False)
    trunk = trunk_job(model, passes_of(model, partial(ns.categorise, model, prompts, progress=False)))
    for kind, asked in (("the facts' own choices", prompts), ("choices of several tokens", of_several_tokens(prompts))):
        _study(bench, kind, asked, sharing, trunk)


def _study(bench: Bench, kind: str, prompts: ns.ParallelPrompts, sharing: Any, trunk: Any) -> None:
    """One type of neurons with every control, each drawn once, against as many bare runs of the same batches."""
    model = bench.model
    runs: list[str] = []

    def study(controls: tuple[str, ...]) -> Any:
        return partial(
            ns.ablation_study,
            model,
            prompts,
            sharing,
            types=["all-shared"],
            controls=controls,
            seeds=[0],
            on_run=lambda target, ablated, seed, table: runs.append(ablated),
            progress=False,
        )

    study(tuple(CONTROLS))()
    n_ablated = len(runs) - 1
    one_run = passes_of(model, partial(ns.evaluate, model, prompts, progress=False))
    masks = bare_masks(model)

    def needed() -> None:
        again(model, one_run, "as before")
        for _ in range(n_ablated):
            again(model, one_run, "as before", masks)

    jobs = {"needed": needed, "trunk": trunk, "every control": study(tuple(CONTROLS)), "no control": study(())}
    jobs["needed without controls"] = lambda: (
        again(model, one_run, "as before"), again(model, one_run, "as before", masks)
    )  # fmt: skip
    jobs |= {f"only {name}": study((name,)) for name in CONTROLS}
    seconds = bench.turns(jobs)
    with_impact = sum_of(seconds["needed"], seconds["trunk"])  # `magnitude` needs the neurons' values once
    what = f"study of {len(prompts) * len(prompts.languages)} prompts, {kind}"
    bench.add_time(SUBJECT, f"{what}: passes needed by {n_ablated + 1} runs", with_impact)
    bench.add_ratio(SUBJECT, f"{what}, every control", "passes needed",
                    ratios(seconds["every control"], with_impact), "at most 1.15")  # fmt: skip
    two_runs = seconds["needed without controls"]
    bench.add_ratio(SUBJECT, f"{what}, no control", "passes needed", ratios(seconds["no control"], two_runs))
    for name in CONTROLS:
        three_runs = [1.5 * one for one in two_runs]
        against = sum_of(three_runs, seconds["trunk"]) if name == "magnitude" else three_runs
        bench.add_ratio(SUBJECT, f"{what}, only {name}", "passes needed", ratios(seconds[f"only {name}"], against))


def bare_masks(model: Any) -> list[tuple[str, Callable[..., Tensor]]]:
    """The cheapest hooks that set neurons to zero by a mask; where a tensor is not of neurons, the last axis counts."""
    masks: dict[int, Tensor] = {}

    def zeroed(tensor: Tensor, hook: Any) -> Tensor:
        width = tensor.shape[-1]
        if width not in masks:
            masks[width] = torch.rand(width, device=tensor.device) < 0.2
        return tensor.masked_fill(masks[width], 0)

    return [(hook.name, zeroed) for layer in models.neuron_layers(model, "post") for hook in layer.hooks]

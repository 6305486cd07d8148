"""What a study of ablations costs, against the forward passes that it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from common import Bench, Job, again, passes_of, ratios, sum_of, trunk_job
from evaluating import of_several_tokens
from torch import Tensor

import tl_neuronshare as ns
from tl_neuronshare import models
from tl_neuronshare.ablation.controls import CONTROLS

SUBJECT = "ablation_study"


def measure(bench: Bench) -> None:
    """Add the rows: one type of neurons, without controls and with each of them, drawn once."""
    model, prompts = bench.model, of_several_tokens(bench.prompts(bench.sizes.study))
    categorise = partial(ns.categorise, model, prompts, progress=False)
    sharing = categorise()
    one_run = passes_of(model, partial(ns.evaluate, model, prompts, progress=False))
    masks = bare_masks(model)

    def needed(n_ablated: int) -> Job:
        def run() -> None:
            again(model, one_run, "as before")
            for _ in range(n_ablated):
                again(model, one_run, "as before", masks)

        return run

    def study(controls: Sequence[str]) -> Job:
        options = {"types": ["all-shared"], "controls": controls, "seeds": [0], "progress": False}
        return partial(ns.ablation_study, model, prompts, sharing, **options)

    seconds = bench.turns(
        {
            "needed by 2 runs": needed(1),
            "no control": study([]),
            f"needed by {2 + len(CONTROLS)} runs": needed(1 + len(CONTROLS)),
            "trunk": trunk_job(model, passes_of(model, categorise)),
            "every control": study(list(CONTROLS)),
        }
    )
    n_prompts = len(prompts) * len(prompts.languages)
    few, many = seconds["needed by 2 runs"], seconds[f"needed by {2 + len(CONTROLS)} runs"]
    many = sum_of(many, seconds["trunk"])  # `magnitude` needs the neurons' values once
    bench.add_time(SUBJECT, f"passes needed by {2 + len(CONTROLS)} runs of {n_prompts} prompts", many)
    bench.add_ratio(SUBJECT, "study, no control", "passes needed", ratios(seconds["no control"], few))
    of_needed = ratios(seconds["every control"], many)
    bench.add_ratio(SUBJECT, "study, every control", "passes needed", of_needed, "at most 1.15")


def bare_masks(model: Any) -> list[tuple[str, Callable[..., Tensor]]]:
    """The cheapest hooks that set neurons to zero by a mask; where a tensor is not of neurons, the last axis counts."""
    masks: dict[int, Tensor] = {}

    def zeroed(tensor: Tensor, hook: Any) -> Tensor:
        width = tensor.shape[-1]
        if width not in masks:
            masks[width] = torch.rand(width, device=tensor.device) < 0.2
        return tensor.masked_fill(masks[width], 0)

    return [(hook.name, zeroed) for layer in models.neuron_layers(model, "post") for hook in layer.hooks]

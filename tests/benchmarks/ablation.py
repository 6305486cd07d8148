"""What evaluating and ablating cost: ratios of runs that take turns in one process.

    python tests/benchmarks/ablation.py                     # the built-in model, and a random one of middling size
    python tests/benchmarks/ablation.py --model DIRECTORY --examples 100 --device cuda

The yardstick is the bare trunk on the prompts alone: all blocks, without the unembedding and without hooks. `evaluate`
runs the choices too, of which those that differ in their last token share a row.
"""

from __future__ import annotations

from typing import Any

from categorise import arguments, bare_trunk, compare, on_models

import tl_neuronshare as ns
from tl_neuronshare.ablation import controls, study, targets
from tl_neuronshare.ablation.replacing import Replacement, Replacing
from tl_neuronshare.evaluation.evaluating import Evaluation, Scoring
from tl_neuronshare.running.plan import Loop, Running


def times(name: str, model: Any, prompts: ns.ParallelPrompts, *, repeats: int) -> None:
    """Time: evaluating as it is, under hooks that are there already, and under each draw of the study."""
    sharing = ns.categorise(model, prompts, progress=False)
    evaluation = Evaluation(model, prompts, Scoring(), Running())
    decoding = Evaluation(model, prompts, Scoring("exact"), Running())
    one = ns.ablation_hooks(model, sharing.mask("all-shared")[0])
    masks = targets.masks_of_types(sharing, ["all-shared"])
    chosen = targets.Targets(masks, prompts, sharing.widths, targets.Choice(), active=sharing)
    of_study = study._Study(model, evaluation, chosen, Replacing(model, evaluation, chosen, Replacement()))

    def drawn(control: controls.Control) -> object:
        outcome = study.Outcome(control, controls.drawable(control, chosen, "all-shared"))
        return evaluation.run(study._Ablated(of_study, "all-shared", outcome, 0).hooks, Loop())

    compare(
        name,
        {
            "the bare trunk on the prompts": lambda: bare_trunk(model, prompts),
            "evaluate by choice": lambda: evaluation.run(None, Loop()),
            "with one mask for all": lambda: evaluation.run(one, Loop()),
            **{
                f"with a mask a row: {control.name}": lambda control=control: drawn(control)
                for control in (controls.Itself(), *controls.CONTROLS.values())
            },
            "evaluate by greedy decoding": lambda: decoding.run(None, Loop()),
        },
        repeats=repeats,
    )


if __name__ == "__main__":
    on_models(arguments(__doc__).parse_args(), times)

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
from tl_neuronshare.ablation import study
from tl_neuronshare.ablation.controls import CONTROLS, Selection
from tl_neuronshare.evaluation.evaluating import Evaluation


def times(name: str, model: Any, prompts: ns.ParallelPrompts, *, repeats: int) -> None:
    """Time: evaluating as it is, under hooks that are there already, and under each draw of the study."""
    sharing = ns.categorise(model, prompts, progress=False)
    evaluation = Evaluation(model, prompts)
    one = ns.ablation_hooks(model, sharing.mask("all-shared")[0])
    type = ns.NeuronType.ALL_SHARED
    selection = Selection(sharing, prompts, [type], layers=None, consistent=None, one_mask=False, equal_size=False)
    protocol = study._Protocol("zero", None, "all", "post", skip_special_tokens=False)
    ablating = study._Ablating(model, evaluation, selection, protocol)

    def drawn(ablated: str) -> object:
        able = selection.drawable(type, ablated).examples
        return evaluation.run(study._Draws(ablating, type, ablated, 0, able).hooks)

    compare(
        name,
        {
            "the bare trunk on the prompts": lambda: bare_trunk(model, prompts),
            "evaluate by choice": evaluation.run,
            "with one mask for all": lambda: evaluation.run(one),
            **{
                f"with a mask a row: {ablated}": lambda ablated=ablated: drawn(ablated)
                for ablated in ("type", *CONTROLS)
            },
            "evaluate by greedy decoding": Evaluation(model, prompts, scoring="exact").run,
        },
        repeats=repeats,
    )


if __name__ == "__main__":
    on_models(arguments(__doc__).parse_args(), times)

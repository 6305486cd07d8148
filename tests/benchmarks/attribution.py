"""What attribution costs: ratios of runs that take turns in one process.

    python tests/benchmarks/attribution.py                     # the built-in model, and a random one of middling size
    python tests/benchmarks/attribution.py --model DIRECTORY --examples 100 --device cuda

The yardstick is the bare trunk on the prompts: all blocks, without the unembedding and without hooks.
"""

from __future__ import annotations

from typing import Any

from categorise import arguments, bare_trunk, compare, on_models

import tl_neuronshare as ns


def times(name: str, model: Any, prompts: ns.ParallelPrompts, *, repeats: int) -> None:
    """Time each kind of attribution, with its table of 5,000 resamples and without."""
    sharing = ns.categorise(model, prompts, progress=False)
    options = {"prepend_bos": None, "progress": False}
    compare(
        name,
        {
            "the bare trunk on the prompts": lambda: bare_trunk(model, prompts),
            "attribute": lambda: ns.attribute(model, prompts, sharing, **options),
            "without intervals": lambda: ns.attribute(model, prompts, sharing, n_resamples=1, **options),
            **{
                f"without intervals, norm {norm}": lambda norm=norm: ns.attribute(
                    model, prompts, sharing, n_resamples=1, norm=norm, **options
                )
                for norm in ("frozen", "full")
            },
            "without intervals, all of the answer": lambda: ns.attribute(
                model, prompts, sharing, n_resamples=1, answer="all", **options
            ),
            "top_neurons": lambda: ns.top_neurons(model, prompts, sharing, **options),
        },
        repeats=repeats,
    )


if __name__ == "__main__":
    on_models(arguments(__doc__).parse_args(), times)

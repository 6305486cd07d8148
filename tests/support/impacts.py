"""What the library attributes to each neuron, for each example, language and layer apart."""

from __future__ import annotations

from torch import Tensor

from tl_neuronshare import NeuronSharing, ParallelPrompts
from tl_neuronshare.attribution.impacts import ImpactOptions, Impacts
from tl_neuronshare.models import LensModel
from tl_neuronshare.running.plan import Running


def scores_of(
    model: LensModel, prompts: ParallelPrompts, sharing: NeuronSharing, **options: str
) -> dict[tuple[int, str, int], tuple[Tensor, Tensor]]:
    """(example, language, layer) -> both scores, as the library has them."""
    impacts = Impacts(model, prompts, sharing, ImpactOptions(top_k=1, **options), Running())
    found = {}

    def both(scores):
        return {"generation": scores.generation, "correctness": scores.correctness}

    def keep(language, layer, examples, record):
        for row, example in enumerate(examples):
            found[example, language, layer] = record["generation"][row], record["correctness"][row]

    impacts.each(both, keep, task="scores", progress=False)
    return found

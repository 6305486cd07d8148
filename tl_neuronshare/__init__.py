"""Which MLP neurons do languages share? The method of "Sharing Matters" (arXiv 2406.09265) for TransformerLens."""

from importlib import import_module
from types import ModuleType

from tl_neuronshare.ablation.crossing import cross_ablation
from tl_neuronshare.ablation.dose import dose_response
from tl_neuronshare.ablation.hooks import ablation_hooks
from tl_neuronshare.ablation.reference import reference_values
from tl_neuronshare.ablation.study import ablation_study
from tl_neuronshare.attribution.attributing import attribute, top_neurons
from tl_neuronshare.attribution.describing import describe_neurons
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.evaluation.along import types_along
from tl_neuronshare.evaluation.answer_languages import answer_languages
from tl_neuronshare.evaluation.evaluating import evaluate
from tl_neuronshare.evaluation.free_text import perplexity
from tl_neuronshare.maths.impact import correctness_impact, generation_impact
from tl_neuronshare.models.loading import load_model
from tl_neuronshare.models.verification import verify
from tl_neuronshare.pages.writing import page
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.results.comparison import input_overlap, language_overlap, side_by_side
from tl_neuronshare.results.histograms import ValueHistograms
from tl_neuronshare.results.ladder import facts_of, overlap_ladder
from tl_neuronshare.results.masks import (
    load_lape_neurons,
    load_masks,
    magnitude_matched_like,
    mask_from_frame,
    mask_to_frame,
    random_like,
    save_masks,
)
from tl_neuronshare.results.rates import NeuronRates
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.results.types import NeuronType, neuron_types
from tl_neuronshare.results.typology import permutation_test, same_family, same_script, typological_similarity
from tl_neuronshare.running.categorising import categorise, categorise_caches
from tl_neuronshare.running.histograms import value_histograms
from tl_neuronshare.running.rates import activation_rates
from tl_neuronshare.running.recording import SharingRecorder

__version__ = "0.1.0"
__all__ = [
    "NeuronRates",
    "NeuronShareError",
    "NeuronSharing",
    "NeuronType",
    "ParallelPrompts",
    "SharingRecorder",
    "ValueHistograms",
    "ablation_hooks",
    "ablation_study",
    "activation_rates",
    "answer_languages",
    "attribute",
    "categorise",
    "categorise_caches",
    "correctness_impact",
    "cross_ablation",
    "demo",
    "describe_neurons",
    "dose_response",
    "evaluate",
    "facts_of",
    "generation_impact",
    "input_overlap",
    "language_overlap",
    "load_lape_neurons",
    "load_masks",
    "load_model",
    "magnitude_matched_like",
    "mask_from_frame",
    "mask_to_frame",
    "methods",
    "neuron_types",
    "overlap_ladder",
    "page",
    "permutation_test",
    "perplexity",
    "plots",
    "random_like",
    "reference_values",
    "same_family",
    "same_script",
    "save_masks",
    "side_by_side",
    "tasks",
    "top_neurons",
    "types_along",
    "typological_similarity",
    "value_histograms",
    "verify",
]


def __getattr__(name: str) -> ModuleType:
    """Load plotting, tasks, methods and the built-in model only when somebody asks for them."""
    if name in ("demo", "methods", "plots", "tasks"):
        return import_module(f"tl_neuronshare.{name}")
    raise AttributeError(f"module 'tl_neuronshare' has no attribute {name!r}")

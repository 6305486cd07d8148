"""Which MLP neurons do languages share? The method of "Sharing Matters" (arXiv 2406.09265) for TransformerLens."""

from importlib import import_module
from types import ModuleType

from tl_neuronshare.categorising import categorise, categorise_caches
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models import load_model
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.recording import SharingRecorder
from tl_neuronshare.sharing import NeuronSharing, NeuronType, neuron_types

__version__ = "0.1.0"
__all__ = [
    "NeuronShareError",
    "NeuronSharing",
    "NeuronType",
    "ParallelPrompts",
    "SharingRecorder",
    "categorise",
    "categorise_caches",
    "demo",
    "load_model",
    "neuron_types",
    "plots",
    "tasks",
]


def __getattr__(name: str) -> ModuleType:
    """Load plotting, tasks and the built-in model only when somebody asks for them."""
    if name in ("demo", "plots", "tasks"):
        return import_module(f"tl_neuronshare.{name}")
    raise AttributeError(f"module 'tl_neuronshare' has no attribute {name!r}")

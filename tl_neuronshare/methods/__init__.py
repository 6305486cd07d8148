"""Other published ways to find language neurons: each gives one mask a language, for the same studies and controls.

A file is one method, with its formula, its source and the defaults of its authors.
"""

from tl_neuronshare.methods.average_precision import average_precision
from tl_neuronshare.methods.bipartition import bipartition
from tl_neuronshare.methods.comparing import agreement, sizes, types
from tl_neuronshare.methods.lape import lape
from tl_neuronshare.methods.parallel_detection import parallel_detection
from tl_neuronshare.methods.specific_related_general import (
    by_number_of_languages,
    largest_weight,
    specific_related_general,
)
from tl_neuronshare.methods.steering import steered, steering_hooks
from tl_neuronshare.methods.transfer_neurons import transfer_neurons

__all__ = [
    "agreement",
    "average_precision",
    "bipartition",
    "by_number_of_languages",
    "lape",
    "largest_weight",
    "parallel_detection",
    "sizes",
    "specific_related_general",
    "steered",
    "steering_hooks",
    "transfer_neurons",
    "types",
]

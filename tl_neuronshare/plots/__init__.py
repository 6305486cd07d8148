"""Tables to matplotlib figures. Nothing here changes matplotlib's global style."""

from tl_neuronshare.plots.ablating import ablation, dose_response
from tl_neuronshare.plots.along import tokens
from tl_neuronshare.plots.attribution import causal_check, correctness, impact, top_shares
from tl_neuronshare.plots.crossing import cross_ablation
from tl_neuronshare.plots.methods import methods
from tl_neuronshare.plots.overlap import input_overlap, language_overlap, overlap_ladder, relatedness
from tl_neuronshare.plots.sharing import chance, never_activated, patterns, persistence, side_by_side

__all__ = [
    "ablation",
    "causal_check",
    "chance",
    "correctness",
    "cross_ablation",
    "dose_response",
    "impact",
    "input_overlap",
    "language_overlap",
    "methods",
    "never_activated",
    "overlap_ladder",
    "patterns",
    "persistence",
    "relatedness",
    "side_by_side",
    "tokens",
    "top_shares",
]

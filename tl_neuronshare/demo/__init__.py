"""The built-in model: a tiny multilingual BLOOM that knows facts in nine languages, with prompts that it gets right.

Trained by `experiments/train_demo_model.py`; see docs/demo-model.md for what it can and cannot show.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tl_neuronshare import models
from tl_neuronshare.models import loading
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.models.loading import Backend
from tl_neuronshare.prompts import ParallelPrompts

DIRECTORY = Path(__file__).parent / "data"


def load_model(*, backend: Backend = "auto", device: str | torch.device | None = None) -> LensModel:
    """The built-in model, without a network, in float32.

    Args:
        backend: `hooked` is a HookedTransformer, `bridge` a TransformerBridge; `auto` is the former on
            TransformerLens 3 and the latter on 4.
        device: where to put it; TransformerLens's choice by default.

    Raises:
        NeuronShareError: an unknown backend, or `hooked` on TransformerLens 4.

    Example:
        >>> load_model(device="cpu").cfg.n_layers
        4
    """
    if backend == "auto":
        backend = "hooked" if models.has_hooked_transformer() else "bridge"
    model = loading.load_model(DIRECTORY, backend=backend, device=device)
    model.cfg.model_name = "demo"  # else the directory's
    return model


def prompts() -> ParallelPrompts:
    """Facts that the built-in model gets right in all nine languages, in a fixed order, with answers and choices.

    Example:
        >>> prompts().languages
        ('en', 'de', 'es', 'fr', 'ru', 'th', 'tr', 'vi', 'zh')
    """
    return ParallelPrompts(**json.loads((DIRECTORY / "prompts.json").read_text(encoding="utf-8")))

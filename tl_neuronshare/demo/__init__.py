"""The built-in model: a tiny multilingual BLOOM that knows facts in nine languages, with prompts that it gets right.

It is trained by `experiments/train_demo_model.py`. What it can and cannot show is in docs/demo-model.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tl_neuronshare import models
from tl_neuronshare.arguments import explains
from tl_neuronshare.models import loading
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.models.loading import Backend
from tl_neuronshare.prompts import ParallelPrompts

DIRECTORY = Path(__file__).parent / "data"


@explains
def load_model(*, backend: Backend = "auto", device: str | torch.device | None = None) -> LensModel:
    """Load the built-in model in float32; this needs no network.

    Args:
        backend: `hooked` is a HookedTransformer, `bridge` a TransformerBridge; `auto` is the first on TransformerLens 3
            and the second on 4.
        device: the device to put the model on; by default TransformerLens chooses.

    Raises:
        NeuronShareError: the backend is unknown, or `hooked` is asked for on TransformerLens 4.

    Examples:
        >>> load_model(device="cpu").cfg.n_layers
        4
    """
    if backend == "auto":
        backend = "hooked" if models.has_hooked_transformer() else "bridge"
    model = loading.load_model(DIRECTORY, backend=backend, device=device)
    model.cfg.model_name = "demo"  # otherwise its name is that of the directory
    return model


@explains
def prompts() -> ParallelPrompts:
    """Return facts that the model gets right in all nine languages, with answers and choices, in a fixed order.

    Examples:
        >>> prompts().languages
        ('en', 'de', 'es', 'fr', 'ru', 'th', 'tr', 'vi', 'zh')
    """
    return ParallelPrompts(**json.loads((DIRECTORY / "prompts.json").read_text(encoding="utf-8")))

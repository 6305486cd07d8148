"""Random masks, and tokens to try them on."""

from __future__ import annotations

import torch

from tl_neuronshare import models

POST = "blocks.{}.mlp.hook_post"


def mask_of(model, *, rows=(), share=0.3, seed=0):
    """Return a mask of random neurons in every layer."""
    widths = [layer.width for layer in models.neuron_layers(model, "post")]
    return torch.rand(*rows, len(widths), max(widths), generator=torch.Generator().manual_seed(seed)) < share


def tokens_of(model, text="The capital of France is"):
    return torch.tensor(models.tokenise(model, [text]))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_mask(*shape, share=0.3, seed=0):
    return torch.rand(*shape, generator=seeded(seed)) < share

"""Texts that need not be parallel, and what MLPs compute for them in Hugging Face's modules."""

from __future__ import annotations

import torch

TEXTS = {"en": ["The sky is blue", "Cats", "One two three four five six seven"], "th": ["ท้องฟ้า", "แมว สุนัข"]}


def mlp_inputs(hugging_face, tokens: list[int]) -> list[torch.Tensor]:
    """The input of each down projection, from a torch hook on the module: [position neuron] for each layer."""
    layers = hugging_face.model.layers if hasattr(hugging_face, "model") else hugging_face.transformer.h
    seen: list[torch.Tensor] = []
    hooks = [
        (layer.mlp.down_proj if hasattr(layer.mlp, "down_proj") else layer.mlp.dense_4h_to_h).register_forward_pre_hook(
            lambda _, given: seen.append(given[0][0].detach())
        )
        for layer in layers
    ]
    with torch.no_grad():
        hugging_face(torch.tensor([tokens]))
    for hook in hooks:
        hook.remove()
    return seen

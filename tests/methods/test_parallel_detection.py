"""Parallel neuron detection against what an MLP no longer writes without a neuron, through Hugging Face's modules."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns

TEXTS = {"en": ["The sky is blue", "Cats", "One two three four five"], "th": ["ท้องฟ้า", "แมว สุนัข"]}


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_it_equals_the_definition(animals, backend, share):
    """Each neuron's line of the down projection is set to zero, and the change of the MLP's output is measured."""
    model = animals.lens("llama", backend)
    hugging_face, tokenizer = animals.hugging_face("llama")
    found = ns.methods.parallel_detection(model, TEXTS, share=share, prepend_bos=False)
    n_neurons = model.cfg.n_layers * model.cfg.d_mlp
    for language, texts in TEXTS.items():
        kept, near = torch.ones(n_neurons, dtype=torch.bool), torch.zeros(n_neurons, dtype=torch.bool)
        for text in texts:
            scores = []
            for layer in hugging_face.model.layers:
                seen = []
                hook = layer.mlp.down_proj.register_forward_pre_hook(
                    lambda _, given, seen=seen: seen.append(given[0][0])
                )
                with torch.no_grad():
                    hugging_face(torch.tensor([tokenizer(text, add_special_tokens=False).input_ids]))
                hook.remove()
                weights = layer.mlp.down_proj.weight.detach().double()
                for neuron in range(model.cfg.d_mlp):
                    only = torch.zeros_like(seen[0], dtype=torch.float64)
                    only[:, neuron] = seen[0][:, neuron].double()
                    scores.append((only @ weights.T).norm().item())
            ranked = sorted(scores, reverse=True)
            bar = ranked[round(share * n_neurons) - 1]
            kept &= torch.tensor([score >= bar for score in scores])
            near |= torch.tensor([abs(score - bar) < 1e-5 for score in scores])
        assert torch.equal(found[language].flatten() | near, kept | near)
    assert any(mask.any() for mask in found.values())


def test_bad_share(as_users_run_it, bloom):
    with pytest.raises(ns.NeuronShareError, match="share=0; give a share"):
        ns.methods.parallel_detection(bloom, TEXTS, share=0)

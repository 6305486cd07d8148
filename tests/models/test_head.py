"""The final norm, compared with Hugging Face's modules."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns
from support import zoo
from tl_neuronshare import models


@pytest.mark.parametrize("name", zoo.KINDS)
def test_the_final_norm_is_that_of_hugging_face(animals, name, backend):
    """The value, the gradient, and the change of the output while the scale is frozen are compared."""
    hugging_face, _ = animals.hugging_face(name)
    module, norm = hugging_face.get_submodule(zoo.KINDS[name].norm), models.final_norm(animals.lens(name, backend))
    generator = torch.Generator().manual_seed(1)
    residual = (0.5 + torch.randn(5, 32, generator=generator)).requires_grad_()
    unembedding, step = torch.randn(2, 5, 32, generator=generator)
    out = module(residual)
    without_bias = out - module(torch.zeros(5, 32))
    torch.testing.assert_close(norm(residual), without_bias, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad((out * unembedding).sum(), residual)
    torch.testing.assert_close(norm.full(unembedding, residual), gradient, rtol=1e-4, atol=1e-5)
    # With a frozen scale the norm is linear: its output is that of the norm times the scale that it really divided by.
    scale = norm.scale(residual)
    frozen = (norm(residual + step) * norm.scale(residual + step) - norm(residual) * scale) / scale
    along = (norm.frozen(unembedding, residual) * step).sum(-1)
    torch.testing.assert_close(along, (frozen * unembedding).sum(-1), rtol=1e-4, atol=1e-4)


OTHER_NORMS = {
    "gemma": ("gemma", zoo._LLAMA),
    "olmo": ("olmo", zoo._LLAMA),
    "olmo2": ("olmo2", zoo._LLAMA),
    "granite": ("granite", zoo._LLAMA),
    "stablelm": ("stablelm", zoo._LLAMA),
    "mpt": ("mpt", {"vocab_size": 400, "d_model": 32, "n_layers": 2, "n_heads": 4}),
}


@pytest.mark.parametrize(("model_type", "config"), OTHER_NORMS.values(), ids=OTHER_NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_of_other_bridges(model_type, config, dtype, tmp_path):
    """The norms have no weights, offset weights, no bias, or an epsilon that the configuration does not have."""
    zoo.save_model(model_type, config, tmp_path)
    model = ns.load_model(tmp_path, backend="bridge", device="cpu", dtype=dtype)
    module, norm = model.ln_final.original_component, models.final_norm(model)
    residual = (0.5 + torch.randn(5, 32, generator=torch.Generator().manual_seed(1))).to(dtype)
    expected = (module(residual) - module(torch.zeros_like(residual))).float()
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(norm(residual.float()), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "offset"), [("gemma2", 1), ("gemma3", 1), ("llama", 0), ("bloom", 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_weights_hardly_differ_from_one_more(animals, name, offset, dtype):
    """Real Gemma 3 has weights of about 50, and adds 1 to them."""
    model = ns.load_model(animals.directory(name), backend="bridge", device="cpu", dtype=dtype)
    weight = model.ln_final.original_component.weight
    with torch.no_grad():
        weight += 60
    norm = models.final_norm(model)
    assert torch.equal(norm.weight, weight.float() + offset)
    assert norm.centres == (name == "bloom")


def test_a_norm_of_another_kind_is_refused(animals, as_users_run_it, monkeypatch):
    model = animals.lens("bloom", "bridge")

    class Strange(torch.nn.Module):
        def forward(self, vectors):
            return vectors.tanh()

    monkeypatch.setitem(model.ln_final._modules, "_original_component", Strange())
    with pytest.raises(ns.NeuronShareError, match=r"a Strange, is neither a LayerNorm nor an RMSNorm; use norm"):
        models.final_norm(model)

"""The final norm, compared with Hugging Face's modules, and models that change what their MLPs write."""

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


CHANGED = {
    "gemma2": (zoo.KINDS["gemma2"].config, "normalises what its MLPs write"),
    "olmo2": (zoo._LLAMA, "normalises what its MLPs write"),
    "granite": ({**zoo._LLAMA, "residual_multiplier": 0.2}, "multiplies what its MLPs write"),
    "openai-gpt": ({"vocab_size": 400, "n_embd": 32, "n_layer": 2, "n_head": 4}, "normalises what its MLPs write"),
    "bert": ({**zoo._SIZES, "num_hidden_layers": 2, "is_decoder": True}, "normalises what its MLPs write"),
    "olmo_hybrid": (
        {
            **zoo._LLAMA,
            "num_hidden_layers": 4,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        r"normalises what its MLPs write (layer 3)",  # the layers before it have linear attention, and another norm
    ),
    "gpt2": (zoo.KINDS["gpt2"].config, None),
    "mpt": (OTHER_NORMS["mpt"][1], None),
    "phi": (zoo._LLAMA, None),  # attention and MLP in parallel
    "llama": (zoo._LLAMA, None),
}


@pytest.mark.parametrize(("model_type", "config", "what"), [(k, *v) for k, v in CHANGED.items()], ids=CHANGED)
def test_models_that_change_what_their_mlps_write_are_known(model_type, config, what, tmp_path):
    model = ns.load_model(zoo.save_model(model_type, config, tmp_path), backend="bridge", device="cpu")
    found = models.changes_mlp_output(model)
    assert found is None if what is None else found.startswith(what)


@pytest.mark.skipif(not models.has_hooked_transformer(), reason="there is no HookedTransformer")
def test_a_hooked_transformer_with_norms_after_its_mlps(tmp_path):
    directory = zoo.save_model("olmo3", zoo._LLAMA, tmp_path)
    model = ns.load_model(directory, backend="hooked", device="cpu")
    assert models.changes_mlp_output(model).startswith("normalises what its MLPs write (layer 0)")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "changed"), [("gemma2", True), ("bloom", False), ("llama", False)])
def test_in_half_precision_too(animals, name, backend, changed, dtype):
    if backend == "hooked" and animals.kind(name).hooked != "directory":
        backend = "bridge"
    model = ns.load_model(animals.directory(name), backend=backend, device="cpu", dtype=dtype)
    assert (models.changes_mlp_output(model) is not None) == changed


@pytest.mark.parametrize(("name", "changed"), [("gemma2", True), ("bloom", False), ("opt", False)])
def test_and_of_both_classes_alike(animals, name, backend, changed):
    assert (models.changes_mlp_output(animals.lens(name, backend)) is not None) == changed

"""Loading: raw weights, in the class and precision that are asked for, and inputs that cannot be loaded."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

import tl_neuronshare as ns
from support import zoo
from tl_neuronshare import models
from tl_neuronshare.models import loading
from tl_neuronshare.running import provenance


@pytest.mark.parametrize("name", zoo.KINDS)
def test_logits_are_those_of_hugging_face(animals, name, backend):
    """The weights are raw, without which no comparison with a reference would mean anything."""
    model, (reference, _) = animals.lens(name, backend), animals.hugging_face(name)
    tokens = torch.randint(1, 400, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = model(tokens).log_softmax(-1), reference(tokens).logits.log_softmax(-1)
    assert (ours - theirs).abs().max() < 5e-5
    assert provenance.describe(model)["weights"] == "not folded"


def test_hooked_transformer_where_there_is_one(animals):
    directory = animals.directory("bloom")
    if models.has_hooked_transformer():
        assert type(ns.load_model(directory, backend="hooked", device="cpu")).__name__ == "HookedTransformer"
        with pytest.raises(ns.NeuronShareError, match='converts this architecture by its name.*backend="bridge"'):
            ns.load_model(animals.directory("llama"), backend="hooked", device="cpu")
    else:
        with pytest.raises(ns.NeuronShareError, match="no longer has HookedTransformer"):
            ns.load_model(directory, backend="hooked")
    assert type(ns.load_model(directory, device="cpu")).__name__ == "TransformerBridge"


@pytest.mark.skipif(not models.has_hooked_transformer(), reason="TransformerLens 4 loads no model by its own names")
def test_end_tokens_of_a_name_are_those_of_its_place_on_the_hub(animals, tmp_path, monkeypatch):
    GenerationConfig(eos_token_id=[7, 106]).save_pretrained(tmp_path)
    monkeypatch.setattr("transformer_lens.loading_from_pretrained.get_official_model_name", lambda name: str(tmp_path))
    assert loading._generation_config("gpt2").eos_token_id == [7, 106]
    (tmp_path / "generation_config.json").unlink()
    assert loading._generation_config("gpt2") is None


@pytest.mark.usefixtures("as_users_run_it")
def test_odd_things_to_load(tmp_path):
    (tmp_path / "x.gguf").mkdir()
    for given, message in (
        (None, "name_or_path=None; give a name on the hub, a directory or a .gguf file"),
        ("", "name_or_path=''; give"),
        (tmp_path / "none.gguf", "There is no file '.*none.gguf'"),
        (tmp_path / "x.gguf", "The directory '.*x.gguf' could not be loaded"),
    ):
        with pytest.raises(ns.NeuronShareError, match=message):
            ns.load_model(given)
    with pytest.raises(ns.NeuronShareError, match="dtype='float16' is unknown; give one of torch's"):
        ns.load_model(tmp_path, dtype="float16")
    (tmp_path / "empty.GGUF").touch()
    with pytest.raises(ns.NeuronShareError, match="The file '.*empty.GGUF' could not be loaded"):
        ns.load_model(tmp_path / "empty.GGUF")
    with pytest.raises(ns.NeuronShareError, match="is a GGUF file, which only a TransformerBridge"):
        ns.load_model(tmp_path / "empty.GGUF", backend="hooked")


@pytest.mark.usefixtures("as_users_run_it")
def test_loading_models(tmp_path):  # names that the hub does not know: test_experiments.py
    with pytest.raises(ns.NeuronShareError, match="backend='fast' is unknown; use one of auto, hooked, bridge"):
        ns.load_model("gpt2", backend="fast")
    with pytest.raises(ns.NeuronShareError, match="The directory .* could not be loaded"):
        ns.load_model(tmp_path)

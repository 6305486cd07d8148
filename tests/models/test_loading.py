"""Loading: raw weights, in the class and precision that are asked for, and inputs that cannot be loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

import tl_neuronshare as ns
from support import zoo
from tl_neuronshare import models
from tl_neuronshare.models import lens, loading, verification
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
        with pytest.raises(
            ns.NeuronShareError, match='cannot make a HookedTransformer of it.*n_ctx.*\nUse backend="br'
        ):
            ns.load_model(animals.directory("gpt2"), backend="hooked", device="cpu")
    else:
        with pytest.raises(ns.NeuronShareError, match="no longer has HookedTransformer"):
            ns.load_model(directory, backend="hooked")
    assert type(ns.load_model(directory, device="cpu")).__name__ == "TransformerBridge"


@pytest.mark.skipif(not models.has_hooked_transformer(), reason="there is no HookedTransformer")
@pytest.mark.parametrize("name", ["my-llama", "Llama-3.2-1B", "gemma", "gemma-3-1b", "santacoder"])
def test_the_name_of_a_directory_means_nothing(animals, tmp_path, name):
    for kind in ("bloom", "llama"):
        directory = shutil.copytree(animals.directory(kind), tmp_path / kind[:2] / name)
        model = ns.load_model(directory, backend="hooked", device="cpu")
        expected = animals.hugging_face(kind)[0](torch.arange(1, 9)[None]).logits
        assert (model(torch.arange(1, 9)[None]).softmax(-1) - expected.softmax(-1)).abs().max() < 1e-4
        assert (model.cfg.model_name, model.cfg.tokenizer_name) == (name, str(directory))


def test_a_relative_directory_goes_before_a_name_of_transformer_lens(animals, backend, tmp_path, monkeypatch):
    """gpt2-small is a model on the hub for TransformerLens, and here it is a directory."""
    shutil.copytree(animals.directory("bloom"), tmp_path / "gpt2-small")
    monkeypatch.chdir(tmp_path)
    model = ns.load_model("gpt2-small", backend=backend, device="cpu")
    tokens = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(model(tokens), animals.lens("bloom", backend)(tokens), rtol=1e-4, atol=1e-4)


CODE = """
from pathlib import Path
{imports}
from transformers import {names}

(Path(__file__).parent / "{file}.ran").touch()  # Transformers copies the file to a folder of its own
"""


@pytest.fixture
def with_code(animals, tmp_path, monkeypatch):
    """A Llama whose directory brings the code of its configuration and its model."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path / "modules")])
    directory = shutil.copytree(animals.directory("llama"), tmp_path / "model")
    for file, (name, base) in {
        "configuration": ("OwnConfig", "LlamaConfig"),
        "modeling": ("LlamaForCausalLM", "LlamaForCausalLM as Base"),
    }.items():
        imports = "from .configuration_own import OwnConfig" if file == "modeling" else ""
        code = CODE.format(imports=imports, names=base, file=file) + f"class {name}({base.split()[-1]}):\n"
        code += '    model_type = "own"\n' if file == "configuration" else "    config_class = OwnConfig\n"
        (directory / f"{file}_own.py").write_text(code)
    config = json.loads((directory / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.LlamaForCausalLM",
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.usefixtures("as_users_run_it")
def test_code_that_comes_with_a_model_runs_only_when_asked(with_code, animals, backend, tmp_path):
    with pytest.raises(ns.NeuronShareError, match=r"(?s)comes with Python code.*trust_remote_code=True"):
        ns.load_model(with_code, backend=backend, device="cpu")
    assert not list(tmp_path.rglob("*.ran"))
    model = ns.load_model(with_code, backend=backend, device="cpu", trust_remote_code=True)
    assert list(tmp_path.rglob("*.ran"))
    expected = animals.hugging_face("llama")[0](torch.arange(1, 9)[None]).logits
    assert (model(torch.arange(1, 9)[None]).softmax(-1) - expected.softmax(-1)).abs().max() < 1e-4
    with pytest.raises(ns.NeuronShareError, match="trust_remote_code='yes'; give True or False"):
        ns.load_model(with_code, trust_remote_code="yes")


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.skipif(not models.has_hooked_transformer(), reason="there is no HookedTransformer")
def test_names_whose_code_transformer_lens_would_run_unasked(monkeypatch):
    made = []
    monkeypatch.setattr(
        "transformer_lens.model_bridge.TransformerBridge.boot_transformers",
        lambda name, **how: made.append((name, how["trust_remote_code"])) or SimpleNamespace(tokenizer=None),
    )
    monkeypatch.setattr(verification, "do_not_verify", lambda model: None)
    ns.load_model("Qwen/Qwen3-0.6B", verify=False)
    assert made == [("Qwen/Qwen3-0.6B", False)]
    with pytest.raises(ns.NeuronShareError, match=r"runs the Python code that comes with 'Qwen/Qwen3-0.6B'.*or use"):
        ns.load_model("Qwen/Qwen3-0.6B", backend="hooked")


FROM_BELOW = {
    "Falcon, new decoder": (
        "falcon",
        {
            "vocab_size": 400,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
        },
        "cannot make a TransformerBridge of it. RuntimeError: split_with_sizes",
    ),
    "GPTBigCode without multi-query": (
        "gpt_bigcode",
        {**zoo.KINDS["gpt2"].config, "n_layer": 2, "multi_query": False},
        "AssertionError: GPTBigCodeArchitectureAdapter only supports multi_query=True",
    ),
    "an unknown architecture": (
        "xlm-roberta",
        {**zoo._SIZES, "num_hidden_layers": 2, "is_decoder": True},
        r"TransformerLens [\d.]+ does not support XLMRobertaForCausalLM.\nUse a different version",
    ),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("model_type", "config", "message"), FROM_BELOW.values(), ids=FROM_BELOW)
def test_what_is_raised_below_is_said_in_few_words(model_type, config, message, tmp_path):
    directory = zoo.save_model(model_type, config, tmp_path)
    with pytest.raises(ns.NeuronShareError, match=message) as raised:
        ns.load_model(directory, backend="bridge", device="cpu")
    assert len(str(raised.value)) < 700


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("this needs timm"), "this needs timm\nInstall the package that it names"),
        (torch.OutOfMemoryError("20 GiB"), "OutOfMemoryError: 20 GiB\nThere is too little memory; use a smaller dtype"),
        (IndexError("x" * 1000 + " y"), "IndexError"),
        (OSError("not found"), "not found\nGive a directory with config.json"),
    ],
    ids=lambda given: type(given).__name__,
)
def test_errors_of_each_kind(error, message, tmp_path, monkeypatch):
    def boot(*_args, **_options):
        raise error

    monkeypatch.setattr("transformer_lens.model_bridge.TransformerBridge.boot_transformers", boot)
    with pytest.raises(ns.NeuronShareError, match=message) as raised:
        ns.load_model(tmp_path, backend="bridge")
    assert len(str(raised.value)) < 900
    assert raised.value.__cause__ is error


def test_transformer_lens_installs_nothing(tmp_path, monkeypatch):
    """For a model of images and text it runs `pip install torchvision`, which may replace the user's torch."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    asked = []
    monkeypatch.setattr(subprocess, "check_call", lambda command, **_: asked.append(command))
    with lens.nothing_installed():
        with pytest.raises(OSError, match="pip install torchvision: not run"):
            subprocess.check_call([sys.executable, "-m", "pip", "install", "torchvision"])
        subprocess.check_call(["true"])
    assert asked == [["true"]]


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
    with pytest.raises(ns.NeuronShareError, match="dtype='float16' is unknown; give a floating-point one"):
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

"""What is known of TransformerLens: loading, hooks, tokens, weights, and running without the vocabulary."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig

import tl_neuronshare as ns
import zoo
from tl_neuronshare import models
from tl_neuronshare.models import loading
from tl_neuronshare.running import plan, provenance

DENSE = [*zoo.KINDS, "demo"]


@pytest.mark.parametrize("name", zoo.KINDS)
def test_logits_are_those_of_hugging_face(animals, name, backend):
    """Raw weights, nothing folded: else every comparison with a reference would be void."""
    model, (reference, _) = animals.lens(name, backend), animals.hugging_face(name)
    tokens = torch.randint(1, 400, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = model(tokens).log_softmax(-1), reference(tokens).logits.log_softmax(-1)
    assert (ours - theirs).abs().max() < 5e-5
    assert provenance.describe(model)["weights"] == "not folded"


@pytest.mark.parametrize("name", DENSE)
def test_layers_are_in_numerical_order(animals, name, backend):
    layers = models.neuron_layers(animals.lens(name, backend), "post")
    assert [layer.hook for layer in layers] == [f"blocks.{i}.mlp.hook_post" for i in range(len(layers))]
    assert len(layers) == (4 if name == "demo" else zoo.KINDS[name].n_layers)


@pytest.mark.parametrize("name", zoo.KINDS)
def test_output_weights_and_unembedding_are_those_of_hugging_face(animals, name, backend):
    model, (reference, _) = animals.lens(name, backend), animals.hugging_face(name)
    down = reference.get_submodule(zoo.KINDS[name].down.format(1))
    rows = down.weight if name == "gpt2" else down.weight.T  # GPT-2's Conv1D keeps [in, out]
    assert torch.equal(models.output_weights(model, "blocks.1.mlp.hook_post"), rows)
    tokens = torch.tensor([7, 3, 399])
    ours, theirs = models.unembedding(model, tokens), reference.get_output_embeddings().weight[tokens].T
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("prepend_bos", [True, False, None])
@pytest.mark.parametrize("name", DENSE)
def test_tokens_are_those_of_transformer_lens(animals, name, backend, prepend_bos):
    model = animals.lens(name, backend)
    texts = [text for texts in zoo.TEXTS.values() for text in texts]
    for text, ours in zip(texts, models.tokenise(model, texts, prepend_bos=prepend_bos), strict=True):
        assert ours == model.to_tokens(text, prepend_bos=prepend_bos)[0].tolist()


def last_values(model, rows, layers):
    """Each layer's values at the last token of each row."""
    values = {}
    with torch.no_grad(), models.reading(model, layers, lambda layer, tensor: values.update({layer: tensor[:, -1]})):
        models.run(model, *models.left_padded(rows))
    return [values[layer] for layer in range(len(layers))]


@pytest.mark.parametrize("name", DENSE)
def test_values_are_those_of_each_row_alone(animals, name, backend):
    """Left padding with a mask made of lengths; the padding is the BOS and end token, and one row begins with it."""
    model = animals.lens(name, backend)
    layers = models.neuron_layers(model, "post")
    rows = [[5, 6, 7, 8, 9, 10, 11], [0, 12, 13], [14]]
    together = last_values(model, rows, layers)
    for index, row in enumerate(rows):
        for all_rows, one in zip(together, last_values(model, [row], layers), strict=True):
            torch.testing.assert_close(all_rows[index], one[0], atol=2e-5, rtol=1e-4)


class Largest(TorchDispatchMode):
    """Watches every operation, and keeps the shapes of what ends in the width of the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.shapes = vocabulary, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dim() == 3 and result.shape[-1] == self.vocabulary:
            self.shapes.add(tuple(result.shape))
        return result


@pytest.mark.parametrize("name", zoo.KINDS)
def test_no_logits_are_made_but_for_the_last_position(animals, name, backend):
    model = animals.lens(name, backend)
    layers = models.neuron_layers(model, "post")
    with torch.no_grad():
        with Largest(400) as full:
            model(torch.tensor([[5, 6, 7, 8]]))
        with Largest(400) as ours:
            last_values(model, [[5, 6, 7, 8]], layers)
    assert (1, 4, 400) in full.shapes  # the watch sees what it must not see below
    assert ours.shapes <= {(1, 1, 400)}


@pytest.mark.usefixtures("as_users_run_it")  # the annotations ask for Python's
def test_numbers_of_numpy_serve_as_options(animals, prompts, tmp_path):
    model = animals.lens("bloom", "bridge")
    sharing = ns.categorise(model, prompts, threshold=np.float32(0.5), batch_size=np.int64(3))
    assert sharing == ns.categorise(model, prompts, threshold=0.5, batch_size=3)
    sharing.save(tmp_path / "file")
    assert ns.NeuronSharing.load(tmp_path / "file").metadata == sharing.metadata


def test_batches_hold_every_prompt_once_and_pad_little():
    lengths = [(7,), (3,), (9,), (3,), (3,), (8,), (1,), (7,)]
    for pad in (True, False):
        for batch_size in (1, 3, 100, "auto"):
            batches = plan.plan_batches(lengths, batch_size, packing=models.Packing(pad))
            assert sorted(index for batch in batches for index in batch) == list(range(8))
            if not pad:
                assert all(len({lengths[index] for index in batch}) == 1 for batch in batches)
            if batch_size != "auto":
                assert max(map(len, batches)) <= batch_size
    order = [lengths[index] for batch in plan.plan_batches(lengths, 3, packing=models.Packing()) for index in batch]
    assert order == sorted(lengths)


def test_plans_cost_least():
    """Against every way to cut the sorted lengths into batches."""
    generator = torch.Generator().manual_seed(0)
    for packing in (models.Packing(tokens_a_pass=9), models.Packing(tokens_a_pass=30)):
        for _ in range(20):
            lengths = torch.randint(1, 20, (8,), generator=generator).tolist()
            batches = plan.plan_batches([(length,) for length in lengths], "auto", packing=packing)
            assert sorted(row for batch in batches for row in batch) == list(range(8))

            def cost(parts, packing=packing):
                return sum(packing.tokens_a_pass + len(part) * max(part) for part in parts)

            ordered = sorted(lengths)
            cuts = [[place for place in range(1, 8) if bits >> place & 1] for bits in range(0, 256, 2)]
            every = [[ordered[start:stop] for start, stop in itertools.pairwise([0, *cut, 8])] for cut in cuts]
            assert cost([[lengths[row] for row in batch] for batch in batches]) == min(map(cost, every))


def test_automatic_batches_shrink_as_prompts_grow():
    assert len(plan.plan_batches([(10,)] * 300, "auto", packing=models.Packing())) == 2
    assert max(map(len, plan.plan_batches([(4096,)] * 5, "auto", packing=models.Packing()))) == 2
    assert max(map(len, plan.plan_batches([(100_000,)] * 3, "auto", packing=models.Packing()))) == 1


def test_hooked_transformer_where_there_is_one(animals):
    directory = animals.directory("bloom")
    if models.has_hooked_transformer():
        assert type(ns.load_model(directory, backend="hooked", device="cpu")).__name__ == "HookedTransformer"
        with pytest.raises(ns.NeuronShareError, match='converts this architecture by its name.*backend="bridge"'):
            ns.load_model(animals.directory("llama"), backend="hooked", device="cpu")
    else:
        with pytest.raises(ns.NeuronShareError, match="has no HookedTransformer any more"):
            ns.load_model(directory, backend="hooked")
    assert type(ns.load_model(directory, device="cpu")).__name__ == "TransformerBridge"


def test_half_precision_is_loaded_and_recorded(animals, prompts):
    model = ns.load_model(animals.directory("llama"), device="cpu", dtype=torch.bfloat16)
    sharing = ns.categorise(model, prompts)
    assert sharing.metadata["dtype"] == "bfloat16"
    exact = ns.categorise(animals.lens("llama", "bridge"), prompts)
    assert (sharing.activated() != exact.activated()).float().mean() < 0.05


@pytest.mark.parametrize(("dtype", "value", "threshold"), [(torch.float64, 1e-60, 0.0), (torch.bfloat16, 0.1, 0.1)])
def test_values_are_compared_in_no_less_than_their_own_precision(animals, prompts, dtype, value, threshold):
    """1e-60 is 0 in single precision; bfloat16's 0.1 is 0.10009765625, above 0.1."""
    model = ns.load_model(animals.directory("bloom"), device="cpu", dtype=dtype)
    fill = [("blocks.2.mlp.hook_post", lambda tensor, hook: torch.full_like(tensor, value))]
    with model.hooks(fwd_hooks=fill):
        # One at a time: a padded BLOOM gives NaN in double precision, in Hugging Face too, and is refused.
        assert ns.categorise(model, prompts, threshold=threshold, batch_size=1).activated()[:, :, 2].all()


def test_processed_weights_are_recorded(animals, prompts):
    bridge = ns.load_model(animals.directory("gpt2"), backend="bridge", device="cpu")
    bridge.enable_compatibility_mode()
    assert ns.categorise(bridge, prompts).metadata["weights"] == "folded"


def test_end_tokens_are_those_of_the_directory_too(animals, backend, tmp_path):
    """`generation_config.json` may name several; a HookedTransformer knows nothing of them by itself."""
    directory = tmp_path / "bloom"
    shutil.copytree(animals.directory("bloom"), directory)
    GenerationConfig(eos_token_id=[7, 106]).save_pretrained(directory)
    model = ns.load_model(directory, backend=backend, device="cpu")
    assert models.end_tokens(model) == [0, 7, 106]  # 0 is the tokenizer's


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
    with pytest.raises(ns.NeuronShareError, match="is a GGUF file, of which only a TransformerBridge"):
        ns.load_model(tmp_path / "empty.GGUF", backend="hooked")

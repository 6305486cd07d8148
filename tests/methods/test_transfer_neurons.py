"""Transfer neurons against the authors' formula, one text and one neuron at a time, through Hugging Face's modules."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

import tl_neuronshare as ns
from tl_neuronshare.methods.transfer_neurons import gains

TEXTS = {
    "en": ["The sky is blue", "Cats and dogs", "One two three"],
    "de": ["Der Himmel ist blau", "Katzen und Hunde", "Eins zwei drei"],
    "th": ["ท้องฟ้าเป็นสีฟ้า", "แมว สุนัข", "หนึ่ง สอง สาม"],
}


def read(hugging_face, tokenizer, text):
    """At the last token: the residual stream after each layer, and the neurons' values in it."""
    values, hooks = [], []
    for layer in hugging_face.model.layers:
        hooks.append(layer.mlp.down_proj.register_forward_pre_hook(lambda _, given: values.append(given[0][0, -1])))
        hooks.append(
            layer.register_forward_hook(
                lambda _, __, output: after.append((output if isinstance(output, torch.Tensor) else output[0])[0, -1])
            )
        )
    after: list[torch.Tensor] = []
    with torch.no_grad():
        hugging_face(torch.tensor([tokenizer(text, add_special_tokens=False).input_ids]))
    for hook in hooks:
        hook.remove()
    return [each.detach().double() for each in after], [each.detach().double() for each in values]


@pytest.mark.parametrize("direction", ["to shared", "from shared"])
def test_it_equals_the_formula(animals, backend, direction):
    model = animals.lens("llama", backend)
    hugging_face, tokenizer = animals.hugging_face("llama")
    layers, n = list(range(model.cfg.n_layers)), 7
    of_texts = {language: [read(hugging_face, tokenizer, text) for text in texts] for language, texts in TEXTS.items()}
    found = ns.methods.transfer_neurons(model, TEXTS, direction=direction, n=n, layers=layers, prepend_bos=False)
    assert list(found) == (["de", "th"] if direction == "to shared" else ["en", "de", "th"])
    for language, mask in found.items():
        scores = {}
        for layer in layers:
            rows = hugging_face.model.layers[layer].mlp.down_proj.weight.detach().double().T
            centroid = torch.stack([after[layer] for after, _ in of_texts[language]]).mean(0)
            if direction == "to shared":
                english = torch.stack([after[layer] for after, _ in of_texts["en"]]).mean(0)
                centroid = (centroid + english) / 2
            for neuron, row in enumerate(rows):
                each = []
                for after, values in of_texts[language]:
                    before = after[layer] - values[layer] @ rows
                    moved = before + values[layer][neuron] * row
                    each.append(cosine_similarity(moved, centroid, dim=0) - cosine_similarity(before, centroid, dim=0))
                scores[layer, neuron] = torch.stack(each).mean().item()
        expected = sorted(scores, key=scores.get, reverse=True)[:n]
        chosen = {tuple(place) for place in mask.nonzero().tolist()}
        assert len(chosen) == n
        worst = scores[expected[-1]]
        assert all(scores[place] > worst - 1e-6 for place in chosen)  # but for rounding, the same


def test_gains_of_a_neuron_that_writes_nothing_are_zero():
    generator = torch.Generator().manual_seed(0)
    residual, rows = torch.randn(3, 8, generator=generator), torch.randn(5, 8, generator=generator)
    values = torch.randn(3, 5, generator=generator)
    values[:, 2] = 0
    found = gains(residual, values, rows, torch.randn(8, generator=generator))
    assert found[:, 2].abs().max() < 1e-6
    assert found[:, [0, 1, 3, 4]].abs().min() > 1e-4


def test_layers_by_default(animals):
    """Neurons that move a text to the shared space are looked for in the first 5/8 of the layers, others behind."""
    model = animals.lens("llama", "bridge")
    n_early = round(20 / 32 * model.cfg.n_layers)
    early = ns.methods.transfer_neurons(model, TEXTS, direction="to shared", n=3)
    late = ns.methods.transfer_neurons(model, TEXTS, direction="from shared", n=3)
    assert 0 < n_early < model.cfg.n_layers
    assert not any(mask[n_early:].any() for mask in early.values())
    assert not any(mask[:n_early].any() for mask in late.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"direction": "up"}, "direction='up'"),
        ({"shared": "fr"}, "compares texts in 'fr' with those of other languages"),
        ({"texts": {"en": ["One"], "de": ["Eins", "Zwei"]}}, "Language 'de' has 2 texts and 'en' 1"),
        ({"n": 10**6}, "n=1000000: layers .* have only"),
        ({"layers": [99]}, "layers="),
    ],
)
def test_bad_input(as_users_run_it, animals, changes, message):
    given = {"texts": TEXTS, "direction": "to shared", **changes}
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.methods.transfer_neurons(animals.lens("llama", "bridge"), given.pop("texts"), **given)


def test_a_model_that_normalises_what_its_mlps_write_is_refused(animals):
    with pytest.raises(ns.NeuronShareError, match="normalises what its MLPs write"):
        ns.methods.transfer_neurons(animals.lens("gemma2", "bridge"), TEXTS, direction="from shared")

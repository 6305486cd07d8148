"""Where a method could go wrong: one language, no neuron, equal scores, and mixtures, whose layers differ in width."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM

import tl_neuronshare as ns
from support import literal
from support.architectures import architectures, make
from support.speakers import FIRES, PLANTED, save_speakers
from support.speakers import TEXTS as WORDS
from tl_neuronshare.results.histograms import ValueHistograms

TEXTS = {"en": ["The sky is blue", "Cats and dogs"], "de": ["Der Himmel ist blau", "Katzen und Hunde"]}


# One language: a method that compares languages refuses, the others do as always.


def one_language():
    rates = ns.NeuronRates(torch.tensor([[[9, 5]]]), [10], languages=["en"], widths=[2])
    histograms = ValueHistograms(torch.tensor([[[[9, 1], [5, 5]]]]), languages=["en"], widths=[2])
    return {
        "lape": lambda: ns.methods.lape(rates),
        "specific_related_general": lambda: ns.methods.specific_related_general(rates),
        "average_precision": lambda: ns.methods.average_precision({"en": torch.ones(2, 1, 2)}, widths=[2], n=1),
        "bipartition": lambda: ns.methods.bipartition(histograms),
    }


@pytest.mark.parametrize("method", one_language())
def test_one_language_cannot_be_compared(method):
    with pytest.raises(ns.NeuronShareError, match="at least (two|three)|fewer than two languages"):
        one_language()[method]()


def test_methods_that_do_not_compare_work_with_one_language(speakers):
    of_one = {"de": WORDS["de"]}
    found = ns.methods.parallel_detection(speakers, of_one, share=3 / len(FIRES))
    assert set(found["de"][0].nonzero().flatten().tolist()) == PLANTED["de"]
    assert list(ns.methods.transfer_neurons(speakers, of_one, direction="from shared", n=1)) == ["de"]
    with pytest.raises(ns.NeuronShareError, match="give both"):
        ns.methods.transfer_neurons(speakers, of_one, direction="to shared", shared="de", n=1)


# A language without a neuron goes through tables and figures.


def test_a_language_without_a_neuron(ready):
    _, _, sharing = ready
    tokens = 100
    counts = torch.randint(40, 60, (3, *sharing.is_neuron.shape), generator=torch.Generator().manual_seed(0))
    counts[0, 0, :5], counts[1, 0, :5], counts[2, 0, :5] = 90, 0, 0  # English has neurons, German and Russian do not
    rates = ns.NeuronRates(counts, [tokens] * 3, languages=["en", "de", "ru"], widths=sharing.widths)
    masks = ns.methods.lape(rates, share=5 / int(sharing.is_neuron.sum()), quantile=0.9)
    assert {language: int(mask.sum()) for language, mask in masks.items()} == {"en": 5, "de": 0, "ru": 0}
    of_methods = {"lape": masks, "again": masks}
    sizes = ns.methods.sizes(of_methods, is_neuron=sharing.is_neuron)
    agreement = ns.methods.agreement(of_methods, is_neuron=sharing.is_neuron)
    types = ns.methods.types(of_methods, sharing)
    of_two = agreement.query("method == 'lape' and other == 'again'").set_index("language")["jaccard"]
    assert of_two["en"] == 1
    assert of_two[["de", "ru"]].isna().all()
    assert of_two["all"] == 1  # the mean over the languages that have neurons
    assert types.query("language == 'de'")["percent"].isna().all()
    assert types.query("language == 'en' and method == 'lape'")["percent"].sum() == pytest.approx(100)
    plt.close(ns.plots.methods(sizes, agreement, types))


def test_cross_ablation_without_a_neuron(speakers):
    nothing = {language: torch.zeros(1, len(FIRES), dtype=torch.bool) for language in ("en", "de")}
    nothing["en"][0, 0] = True
    table = ns.cross_ablation(speakers, {language: WORDS[language] for language in nothing}, nothing, seeds=[0])
    of_german = table.query("ablated == 'de'")
    assert of_german["difference"].isna().all()
    assert (of_german["note"] != "").all()
    assert table.query("ablated == 'en' and control == 'none'")["difference"].notna().all()
    plt.close(ns.plots.cross_ablation(table))


# Of neurons with equal scores the first of the model are taken, except by a bar, which takes all of them.


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_speakers(tmp_path_factory.mktemp("speakers"))


@pytest.fixture
def speakers(directory, backend):
    return ns.load_model(str(directory), backend=backend)


def test_equal_scores_in_parallel_detection(speakers):
    """Both neurons of a language write as much as that of each concept; those of the language come first."""
    found = ns.methods.parallel_detection(speakers, WORDS, share=1 / len(FIRES))
    assert {language: mask[0].nonzero().flatten().tolist() for language, mask in found.items()} == {
        language: [min(planted)] for language, planted in PLANTED.items()
    }


@pytest.mark.parametrize("n", [8, 12])
def test_equal_gains_of_transfer_neurons(speakers, n):
    """A neuron that fires for no German word moves nothing: its gain is zero."""
    found = ns.methods.transfer_neurons(speakers, WORDS, direction="from shared", n=n)["de"][0]
    silent = [number for number, (words, _) in enumerate(FIRES) if not words & set(WORDS["de"])]
    chosen = [number for number in silent if found[number]]
    assert 0 < len(chosen) < len(silent)
    assert chosen == silent[: len(chosen)]


def test_equal_overlaps_of_bipartition():
    counts = torch.zeros(4, 2, 3, 2, dtype=torch.int32)  # language layer neuron bin
    counts[:2, ..., 0], counts[2:, ..., 1] = 10, 10  # no overlap
    counts[:, 0, 2], counts[:, 1, 0] = 5, 5  # the same in all languages
    counts[:, 1, 2] = torch.tensor([10, 0])
    histograms = ValueHistograms(counts, languages=["en", "de", "ru", "th"], widths=[3, 2])
    found = ns.methods.bipartition(histograms, share=1 / 30)  # the bar is the lowest overlap, which three neurons have
    assert found["en"].nonzero().tolist() == [[0, 0], [0, 1], [1, 1]]
    assert torch.equal(found["de"], found["en"])
    assert not found["ru"].any()  # of two groups of two languages, that with the first
    assert not found["th"].any()


def test_equal_scores_of_specific_neurons():
    counts = torch.zeros(2, 2, 3, dtype=torch.long)
    counts[0, 0], counts[0, 1, :2] = 10, 10
    rates = ns.NeuronRates(counts, [20, 20], languages=["en", "de"], widths=[3, 2])
    found = ns.methods.specific_related_general(rates, share=2 / 5, quantile=0.5, weight=0.1)
    assert found["en"].nonzero().tolist() == [[0, 0], [0, 1]]
    assert not found["de"].any()


# A mixture with a dense layer: neurons of experts that are not computed, routing weights, layers of different width.


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """The model; and a function that reads a text through Hugging Face: for each layer its values, these times their
    routing weights, the rows of W_out, and the residual stream after it, at each token."""
    name = "DeepseekV3ForCausalLM"
    saved = tmp_path_factory.mktemp("mixture") / name
    make(architectures([name])[name], saved)
    model = ns.load_model(saved, backend="bridge", device="cpu")
    options = {"attn_implementation": "eager", "experts_implementation": "eager"}
    hugging_face = AutoModelForCausalLM.from_pretrained(saved, **options).eval()
    layers = literal.blocks(hugging_face)

    def read(text):
        after = []
        hooks = [
            block.register_forward_hook(
                lambda _, __, output: after.append((output if isinstance(output, torch.Tensor) else output[0])[0])
            )
            for block in hugging_face.model.layers
        ]
        tokens = torch.tensor([model.tokenizer(text, add_special_tokens=False).input_ids])
        _, of_layers = literal.read(layers, lambda: hugging_face(tokens).logits)
        for hook in hooks:
            hook.remove()
        return [
            (
                torch.cat([part.post for part in parts], dim=-1).double(),
                torch.cat([part.post * part.weight for part in parts], dim=-1).double(),
                torch.cat([part.W_out for part in block.parts]).double(),
                residual.double(),
            )
            for parts, block, residual in zip(of_layers, layers, after, strict=True)
        ]

    return model, {language: [read(text) for text in texts] for language, texts in TEXTS.items()}


def test_values_of_a_mixture_are_counted(mixture):
    model, of_texts = mixture
    rates = ns.activation_rates(model, TEXTS, prepend_bos=False)
    histograms = ns.value_histograms(model, TEXTS, site="post", n_bins=10, prepend_bos=False)
    assert len(set(rates.widths)) > 1
    for number, language in enumerate(TEXTS):
        for layer, width in enumerate(rates.widths):
            values = torch.cat([text[layer][0] for text in of_texts[language]])
            assert values.shape == (rates.tokens[number], width)
            assert (
                (rates.counts[number, layer, :width] - (values > 0).sum(0)).abs() <= (values.abs() < 1e-6).sum(0)
            ).all()
            low, high = histograms.low[layer, :width].double(), histograms.high[layer, :width].double()
            places = ((values - low) / (high - low) * 10).floor().clamp(-1, 10).long() + 1
            expected = torch.nn.functional.one_hot(places, 12).sum(0)
            off = (histograms.counts[number, layer, :width] - expected).abs().sum(-1)
            assert (off <= 2).all()  # one value at an edge may fall on either side
            assert off.double().mean() < 0.02


def test_parallel_detection_in_a_mixture(mixture):
    model, of_texts = mixture
    share = 0.3
    found = ns.methods.parallel_detection(model, TEXTS, share=share, prepend_bos=False)
    widths = [layer[0].shape[-1] for layer in of_texts["en"][0]]
    n_top = round(share * sum(widths))
    for language, texts in of_texts.items():
        sure, possible = (torch.ones(sum(widths), dtype=torch.bool) for _ in range(2))
        for text in texts:
            scores = torch.cat([weighted.norm(dim=0) * rows.norm(dim=-1) for _, weighted, rows, _ in text])
            bar = scores.sort(descending=True).values[n_top - 1]
            sure &= (scores > bar + 1e-6) & (scores > 0)
            possible &= (scores > bar - 1e-6) & (scores > 0)
        mine = torch.cat([mask[:width] for mask, width in zip(found[language], widths, strict=True)])
        assert not (sure & ~mine).any()
        assert not (mine & ~possible).any()
        assert sure.any()
        assert int(mine.sum()) == int(found[language].sum())  # none where a layer has no neurons


def test_transfer_neurons_in_a_mixture(mixture):
    """A neuron of an expert writes its value times the routing weight."""
    model, of_texts = mixture
    n, layers = 9, list(range(model.cfg.n_layers))
    found = ns.methods.transfer_neurons(model, TEXTS, direction="to shared", n=n, layers=layers, prepend_bos=False)[
        "de"
    ]
    scores = {}
    for layer in layers:
        means = [torch.stack([text[layer][3][-1] for text in texts]).mean(0) for texts in of_texts.values()]
        centroid = torch.stack(means).mean(0)
        for neuron in range(of_texts["de"][0][layer][0].shape[-1]):
            each = []
            for text in of_texts["de"]:
                _, weighted, rows, residual = text[layer]
                before = residual[-1] - weighted[-1] @ rows
                moved = before + weighted[-1, neuron] * rows[neuron]
                each.append(cosine_similarity(moved, centroid, dim=0) - cosine_similarity(before, centroid, dim=0))
            scores[layer, neuron] = torch.stack(each).mean().item()
    worst = sorted(scores.values(), reverse=True)[n - 1]
    chosen = {tuple(place) for place in found.nonzero().tolist()}
    assert len(chosen) == n
    assert all(scores[place] > worst - 1e-6 for place in chosen)

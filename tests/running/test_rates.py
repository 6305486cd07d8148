"""Activation rates over free text, against counts made one text at a time through Hugging Face's modules."""

from __future__ import annotations

import itertools
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
from tqdm.auto import tqdm

import tl_neuronshare as ns
from support.free_text import TEXTS, mlp_inputs
from support.markup import table_in
from tl_neuronshare.models.tokens import special_tokens
from tl_neuronshare.running import loop as loop_module
from tl_neuronshare.running import tallying as module


@pytest.mark.parametrize(("name", "threshold"), [("bloom", 0.0), ("llama", 0.01)])
def test_rates_equal_brute_force(animals, backend, name, threshold):
    model = animals.lens(name, backend)
    hugging_face, tokenizer = animals.hugging_face(name)
    found = ns.activation_rates(model, TEXTS, threshold=threshold, prepend_bos=True).rates
    special = set(special_tokens(model))
    for language, texts in enumerate(TEXTS.values()):
        counts, n_tokens = [0] * model.cfg.n_layers, 0
        for text in texts:
            tokens = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
            counted = torch.tensor([token not in special for token in tokens])
            n_tokens += int(counted.sum())
            for layer, values in enumerate(mlp_inputs(hugging_face, tokens)):
                counts[layer] = counts[layer] + (values[counted] > threshold).sum(0)
        for layer, count in enumerate(counts):
            # A value within rounding of the threshold may fall on either side.
            assert (found[language, layer] - count / n_tokens).abs().max() <= 1 / n_tokens + 1e-6
            assert ((found[language, layer] - count / n_tokens).abs() > 1e-6).float().mean() < 0.01


def test_any_amount_of_text_in_pieces_of_any_size(bloom, monkeypatch):
    """An iterator, read in portions of two texts with one prompt in each batch, gives the same as all texts at once."""
    expected = ns.activation_rates(bloom, TEXTS).rates
    monkeypatch.setattr(module, "_TEXTS", 2)
    streamed = {language: iter(texts) for language, texts in TEXTS.items()}
    found = ns.activation_rates(bloom, streamed, batch_size=1)
    torch.testing.assert_close(found.rates, expected, atol=1e-3, rtol=0)


def test_text_beyond_the_context_is_read_in_pieces(bloom, monkeypatch):
    long = " ".join(itertools.islice(itertools.cycle(["one", "two", "three"]), 20))
    tokens = bloom.tokenizer(long, add_special_tokens=False).input_ids
    monkeypatch.setattr(bloom.cfg, "n_ctx", 8)
    pieces = [bloom.tokenizer.decode(tokens[start : start + 8]) for start in range(0, len(tokens), 8)]
    assert [bloom.tokenizer(piece, add_special_tokens=False).input_ids for piece in pieces] == [
        tokens[start : start + 8] for start in range(0, len(tokens), 8)
    ]
    options = {"prepend_bos": False}
    found, expected = (ns.activation_rates(bloom, {"en": texts}, **options) for texts in ([long], pieces))
    torch.testing.assert_close(found.rates, expected.rates, atol=1e-6, rtol=0)


def test_prompt_and_answer_are_counted_apart(bloom):
    """Token by token; the two parts together are the whole text."""
    pairs = {
        "en": [("The sky is", " blue and red"), ("Cats", " and dogs and birds")],
        "de": [("Der Himmel", " ist blau")],
    }
    parts = {part: ns.activation_rates(bloom, pairs, part=part, batch_size=1) for part in ("whole", "prompt", "answer")}
    texts = {language: ["".join(pair) for pair in of_language] for language, of_language in pairs.items()}
    assert torch.equal(parts["whole"].counts, ns.activation_rates(bloom, texts, batch_size=1).counts)
    for name in ("counts", "tokens"):
        halves = (getattr(parts[part], name) for part in ("prompt", "answer"))
        assert torch.equal(sum(halves), getattr(parts["whole"], name))
    for number, language in enumerate(pairs):
        prompts = [bloom.tokenizer(prompt, add_special_tokens=False).input_ids for prompt, _ in pairs[language]]
        wholes = [bloom.tokenizer(text, add_special_tokens=False).input_ids for text in texts[language]]
        assert all(whole[: len(prompt)] == prompt for whole, prompt in zip(wholes, prompts, strict=True))
        assert parts["prompt"].tokens[number] == sum(map(len, prompts))
    alone = ns.activation_rates(bloom, {"en": [prompt for prompt, _ in pairs["en"]]}, batch_size=1)
    assert torch.equal(parts["prompt"].counts[:1], alone.counts)  # a causal model sees no answer


def test_an_answer_beyond_the_context_is_counted_in_its_pieces(bloom, monkeypatch):
    long = " ".join(itertools.islice(itertools.cycle(["one", "two", "three"]), 20))
    monkeypatch.setattr(bloom.cfg, "n_ctx", 8)
    parts = {
        part: ns.activation_rates(bloom, {"en": [("one two", " " + long)]}, part=part, batch_size=1)
        for part in ("whole", "prompt", "answer")
    }
    assert parts["prompt"].tokens < 8 < parts["answer"].tokens
    assert torch.equal(parts["prompt"].counts + parts["answer"].counts, parts["whole"].counts)


def test_texts_from_files_and_data_sets(bloom, tmp_path):
    expected = ns.activation_rates(bloom, TEXTS)
    files = {language: tmp_path / f"{language}.txt" for language in TEXTS}
    for language, file in files.items():
        file.write_text("\n\n".join(TEXTS[language]), encoding="utf-8")
    assert ns.activation_rates(bloom, files) == expected
    rows = {language: datasets.Dataset.from_dict({"text": texts}) for language, texts in TEXTS.items()}
    assert ns.activation_rates(bloom, rows) == expected
    streamed = {language: of_language.to_iterable_dataset() for language, of_language in rows.items()}
    assert ns.activation_rates(bloom, streamed) == expected
    files["en"].write_bytes(b"\xff\xfe")
    with pytest.raises(ns.NeuronShareError, match=r"en.txt' is not UTF-8"):
        ns.activation_rates(bloom, files)


def test_counts_of_other_texts_add_up(bloom, tmp_path):
    whole = ns.activation_rates(bloom, TEXTS, batch_size=1)
    first = ns.activation_rates(bloom, {"en": TEXTS["en"][:2]}, batch_size=1)
    rest = ns.activation_rates(bloom, {"en": TEXTS["en"][2:], "th": TEXTS["th"]}, batch_size=1)
    assert sum([first, rest]) == whole
    rest.save(tmp_path / "rates.safetensors")
    assert first + ns.NeuronRates.load(tmp_path / "rates.safetensors") == whole
    with pytest.raises(ns.NeuronShareError, match="Language 'en': both counts have the same text"):
        whole + whole
    with pytest.raises(ns.NeuronShareError, match="Language 'en': both counts have the same text"):
        first + rest + first
    other = ns.activation_rates(bloom, {"en": TEXTS["en"][:1]}, threshold=0.5)
    with pytest.raises(ns.NeuronShareError, match=r"The counts have threshold 0\.0 and 0\.5; add up"):
        first + other


def test_rates_agree_with_what_no_token_activates(bloom, prompts):
    """A neuron that is activated at any token of a prompt has a rate above 0."""
    sharing = ns.categorise(bloom, prompts, position="any")
    rates = ns.activation_rates(bloom, prompts.prompts).rates
    ever = torch.stack([sharing.activated(language=language)[:, 0].any(0) for language in sharing.languages])
    assert ((rates > 0) == ever).float().mean() > 0.9999


def test_a_narrower_layer_has_no_rates_beyond_its_width(animals):
    model = animals.narrowed_llama()
    for site in ("post", "gate"):
        rates = ns.activation_rates(model, TEXTS, site=site).rates
        assert rates[:, 1, 40:].isnan().all()
        assert not rates[:, 1, :40].isnan().any()


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["The sky"], {}, "texts is not a mapping from each language"),
        ({"en": "The sky"}, {}, "texts, language 'en': 'The sky' is not a list of texts, a file or a data set"),
        ({"en": None}, {}, "texts, language 'en': None is not a list"),
        ({"en": {"text": ["The sky"]}}, {}, "texts, language 'en': .* is not a list"),
        ({"en": {"The sky", "The sea"}}, {}, "texts, language 'en': .* is not a list"),
        ({"en": pd.DataFrame({"text": ["The sky"]})}, {}, "texts, language 'en': .* is not a list"),
        ({"en": ["The sky"], "de": []}, {}, "Language 'de' has no text, or only special tokens"),
        ({"zh": ["你好"]}, {"part": "answer"}, "'zh': '你好' is not a pair of a prompt and an answer"),
        ({"en": ["The sky", 3]}, {}, "Language 'en': 3 is not a text"),
        ({"en": ["The sky"]}, {"threshold": float("nan")}, "threshold=nan is not a finite number"),
        ({"en": ["The sky"]}, {"part": "half"}, "part='half' is unknown; use one of whole, prompt, answer"),
        ({"en": ["The sky"]}, {"part": "answer"}, "'en': 'The sky' is not a pair of a prompt and an answer, which"),
        ({"en": [("The", "sky", "is")]}, {}, "'en': .* is not a text; give strings, pairs of a prompt and an answer"),
        ({"en": [{"title": "The sky"}]}, {}, "'en': .* is not a text; .* or rows of a data set with a column text"),
        ({"en": Path("nowhere.txt")}, {}, "'nowhere.txt' cannot be read"),
    ],
)
def test_bad_input(bloom, as_users_run_it, texts, options, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.activation_rates(bloom, texts, **options)


def test_activations_that_are_no_numbers_are_refused(bloom):
    def broken(tensor, hook):
        return tensor * torch.nan

    with (
        bloom.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", broken)]),
        pytest.raises(ns.NeuronShareError, match="Language 'en': NaN or infinite activations at blocks.1"),
    ):
        ns.activation_rates(bloom, TEXTS)


def test_the_progress_bar_knows_how_many_texts_there_are(bloom, monkeypatch):
    totals = []

    class Bar(tqdm):
        def update(self, n=1):
            totals.append((self.total, n))
            return super().update(n)

    monkeypatch.setattr(loop_module, "tqdm", Bar)
    ns.activation_rates(bloom, {"en": ["one two", "three"], "de": ["eins"]})
    assert {total for total, _ in totals} == {3}
    assert sum(n for _, n in totals) == 3
    totals.clear()
    monkeypatch.setattr(bloom.cfg, "n_ctx", 4)  # a text is read in several pieces, so that there are more of them
    ns.activation_rates(bloom, {"en": ["one two three four five six seven eight"], "de": ["eins"]})
    assert sum(n for _, n in totals) == totals[-1][0] > 2
    totals.clear()
    ns.activation_rates(bloom, {"en": iter(["one two"]), "de": ["eins"]})
    assert {total for total, _ in totals} == {None}


def test_a_notebook_shows_rates_by_language():
    rates = ns.NeuronRates(torch.tensor([[[3, 1]], [[0, 2]]]), [4, 2], languages=["<en>", "de"], widths=[2])
    html = rates._repr_html_()
    assert table_in(html)["de"] == {
        "tokens": "2",
        "activated at a token, % of neurons": "50.0",
        "at no token, % of neurons": "50.0",
    }
    assert "<en>" not in html

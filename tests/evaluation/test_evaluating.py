"""Answers, compared with loops over single, unpadded sequences in Hugging Face; with merged tokens; under hooks."""

from __future__ import annotations

import math

import pytest
import torch
from tokenizers import normalizers

import tl_neuronshare as ns
from support import reference, zoo
from support.masks import mask_of
from support.prompts import ANSWERS, CHOICES, PROMPTS, QUIZ
from support.watching import state_of
from tl_neuronshare import models
from tl_neuronshare.evaluation import grading
from tl_neuronshare.evaluation import scoring as scorer_module
from tl_neuronshare.models import decoding, verification
from tl_neuronshare.running import plan


def literal(animals, name, quiz, hugging_face=None):
    """For each language and example: log-probability of each choice, and whether tokens merge."""
    model, tokenizer = animals.hugging_face(name)
    model = hugging_face or model
    found = {}
    for language in quiz.languages:
        for example, prompt in enumerate(quiz.prompts[language]):
            texts = quiz.choices[language][example]
            start, whole, n_prompt = reference.literal_start(tokenizer, prompt, texts, zoo.KINDS[name].bos)
            scores = [reference.log_prob(model, tokens[:start], tokens[start:]) for tokens in whole]
            lengths = [len(tokens) - start for tokens in whole]
            found[language, example] = scores, lengths, start < n_prompt
    return found


@pytest.mark.parametrize("name", zoo.SIX)
def test_choice_equals_a_plain_loop_over_single_unpadded_sequences(animals, name, backend, quiz):
    """Also if prompt and answer merge, as most do here."""
    expected = literal(animals, name, quiz)
    assert 3 <= sum(merged for *_, merged in expected.values()) < 9
    for normalise in (False, True):
        table = ns.evaluate(animals.lens(name, backend), quiz, length_normalised=normalise)
        assert list(table.columns[:5]) == ["example", "language", "correct", "log_prob", "prediction"]
        assert len(table) == 9
        for row in table.itertuples():
            scores, lengths, merged = expected[row.language, row.example]
            choices = quiz.choices[row.language][row.example]
            gold = choices.index(quiz.answers[row.language][row.example])
            assert abs(row.log_prob - scores[gold]) <= 1e-4
            ranked = [s / n for s, n in zip(scores, lengths, strict=True)] if normalise else scores
            assert row.prediction == choices[max(range(3), key=ranked.__getitem__)]
            assert row.correct == (row.prediction == choices[gold])
            assert row.merged == merged


def test_choice_under_ablation_equals_the_loop_under_plain_hooks(animals, backend, quiz):
    model, mask = animals.lens("bloom", backend), mask_of(animals.lens("bloom", backend))
    hugging_face, _ = animals.hugging_face("bloom")
    with reference.zeroed(hugging_face, module=zoo.KINDS["bloom"].down, mask=mask):
        expected = literal(animals, "bloom", quiz, hugging_face)
    for row in ns.evaluate(model, quiz, fwd_hooks=ns.ablation_hooks(model, mask)).itertuples():
        gold = quiz.choices[row.language][row.example].index(quiz.answers[row.language][row.example])
        assert abs(row.log_prob - expected[row.language, row.example][0][gold]) <= 1e-4


def test_exact_equals_greedy_decoding_of_single_prompts(animals, backend):
    model, prompts = animals.lens("demo", backend), ns.demo.prompts()[:6].select(["en", "ru", "zh"])
    hugging_face, tokenizer = animals.hugging_face("demo")
    mask = ns.categorise(model, prompts).mask("all-shared")
    for fwd_hooks in (None, lambda language, examples: ns.ablation_hooks(model, mask[examples])):
        table = ns.evaluate(model, prompts, scoring="exact", fwd_hooks=fwd_hooks)
        choice = ns.evaluate(model, prompts, fwd_hooks=fwd_hooks)
        assert (table["log_prob"] - choice["log_prob"]).abs().max() < 1e-4
        for row in table.itertuples():
            example = prompts.examples.index(row.example)
            tokens = tokenizer(prompts.prompts[row.language][example], add_special_tokens=False)["input_ids"]
            neurons = mask[example] if fwd_hooks else torch.zeros_like(mask[example])
            with reference.zeroed(hugging_face, module=zoo.KINDS["bloom"].down, mask=neurons):
                new = reference.greedy(hugging_face, tokens, 12)[len(tokens) :]
            new = new[: new.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in new else new
            assert tokenizer.decode(new).startswith(row.prediction)
            answer = prompts.answers[row.language][example]
            assert row.correct == (row.prediction.strip() == answer.strip())
        assert table["correct"].all() == (fwd_hooks is None)


def test_what_exact_takes_for_the_same():
    same = [
        ("Paris", " paris."),
        ("“Paris”", "Paris"),
        ("Ｐａｒｉｓ", "Paris"),
        ("ÄGYPTEN", "Ägypten"),
        ("a  b", "a b"),
        ("\u200fباريس\u200e", "باريس"),
        ("Pa\u00adris\u200b", "Paris"),
        ("\u2068Paris\u2069.", "Paris"),
    ]
    other = [("-5", "5"), ("5 %", "5"), ("Paris is", "Paris"), ("", "x"), ("C++", "C"), ("C#", "C"), (".5", "5")]
    assert all(grading.normalised(a) == grading.normalised(b) for a, b in same)
    assert all(grading.normalised(a) != grading.normalised(b) for a, b in other)


def test_number_asks_for_the_last_number_however_it_is_written(animals, backend):
    model = animals.lens("demo", backend)
    sums = ns.tasks.world_facts(relations=["sum"], languages=["en", "zh"], limit=6)
    written = ns.ParallelPrompts(
        sums.prompts,
        {
            "en": [f"{answer}.00" for answer in sums.answers["en"]],
            "zh": [f" so{answer} euros" for answer in sums.answers["zh"]],
        },
    )
    found = ns.evaluate(model, written, scoring="number", max_new_tokens=4)
    exact = ns.evaluate(model, sums, scoring="exact", max_new_tokens=4)
    assert found["prediction"].tolist() == exact["prediction"].tolist()
    assert found["correct"].tolist() == exact["correct"].tolist()
    assert found["correct"].any()
    assert not ns.evaluate(model, written, scoring="exact", max_new_tokens=4)["correct"].any()
    off = ns.ParallelPrompts(sums.prompts, {language: [" 999"] * 6 for language in sums.languages})
    assert not ns.evaluate(model, off, scoring="number", max_new_tokens=4)["correct"].any()
    words = ns.ParallelPrompts({"en": ["x"], "de": ["y"]}, {"en": [" a lot"], "de": [" 3"]})
    with pytest.raises(ns.NeuronShareError, match="Language 'en', example 0: the answer ' a lot' has no number"):
        ns.evaluate(model, words, scoring="number")


def test_exact_is_cut_at_stop_and_at_a_number_of_tokens(animals):
    model, prompts = animals.lens("demo", "bridge"), ns.demo.prompts()[3:4].select(["en", "de"])
    whole = ns.evaluate(model, prompts, scoring="exact")["prediction"][0]
    assert whole == " New Zealand Dollar"
    short = ns.ParallelPrompts(prompts.prompts, {"en": [" New"], "de": [" Neu"]})
    cut = ns.evaluate(model, short, scoring="exact", stop=["\n", " Zea", "seel"], max_new_tokens=6)
    assert cut["prediction"].tolist() == [" New", " Neu"]
    assert cut["correct"].all()
    first = ns.evaluate(model, prompts, scoring="exact", max_new_tokens=1)
    assert whole.startswith(first["prediction"][0])
    assert not first["correct"].any()


@pytest.fixture
def decoded(monkeypatch):
    """The rows that were decoded, in their order."""
    rows = []
    greedy = decoding.greedy

    def spy(model, of_batch, *args, **options):
        rows.extend(map(tuple, of_batch))
        return greedy(model, of_batch, *args, **options)

    monkeypatch.setattr(decoding, "greedy", spy)
    return rows


@pytest.mark.parametrize("name", ["llama", "gemma3", "opt", "gpt2", "bloom"])
def test_it_is_proved_on_every_architecture(animals, backend, decoded, name):
    """If the right answer is what the model says, nothing is decoded. Hooks of the libraries do not matter."""
    model = animals.lens(name, backend)
    rows = models.tokenise(model, PROMPTS["zh"])
    verification.require(model, "decoding")
    new = decoding.greedy(model, rows, 1, cached=True)
    decoded.clear()
    prompts = ns.ParallelPrompts({"a": PROMPTS["zh"], "b": PROMPTS["zh"]}, {la: [" x"] * 3 for la in "ab"})
    table = ns.evaluate(model, prompts, scoring="exact", max_new_tokens=1)
    assert not table["merged"].any()
    assert not decoded
    ends = models.end_tokens(model)
    texts = [model.tokenizer.decode([token for token in tokens if token not in ends]) for tokens in new]
    assert table["prediction"].tolist() == [text.split("\n")[0] for text in texts] * 2


@pytest.mark.parametrize("scoring", ["exact", "number"])
def test_what_scoring_has_proved_is_not_decoded(animals, backend, decoded, scoring):
    """Decoding gives the same answers: an unknown hook that edits nothing makes all of them be decoded."""
    model = animals.lens("demo", backend)
    facts = ns.tasks.world_facts(relations=["sum"], languages=["en", "zh"], limit=20)
    mask = ns.categorise(model, facts).mask("all-shared")
    verification.require(model, "decoding")  # which decodes too
    decoded.clear()
    for fwd_hooks in (None, lambda language, examples: ns.ablation_hooks(model, mask[examples])):
        few = ns.evaluate(model, facts, scoring=scoring, fwd_hooks=fwd_hooks)
        n_few = len(decoded)
        decoded.clear()
        with model.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda tensor, hook: None)]):
            everything = ns.evaluate(model, facts, scoring=scoring, fwd_hooks=fwd_hooks)
        assert few.equals(everything)
        assert len(decoded) == 40
        assert n_few < 40
        if scoring == "exact":  # a right answer is proved; a wrong one may be proved by its first tokens
            assert n_few <= (~few["correct"]).sum()
        decoded.clear()


def test_what_is_not_proved_is_decoded(animals, decoded, monkeypatch):
    model = animals.lens("demo", "bridge")
    facts = ns.demo.prompts()[:6].select(["en", "de"])
    verification.require(model, "decoding")
    decoded.clear()
    expected = ns.evaluate(model, facts, scoring="exact")
    assert expected["correct"].all()
    assert not decoded
    edits = ns.ablation_hooks(model, torch.zeros(4, 512, dtype=torch.bool), mode=lambda tensor: tensor.cumsum(1))
    assert ns.evaluate(model, facts, scoring="exact", fwd_hooks=edits).equals(expected)
    assert len(decoded) == 12  # what the user's function does to a token may depend on other tokens
    decoded.clear()
    monkeypatch.setattr(verification, "noise", lambda model: 10.0)  # larger than any margin
    assert ns.evaluate(model, facts, scoring="exact").equals(expected)
    assert len(decoded) == 12


def test_an_answer_that_merges_with_its_prompt_is_decoded(animals, decoded):
    """The tokens of a merged answer are not those that would follow the prompt alone."""
    model = animals.lens("bloom", "bridge")
    verification.require(model, "decoding")
    decoded.clear()
    table = ns.evaluate(model, QUIZ, scoring="exact", max_new_tokens=1)
    assert table["merged"].any()
    merged = [row for row in table.itertuples() if row.merged]
    prompts = {tuple(models.tokenise(model, [PROMPTS[row.language][row.example]])[0]) for row in merged}
    assert prompts <= set(decoded)


def test_an_answer_ends_at_every_end_token_that_the_model_names(animals, tmp_path):
    """Such as Gemma's end of turn, which its tokenizer does not treat as an end."""
    model = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu")
    prompts = ns.ParallelPrompts(
        {la: PROMPTS[la][:2] for la in ("en", "de")}, {la: [" x", " y"] for la in ("en", "de")}
    )
    free = ns.evaluate(model, prompts, scoring="exact", max_new_tokens=6)
    ids = [model.tokenizer(text, add_special_tokens=False).input_ids for text in free["prediction"]]
    third = ids[0][2]
    model.original_model.generation_config.eos_token_id = [0, third]
    assert models.end_tokens(model) == [0, third]
    ended = ns.evaluate(model, prompts, scoring="exact", max_new_tokens=6)
    for row, whole in zip(ended["prediction"], ids, strict=True):
        assert row == model.tokenizer.decode(whole[: whole.index(third)] if third in whole else whole)
    assert ended["prediction"][0] != free["prediction"][0]


def test_choices_that_are_the_same_tokens_are_refused(animals, tmp_path):
    """A tokenizer that makes letters lower case cannot tell them apart: the first would always win."""
    model = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu")
    tokenizer = model.tokenizer.backend_tokenizer
    tokenizer.normalizer = normalizers.Lowercase()
    quiz = ns.ParallelPrompts(
        {"en": ["A chair"], "de": ["Ein Stuhl"]},
        {"en": [" Polish"], "de": [" Po"]},
        {"en": [[" polish", " Polish"]], "de": [[" Po", " x"]]},
    )
    with pytest.raises(
        ns.NeuronShareError, match="'en', example 0: the choices ' polish' and ' Polish' are the same tok"
    ):
        ns.evaluate(model, quiz)
    assert len(ns.evaluate(model, quiz, scoring="exact")) == 2  # this scoring does not use choices


# Hooks.


@pytest.mark.parametrize("scoring", ["choice", "exact"])
def test_a_model_that_gives_nan_has_no_prediction(bloom, quiz, scoring):
    spoil = [("blocks.1.mlp.hook_post", lambda tensor, hook: tensor * torch.nan)]
    with pytest.raises(ns.NeuronShareError, match="'en', example 0: the log-probability is NaN"):
        ns.evaluate(bloom, quiz, fwd_hooks=spoil, scoring=scoring)


def test_hooks_that_are_active_are_as_those_that_are_given_and_neither_stay(bloom, quiz):
    hooks, before = ns.ablation_hooks(bloom, mask_of(bloom)), state_of(bloom)
    given = ns.evaluate(bloom, quiz, fwd_hooks=hooks)
    with bloom.hooks(fwd_hooks=hooks):
        assert ns.evaluate(bloom, quiz).equals(given)
    with pytest.raises(ZeroDivisionError):
        ns.evaluate(bloom, quiz, fwd_hooks=[("blocks.1.mlp.hook_post", lambda tensor, hook: 1 / 0)])
    assert state_of(bloom) == before


# Perplexity, memory.


@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_perplexity_is_that_of_hugging_face_s_loss(animals, name, backend, monkeypatch):
    hugging_face, tokenizer = animals.hugging_face(name)
    texts = {"en": zoo.TEXTS["en"][:3], "zh": zoo.TEXTS["zh"][:2]}
    expected = {}
    for language, of_one in texts.items():
        total, count = 0.0, 0
        for text in of_one:
            ids = [tokenizer.bos_token_id] * zoo.KINDS[name].bos + tokenizer(text, add_special_tokens=False)[
                "input_ids"
            ]
            total += reference.log_prob(hugging_face, ids[:1], ids[1:])
            count += len(ids) - 1
        expected[language] = total / count, count
    for logits in (plan.AUTO_NUMBERS, 1000):
        monkeypatch.setattr(scorer_module, "AUTO_NUMBERS", logits)
        table = ns.perplexity(animals.lens(name, backend), texts).set_index("language")
        for language, (mean, count) in expected.items():
            assert table.loc[language, "log_prob"] == pytest.approx(mean, abs=1e-4)
            assert table.loc[language, "perplexity"] == pytest.approx(math.exp(-mean), rel=1e-4)
            assert table.loc[language, "tokens"] == count
    model = animals.lens(name, backend)
    ablated = ns.perplexity(model, texts, fwd_hooks=ns.ablation_hooks(model, mask_of(model)))
    assert (ablated["log_prob"] - table["log_prob"].to_numpy()).abs().min() > 1e-3


@pytest.mark.parametrize("measure", [lambda model: ns.perplexity(model, {"en": ["The sky is"]})["log_prob"].item(),
                                     lambda model: ns.evaluate(model, QUIZ)["log_prob"].sum()])  # fmt: skip
def test_dropout_is_off_and_no_graph_is_built(animals, measure):
    model = ns.load_model(animals.directory("opt"), backend="bridge", device="cpu")
    expected = measure(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
        for name in ("dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.5)
    model.train()
    graphs = []
    with model.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda tensor, hook: graphs.append(tensor.requires_grad))]):
        assert measure(model) == pytest.approx(expected, abs=1e-4)
    assert not any(graphs)
    assert all(module.training for module in model.modules())


# Bad input.


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ((PROMPTS,), {}, "has no answers"),
        ((PROMPTS,), {"scoring": "exact"}, "has no answers"),
        ((PROMPTS, ANSWERS), {}, "has no choices; .*scoring=.exact"),
        ((PROMPTS, ANSWERS, CHOICES), {"scoring": "greedy"}, "scoring='greedy' is unknown; use one of choice, exact"),
        ((PROMPTS, ANSWERS, CHOICES), {"max_new_tokens": 3}, "max_new_tokens=3 has no effect with scoring='choice'"),
        ((PROMPTS, ANSWERS), {"scoring": "exact", "stop": ["s"]}, "'en', example 0: the answer .* contains a text"),
        ((PROMPTS, ANSWERS), {"scoring": "exact", "max_new_tokens": 0}, "max_new_tokens=0"),
        ((PROMPTS, ANSWERS), {"scoring": "exact", "stop": "\n"}, "stop='.n'; give a list"),
        (
            (PROMPTS, ANSWERS),
            {"scoring": "exact", "length_normalised": True},
            "length_normalised=True; use True only with scoring='choice'",
        ),
        ((PROMPTS, ANSWERS), {"scoring": "exact", "max_new_tokens": 500}, "with 500 new tokens has 5.. tokens"),
    ],
)
def test_what_evaluate_refuses(animals, backend, parts, options, message, as_users_run_it):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.evaluate(animals.lens("gpt2", backend), ns.ParallelPrompts(*parts), **options)


def test_prompts_that_are_none_or_no_example(bloom, quiz, as_users_run_it):
    with pytest.raises(ns.NeuronShareError, match="prompts is a list; make it ParallelPrompts"):
        ns.evaluate(bloom, ["a"])
    with pytest.raises(ns.NeuronShareError, match="selects none of the 3 examples"):
        ns.evaluate(bloom, quiz[3:])


def test_what_perplexity_refuses(animals, backend, as_users_run_it):
    model = animals.lens("gpt2", backend)
    for texts, message in (
        ({}, "texts is not a mapping from each language"),
        ({"en": "a text"}, "texts, language 'en': 'a text' is not a list of texts"),
        ({"en": []}, "texts has no text for language 'en'; give at least one"),
        ({"en": ["ab cd", "a"]}, "'en', text 1: one token"),
        ({"en": ["a b c d e f g h " * 20]}, "the prompt has .* tokens, but the model's context is 128"),
    ):
        with pytest.raises(ns.NeuronShareError, match=message):
            ns.perplexity(model, texts, prepend_bos=False)


def test_the_first_of_several_stops_cuts(animals):
    model, prompts = animals.lens("demo", "bridge"), ns.demo.prompts()[3:4].select(["en", "de"])
    short = ns.ParallelPrompts(prompts.prompts, {"en": [" New"], "de": [" Neu"]})
    for stop in (["Dollar", " Zea", "seel"], ["seel", " Zea", "Dollar"]):
        cut = ns.evaluate(model, short, scoring="exact", stop=stop, max_new_tokens=6)
        assert cut["prediction"].tolist() == [" New", " Neu"], stop


@pytest.mark.usefixtures("as_users_run_it")
def test_stop_may_be_read_once(animals):
    """A generator is read for all languages, and not for the first alone."""
    model, prompts = animals.lens("demo", "bridge"), ns.demo.prompts()[3:4].select(["en", "de"])
    short = ns.ParallelPrompts(prompts.prompts, {"en": [" New"], "de": [" Neu"]})
    stop = (each for each in (" Zea", "seel"))
    cut = ns.evaluate(model, short, scoring="exact", stop=stop, max_new_tokens=6)
    assert cut["prediction"].tolist() == [" New", " Neu"]


def test_of_equally_likely_choices_the_first_is_the_answer(bloom):
    """Without the unembedding every token is equally likely."""
    choices = [" five", " nine"]
    assert len({len(row) for row in models.tokenise(bloom, [f"Two and three make{choice}" for choice in choices])}) == 1
    for answers in (choices, choices[::-1]):
        prompts = ns.ParallelPrompts(
            {language: ["Two and three make"] for language in ("en", "de")},
            {language: [" five"] for language in ("en", "de")},
            {language: [answers] for language in ("en", "de")},
        )
        flat = [("unembed.hook_out", lambda logits, hook: torch.zeros_like(logits))]
        assert set(ns.evaluate(bloom, prompts, fwd_hooks=flat)["prediction"]) == {answers[0]}


@pytest.mark.parametrize(("one", "other"), [("STRASSE", "Straße"), ("İZMİR", "i̇zmi̇r"), ("ΣΊΣΥΦΟΣ", "σίσυφος")])
def test_case_is_that_of_unicode(one, other):
    assert grading.normalised(one) == grading.normalised(other)
    assert grading.normalised(one) != grading.normalised(other[:-1])

"""Tables of scores, compared with sets and loops over single neurons in Hugging Face."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tl_neuronshare as ns
from support import reference, zoo
from support.prompts import PROMPTS, QUIZ, quiz_for
from support.toys import LAST, SETS
from support.watching import PeakMemory

TYPES = [type.label for type in ns.NeuronType][::-1]
SHARES = ("mean_positive_share", "pooled_positive_share", "mean_absolute_share", "pooled_absolute_share")
STATISTICS = {
    "generation": ("top_share", "mean", "sum", "max", "min"),
    "correctness": ("mean", "sum", "max", "min", *SHARES),
    "difference": ("mean", "sum", "max", "min", *SHARES),
}
KEYS = ["language", "layer", "type", "score", "statistic"]


@pytest.mark.parametrize(("answer", "norm"), [("first", "none"), ("all", "full")])
@pytest.mark.parametrize("name", zoo.LITERAL)
def test_the_table_equals_sets_and_loops_over_single_neurons(animals, name, backend, answer, norm):
    model, prompts, kind = animals.lens(name, backend), quiz_for(name), animals.kind(name)
    plain = animals.hugging_face(name)
    scores = reference.literal_scores(*plain, kind, prompts, answer, norm)
    in_loops = reference.literal_table(*plain, kind, prompts, scores)
    sharing = ns.categorise(model, prompts)
    table = ns.attribute(model, prompts, sharing, answer=answer, norm=norm).set_index(KEYS)["value"].to_dict()
    assert list(table) == [
        (language, layer, type, score, statistic)
        for language in ("all", *prompts.languages)
        for layer in (*range(kind.n_layers), "all")
        for type in TYPES
        for score, statistics in STATISTICS.items()
        for statistic in statistics
    ]
    largest = {
        score: max(abs(value) for key, value in in_loops.items() if key[3:] == (score, "max"))
        for score in ("generation", "correctness")
    }
    for key, value in in_loops.items():
        # A sum that is nearly zero is compared on the scale of its parts.
        assert table[key] == pytest.approx(value, rel=1e-4, abs=1e-5 * largest[key[3]], nan_ok=True), key


@pytest.mark.parametrize("answer", ["first", "all"])
def test_a_wrong_answer_is_the_next_that_begins_otherwise(animals, backend, answer):
    """Compared with attributing prompts that have these answers; if all answers begin alike there is none."""
    model, prompts = animals.lens("demo", backend), ns.demo.prompts()[:60].select(["en", "zh"])
    sharing = ns.categorise(model, prompts)
    first = {
        language: [model.tokenizer(answer, add_special_tokens=False).input_ids[0] for answer in answers]
        for language, answers in prompts.answers.items()
    }
    assert any(len(set(tokens)) < 60 for tokens in first.values())
    wrong = {
        language: [
            next(answers[j % 60] for j in range(i + 1, i + 60) if first[language][j % 60] != first[language][i])
            for i in range(60)
        ]
        for language, answers in prompts.answers.items()
    }
    table = ns.attribute(model, prompts, sharing, answer=answer).set_index(KEYS)
    assert table.loc[[key for key in table.index if key[3] == "generation"], "other_answer"].isna().all()
    if answer == "first":
        others = ns.attribute(model, ns.ParallelPrompts(prompts.prompts, wrong), sharing).set_index(KEYS)["value"]
        pushed = [key for key in table.index if key[3] == "correctness"]
        np.testing.assert_allclose(table.loc[pushed, "other_answer"], others[pushed], rtol=1e-4, atol=1e-6)
    alike = ns.ParallelPrompts(prompts.prompts, {"en": [" 7"] * 60, "zh": prompts.answers["zh"]})
    table = ns.attribute(model, alike, sharing, answer=answer)
    table = table.query("score == 'correctness' and layer == 'all' and type == 'all-shared'")
    missing = table.set_index("language")["other_answer"].isna().groupby(level=0).all()
    assert missing.to_dict() == {"all": True, "en": True, "zh": False}


def test_the_difference_is_that_of_each_neuron_between_the_right_and_a_wrong_answer(animals, backend):
    """Neuron by neuron in Hugging Face; a language whose answers all begin alike has none, nor has the mean of all."""
    model, kind, missing = animals.lens("bloom", backend), zoo.KINDS["bloom"], QUIZ.languages[-1]
    hugging_face, tokenizer = animals.hugging_face("bloom")
    answers = QUIZ.answers | {missing: 3 * [QUIZ.answers[missing][0]]}
    prompts = ns.ParallelPrompts(QUIZ.prompts, answers)
    sharing = ns.categorise(model, prompts)
    table = (
        ns.attribute(model, prompts, sharing)
        .set_index(KEYS)
        .query("score == 'difference'")
        .droplevel("score")
        .sort_index()
    )
    assert table.loc[[missing, "all"], "value"].isna().all()
    assert (table.loc[[missing, "all"], "examples"] == 0).all()
    for language in prompts.languages[:-1]:
        places = []  # for each example, the tokens before the answer, and the answer's first
        for text, gold in zip(prompts.prompts[language], answers[language], strict=True):
            start, (tokens,), _ = reference.literal_start(tokenizer, text, [gold], kind.bos)
            places.append((tokens[:start], tokens[start]))
        pushed = []
        for example, (before, right) in enumerate(places):
            wrong = next(token for _, token in places[example + 1 :] + places[:example] if token != right)
            pushed.append(
                [
                    reference.scores(hugging_face, before, -1, token, down=kind.down, n_layers=kind.n_layers)
                    for token in (right, wrong)
                ]
            )
        for layer, type in product(range(kind.n_layers), TYPES):
            value = table.loc[(language, layer, type), "value"]
            every = [np.subtract(right[layer][1], wrong[layer][1]) for right, wrong in pushed]
            own = [of_all[sharing.mask(type)[example, layer].numpy()] for example, of_all in enumerate(every)]
            assert value["sum"] == pytest.approx(np.mean([each.sum() for each in own]), abs=1e-5)
            assert value["max"] == pytest.approx(np.mean([each.max() for each in own if len(each)]), abs=1e-5)
            shares = [100 * np.abs(some).sum() / np.abs(whole).sum() for some, whole in zip(own, every, strict=True)]
            assert value["mean_absolute_share"] == pytest.approx(np.mean(shares), rel=1e-3)


def test_answers_merge_with_prompts_and_are_found(animals, backend):
    """In these texts most prompts merge with their answers, and the table says how many."""
    model = animals.lens("bloom", backend)
    table = ns.attribute(model, QUIZ, ns.categorise(model, QUIZ))
    merged = ns.evaluate(model, ns.ParallelPrompts(PROMPTS, QUIZ.answers), scoring="exact")["merged"]
    assert table.attrs["merged"] == merged.mean() > 0.2


@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_shares_add_up_to_all(animals, name, backend):
    model = animals.lens(name, backend)
    for top_k in (1, 7, 0.2, 1.0):
        table = ns.attribute(model, QUIZ, ns.categorise(model, QUIZ), top_k=top_k)
        sums = table[table["statistic"].str.endswith("share")].groupby(KEYS[:2] + KEYS[3:])["value"].sum()
        assert len(sums) == 4 * 4 * 9
        np.testing.assert_allclose(sums, 100)
        if isinstance(top_k, float) and top_k == 1:  # all neurons are the top
            rows = table[table["statistic"] == "top_share"]
            np.testing.assert_allclose(rows["value"], rows["chance"])


@pytest.fixture
def toy(toy_directory, tmp_path, backend):
    """Neurons of known types: each writes 1 to every coordinate, so its impact is 4 times the root of 8, or 0."""
    model = AutoModelForCausalLM.from_pretrained(toy_directory)
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.fc2.weight.fill_(1.0)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(toy_directory).save_pretrained(tmp_path)
    model = ns.load_model(tmp_path, backend=backend, device="cpu")
    prompts = ns.ParallelPrompts(
        {la: [f"sky {word}" for word in words] for la, words in LAST.items()},
        {la: [" sun"] * len(words) for la, words in LAST.items()},
    )
    return model, prompts, ns.categorise(model, prompts)


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_of_equal_neurons_the_first_are_the_top(toy, batch_size):
    """There are only two values, so nearly all are ties: among the active neurons or among the others."""
    model, prompts, sharing = toy
    exactly = [(hook, lambda values, hook: values.round()) for hook in sharing.hooks]  # removes LayerNorm's eps
    for top_k in (3, 10, 12):
        with model.hooks(fwd_hooks=exactly):
            table = ns.attribute(model, prompts, sharing, top_k=top_k, batch_size=batch_size)
        table = table.set_index(KEYS)["value"]
        for language, layer, type in product(LAST, range(2), TYPES):
            shares = []
            for example in range(4):
                sets = (SETS, SETS[::-1])[layer]
                active = [number for number, words in enumerate(sets) if LAST[language][example] in words]
                best = (active + [number for number in range(len(sets)) if number not in active])[:top_k]
                shares.append(100 * sharing.mask(type)[example, layer, best].sum().item() / top_k)
            assert table[language, layer, type, "generation", "top_share"] == pytest.approx(np.mean(shares))
        assert table["en", 0, "all-shared", "generation", "max"] == pytest.approx(4 * 8**0.5)


def test_a_type_that_is_empty_has_a_share_of_nothing_and_no_mean(toy):
    """The second example is the same word in all languages: neurons are all-shared or non-activated."""
    model, prompts, sharing = toy
    table = ns.attribute(model, prompts[1:2], sharing[1:2])
    rows = table[(table["type"] == "specific") & (table["layer"] == 0)].set_index(["language", "score", "statistic"])
    for language in ("all", *LAST):
        values = rows.loc[language]["value"]
        assert values["generation"][["top_share", "sum"]].tolist() == [0, 0]
        assert values["generation"][["mean", "max", "min"]].isna().all()
        assert values["correctness"][["mean", "max", "min"]].isna().all()
    assert (rows.query("statistic == 'mean'")["examples"] == 0).all()
    # Over all four examples it is the mean over those that have any; a share is the mean over all.
    table = ns.attribute(model, prompts, sharing).set_index(KEYS)
    has = sharing.mask("specific")[:, 0].any(-1)
    assert table.loc[("en", 0, "specific", "generation", "mean"), "examples"] == has.sum() < 4
    assert table.loc[("en", 0, "specific", "generation", "top_share"), "examples"] == 4


def test_where_nothing_is_pushed_there_is_no_share(toy):
    """What the toy writes is orthogonal to every word's column."""
    model, prompts, sharing = toy
    table = ns.attribute(model, prompts, sharing)
    shares = table[(table["score"] == "correctness") & table["statistic"].isin(SHARES)]
    assert shares["value"].isna().all()
    assert (shares["examples"] == 0).all()


def test_intervals_and_chance(animals, backend):
    """Compared with resampling the values of single examples, for a mean and a ratio."""
    model, prompts = animals.lens("demo", backend), ns.demo.prompts()[:14].select(["en", "zh"])
    sharing = ns.categorise(model, prompts)
    table = ns.attribute(model, prompts, sharing).set_index(KEYS)
    of_one = [ns.attribute(model, prompts[i : i + 1], sharing[i : i + 1]).set_index(KEYS)["value"] for i in range(14)]
    drawn = np.random.default_rng(7).integers(14, size=(20_000, 14))
    for language in ("all", "en"):
        key = (language, 2, "all-shared")
        shares = np.array([values[(*key, "generation", "top_share")] for values in of_one])
        row = table.loc[(*key, "generation", "top_share")]
        assert row["value"] == pytest.approx(shares.mean())
        assert (row["low"], row["high"]) == pytest.approx(np.quantile(shares[drawn].mean(1), [0.025, 0.975]), abs=0.5)
        pushed = np.array([values[(*key, "correctness", "sum")] for values in of_one])
        row = table.loc[(*key, "correctness", "sum")]
        assert (row["low"], row["high"]) == pytest.approx(
            np.quantile(pushed[drawn].mean(1), [0.025, 0.975]), abs=0.05 * pushed.std()
        )
        assert row[["chance"]].isna().all()
        row = table.loc[(*key, "correctness", "pooled_absolute_share")]
        assert row["low"] < row["value"] < row["high"]
        percent = sharing.summary().query("layer == 2 and type == 'all-shared'")["mean"].item()
        assert row["chance"] == pytest.approx(percent)
    few = ns.attribute(model, prompts[:9], sharing[:9])
    assert few[["low", "high"]].isna().to_numpy().all()


@pytest.mark.parametrize(
    ("name", "answer", "norm"),
    [("bloom", "first", "none"), ("bloom", "all", "frozen"), ("gpt2", "all", "full"), ("demo", "first", "none")],
)
def test_batches_and_other_languages_change_nothing(animals, name, backend, answer, norm):
    model, prompts = animals.lens(name, backend), quiz_for(name)[:2]
    sharing, options = ns.categorise(model, prompts), {"answer": answer, "norm": norm}
    expected = ns.attribute(model, prompts, sharing, **options).set_index(KEYS)["value"]
    found = ns.attribute(model, prompts, sharing, batch_size=1, **options).set_index(KEYS)["value"]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    first, *_, last = prompts.languages
    some = ns.attribute(model, prompts.select([last, first]), sharing, **options).set_index(KEYS)["value"]
    np.testing.assert_allclose(some[first], expected[first], rtol=2e-4, atol=2e-5)


def test_hooks_of_the_user_s_that_are_active_are_seen(bloom):
    sharing = ns.categorise(bloom, QUIZ)
    mask = torch.zeros(3, 128, dtype=torch.bool)
    mask[1] = True
    with bloom.hooks(fwd_hooks=ns.ablation_hooks(bloom, mask)):
        table = ns.attribute(bloom, QUIZ, sharing)
    sums = table[table["statistic"] == "sum"].groupby("layer")["value"].apply(lambda values: values.abs().sum())
    assert sums[1] == 0 < sums[0]


def test_no_product_of_neurons_and_coordinates_for_each_example(animals, backend):
    """Beyond what categorising needs, far less memory than [prompt, neuron, d_model] is used."""
    model, prompts = animals.lens("demo", backend), ns.demo.prompts()[:200].select(["en", "de"])
    with PeakMemory() as categorising:
        sharing = ns.categorise(model, prompts, batch_size=50)
    with PeakMemory() as attributing:
        ns.attribute(model, prompts, sharing, norm="full", n_resamples=10, batch_size=50)
    assert attributing.peak < categorising.peak + 50 * 512 * 128 * 4 / 4


def test_in_half_precision(animals, backend):
    model = ns.load_model(animals.directory("bloom"), backend=backend, device="cpu", dtype=torch.bfloat16)
    exact = animals.lens("bloom", backend)
    expected = ns.attribute(exact, QUIZ, ns.categorise(exact, QUIZ), norm="full").set_index(KEYS)["value"]
    found = ns.attribute(model, QUIZ, ns.categorise(model, QUIZ), norm="full").set_index(KEYS)["value"]
    rows = [key for key in expected.index if key[3:] == ("generation", "sum") and key[1:3] == ("all", "all-shared")]
    np.testing.assert_allclose(found[rows], expected[rows], rtol=0.1)


def test_what_it_was_made_from_is_said(bloom, as_users_run_it):
    sharing = ns.categorise(bloom, QUIZ)
    numbers = {"top_k": np.float64(0.1), "batch_size": np.int64(2), "n_resamples": np.int64(9)}
    table = ns.attribute(bloom, QUIZ, sharing, answer="all", norm="frozen", **numbers)
    record = json.loads(json.dumps(table.attrs))
    assert record["sharing"]["fingerprint"] == sharing.metadata["fingerprint"]
    assert record["top_k_of_layers"] == [13, 13, 13]
    reversed_answers = ns.ParallelPrompts(PROMPTS, {la: answers[::-1] for la, answers in QUIZ.answers.items()})
    other = ns.attribute(bloom, reversed_answers, sharing).attrs
    assert other["fingerprint_of_prompts"] == record["fingerprint_of_prompts"]
    assert other["fingerprint_of_answers"] != record["fingerprint_of_answers"]
    said = {"weights": "not folded", "answer": "all", "norm": "frozen", "top_k": 0.1, "examples": 3}
    assert record | said == record


def test_top_neurons_are_counted(animals, backend):
    """Compared with counting by hand, for both scores."""
    model, prompts = animals.lens("demo", backend), ns.demo.prompts()[:10].select(["en", "zh"])
    sharing = ns.categorise(model, prompts)
    scores = reference.literal_scores(*animals.hugging_face("demo"), animals.kind("demo"), prompts)
    for which, score in enumerate(("generation", "correctness")):
        times, total, of_language = {}, {}, {}
        for (example, language, layer), of_one in scores.items():
            ranked = sorted(range(512), key=lambda neuron: -of_one[which][neuron])
            for neuron in range(512):
                total[layer, neuron] = total.get((layer, neuron), 0) + of_one[which][neuron] / 20
            for neuron in ranked[:25]:
                times.setdefault((layer, neuron), []).append(example)
                of_language.setdefault((layer, neuron), []).append(language)
        table = ns.top_neurons(model, prompts, sharing, score=score, n=None)
        assert list(zip(table["layer"], table["neuron"], strict=True)) == sorted(
            times, key=lambda place: (-len(times[place]), -total[place], place)
        )
        for row in table[:40].itertuples(index=False):
            place = row.layer, row.neuron
            assert row.prompts == pytest.approx(100 * len(times[place]) / 20)
            assert row.score == pytest.approx(total[place], rel=1e-4)
            often = [language for language in prompts.languages if of_language[place].count(language) >= 5]
            assert row.languages.split() == often
        for type in TYPES:
            assert table[type].tolist() == sharing.mask(type).sum(0)[table["layer"], table["neuron"]].tolist()
            whole = sharing.mask(type).all(0)[table["layer"], table["neuron"]].tolist()
            assert (table["always"] == type).tolist() == whole
        assert set(table["always"]) >= {"", "all-shared"}
        first = ns.top_neurons(model, prompts, sharing, score=score, n=10)
        assert first.equals(table[:10])
        mask = ns.mask_from_frame(first, n_layers=4, d_mlp=512)
        assert mask.sum() == 10
        assert mask[table["layer"][0], table["neuron"][0]]


def test_of_few_examples_no_neuron_is_called_always_of_one_type(animals, backend):
    model, prompts = animals.lens("demo", backend), ns.demo.prompts()[:9].select(["en", "zh"])
    assert set(ns.top_neurons(model, prompts, ns.categorise(model, prompts))["always"]) == {""}


def test_neurons_that_write_nothing_are_never_the_top(toy):
    model, prompts, sharing = toy
    table = ns.top_neurons(model, prompts, sharing, n=None, top_k=1.0)
    assert len(table) == 2 * sum(1 for words in SETS if words)
    assert ns.top_neurons(model, prompts, sharing, score="correctness").empty


OPTIONS = {
    "top_k too large": ({"top_k": 129}, "top_k=129: layer 0 has only 128 neurons"),
    "no top_k": ({"top_k": 0}, "top_k=0; give a number of neurons"),
    "share above 1": ({"top_k": 1.5}, "top_k=1.5; give a number of neurons"),
    "top_k of another type": ({"top_k": True}, "top_k=True; give a number"),
    "answer": ({"answer": "last"}, "answer='last' is unknown; use one of first, all"),
    "norm": ({"norm": "raw"}, "norm='raw' is unknown; use one of none, frozen, full"),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_unknown_options(ready, options, message, as_users_run_it):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.attribute(*ready, **options)


def test_unknown_options_of_top_neurons(ready, as_users_run_it):
    for name in ("top_k too large", "answer", "norm"):  # other bad values go through the same check
        options, message = OPTIONS[name]
        with pytest.raises(ns.NeuronShareError, match=message):
            ns.top_neurons(*ready, **options)
    with pytest.raises(ns.NeuronShareError, match="score='sum' is unknown; use one of generation, correctness"):
        ns.top_neurons(*ready, score="sum")
    with pytest.raises(ns.NeuronShareError, match="n=0; give a number of neurons, or None"):
        ns.top_neurons(*ready, n=0)


def test_what_cannot_be_attributed(ready, as_users_run_it):
    model, prompts, sharing = ready
    with pytest.raises(ns.NeuronShareError, match="has no answers in any of en, de, zh"):
        ns.attribute(model, ns.ParallelPrompts(PROMPTS), sharing)
    with pytest.raises(ns.NeuronShareError, match=r"answers is for en, de, but prompts is for en, de, zh"):
        ns.ParallelPrompts(PROMPTS, {la: QUIZ.answers[la] for la in ("en", "de")})
    with pytest.raises(ns.NeuronShareError, match="Language 'de', example 1: the answer is empty"):
        ns.ParallelPrompts(PROMPTS, {**QUIZ.answers, "de": ["a", "", "b"]})
    with pytest.raises(ns.NeuronShareError, match="sharing is a str; give the NeuronSharing"):
        ns.attribute(model, prompts, "all-shared")
    with pytest.raises(ns.NeuronShareError, match="There are 2 examples of prompts and 3 of types"):
        ns.attribute(model, prompts[:2], sharing)
    with pytest.raises(ns.NeuronShareError, match="Example 1: the types are of other prompts"):
        ns.attribute(model, prompts[1:2], sharing[:1])
    with pytest.raises(ns.NeuronShareError, match="measured with prepend_bos=False; give the same"):
        ns.attribute(model, prompts, sharing, prepend_bos=True)
    with pytest.raises(ns.NeuronShareError, match=r"The types are of en, de, and not of zh"):
        ns.attribute(model, prompts, ns.categorise(model, prompts.select(["en", "de"])))


def test_types_of_another_model_are_refused(animals, ready, as_users_run_it):
    model, prompts, sharing = ready
    with pytest.raises(ns.NeuronShareError, match=r"layers of 128, 128, 128 neurons, .* has 96, 96, 96"):
        ns.attribute(animals.lens("llama", "bridge"), prompts, sharing)
    other = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu")
    with torch.no_grad():
        other.blocks[1].mlp.W_out[0, 0] += 1
    with pytest.raises(ns.NeuronShareError, match="measured on different weights from those of"):
        ns.attribute(other, prompts, sharing)
    same = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu")
    assert ns.attribute(same, prompts, sharing).equals(ns.attribute(model, prompts, sharing))

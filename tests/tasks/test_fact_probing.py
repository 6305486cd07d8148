"""The reader of mParaRel, on a small source."""

from __future__ import annotations

import json

import pytest

import tl_neuronshare as ns
from support import sources


def test_a_continuation_is_the_pattern_up_to_the_object(mpararel):
    prompts = ns.tasks.fact_probing(mpararel, relations="P36")
    assert prompts.languages == ("en", "de", "tr", "zh")
    assert len(prompts) == len(sources.CAPITALS)
    for language, pattern in (("en", "the capital of {} is"), ("tr", "{} ülkesinin başkenti"), ("zh", "{}的首都是")):
        for index, example in enumerate(prompts.examples):
            relation, subject, object = example.split("/")
            country, capital = sources.CAPITALS[subject, object][language]
            assert relation == "P36"
            assert prompts.prompts[language][index] == pattern.format(country)
            assert prompts.answers[language][index] == ("" if language == "zh" else " ") + capital


def test_a_cloze_has_a_blank_for_the_object_and_an_instruction_in_its_language(mpararel):
    prompts = ns.tasks.fact_probing(mpararel, relations="P37", form="cloze", languages=["tr", "en"])
    index = prompts.examples.index("P37/Q142/Q150")
    assert prompts.prompts["en"][index] == "Fill in the blank: ___ is spoken in France\nAnswer:"
    assert prompts.prompts["tr"][index] == "Boşluğu doldur: Fransa ülkesinde ___ konuşulur\nCevap:"
    assert prompts.answers["tr"][index] == " Fransızca"
    assert ns.tasks.fact_probing(mpararel, form="cloze").answers["zh"][0][0] != " "
    own = {"en": "Was fehlt? {}"}
    prompts = ns.tasks.fact_probing(mpararel, form="cloze", languages=["en", "de"], instructions=own, limit=1)
    assert prompts.prompts["en"][0].startswith("Was fehlt? the capital of")


def test_which_pattern_is_an_option(mpararel):
    second = ns.tasks.fact_probing(mpararel, languages=["en", "zh"], pattern=1, form="cloze")
    assert all("___ is the capital of" in text for text in second.prompts["en"])
    own = ns.tasks.fact_probing(mpararel, languages=["en", "de"], pattern={"en": "In [X] they govern in [Y]."})
    assert all(text.startswith("In ") and text.endswith(" they govern in") for text in own.prompts["en"])
    assert all(text.startswith("die Hauptstadt von") for text in own.prompts["de"])
    drawn = ns.tasks.fact_probing(mpararel, languages=["en", "de"], pattern="random")
    assert {text.split()[0] == "the" for text in drawn.prompts["en"]} == {True, False}
    assert drawn == ns.tasks.fact_probing(mpararel, languages=["en", "de"], pattern="random")
    with pytest.raises(ns.NeuronShareError, match="pattern=1: language 'de' has 1 patterns of P36 for a continuation"):
        ns.tasks.fact_probing(mpararel, languages=["en", "de"], pattern=1)


def test_patterns_that_end_in_a_word_come_first(mpararel):
    files = {language: mpararel / "patterns" / language / "P36.jsonl" for language in ("en", "de", "tr", "zh-hans")}
    patterns = {
        "en": ["[X]'s capital, [Y]", "[X], whose capital is [Y]", "The capital of [X] is [Y]", "[X] is led from [Y]"],
        "de": ["Hauptstadt von [X]: [Y]", "[X], dessen Hauptstadt [Y]."],
        "tr": ["[X] - [Y]", "[X]: [Y]"],
        "zh-hans": ["[X]的首都，[Y]", "[X]的首都是[Y]"],
    }
    for language, file in files.items():
        sources.write_lines(file, [{"pattern": pattern} for pattern in patterns[language]])
    prompts = ns.tasks.fact_probing(mpararel, limit=2)
    ends = {"en": " is", "de": "dessen Hauptstadt", "tr": " -", "zh": "的首都是"}
    for language, end in ends.items():
        assert all(text.endswith(end) for text in prompts.prompts[language])
    assert all(text.startswith("The capital of ") for text in prompts.prompts["en"])
    noted = sources.counts(prompts)
    assert noted["en", "noted", "P36: pattern 'The capital of [X] is [Y]', which ends in a word"] == 2
    assert noted["tr", "noted", "P36: pattern '[X] - [Y]', which ends in no word"] == 2
    assert ns.tasks.fact_probing(mpararel, limit=2, pattern=0).prompts["en"][0].endswith("'s capital,")
    mixed = ns.tasks.fact_probing(mpararel, limit=2, pattern={"de": "[X]: [Y]"})
    assert mixed.prompts["de"][0].endswith(":")
    assert mixed.prompts["en"] == prompts.prompts["en"]
    subject = ns.tasks.fact_probing(mpararel, limit=2, pattern={"tr": "[X] [Y]"})
    assert sources.counts(subject)["tr", "noted", "P36: pattern '[X] [Y]', which ends in the subject"] == 2


def test_patterns_from_a_file(mpararel, tmp_path):
    """Each language and relation has its own; the others are asked as they are without the file."""
    lines = [
        {"language": "en", "relation": "P36", "pattern": "The seat of government of [X] is [Y]"},
        {"language": "zh-hans", "relation": "P36", "pattern": "[X]的政府在[Y]"},
        {"language": "en", "relation": "P99", "pattern": "not asked for"},
    ]
    file = tmp_path / "own.jsonl"
    sources.write_lines(file, lines)
    languages = ["en", "de", "zh"]
    prompts = ns.tasks.fact_probing(mpararel, languages=languages, pattern=file)
    plain = ns.tasks.fact_probing(mpararel, languages=languages)
    assert all(text.startswith("The seat of government of ") for text in prompts.prompts["en"])
    assert all(text.endswith("的政府在") for text in prompts.prompts["zh"])
    assert prompts.prompts["de"] == plain.prompts["de"]
    assert (prompts.examples, prompts.answers) == (plain.examples, plain.answers)
    sources.write_lines(file, [*lines, lines[0]])
    with pytest.raises(ns.NeuronShareError, match=r"own.jsonl, line 4: en has a pattern of P36 already"):
        ns.tasks.fact_probing(mpararel, languages=languages, pattern=str(file))
    with pytest.raises(ns.NeuronShareError, match="there is no such file of patterns"):
        ns.tasks.fact_probing(mpararel, languages=languages, pattern="none.jsonl")


def test_a_language_without_a_fitting_pattern_is_dropped_or_refused(mpararel):
    with pytest.warns(UserWarning, match="left out tr: no pattern of P37 that ends in"):
        prompts = ns.tasks.fact_probing(mpararel, relations="P37", languages=["en", "de", "tr"])
    assert prompts.languages == ("en", "de")
    assert sources.counts(prompts)["tr", "left out", "no pattern of P37 that ends in [Y]"] == len(sources.TONGUES)
    with pytest.raises(ns.NeuronShareError, match=r"tr: no pattern of P37 that ends in \[Y\].*form=\"cloze\""):
        ns.tasks.fact_probing(mpararel, relations="P37", languages=["en", "de", "tr"], without_pattern="refuse")
    with pytest.raises(ns.NeuronShareError, match="cannot ask in every language"):
        ns.tasks.fact_probing(mpararel, relations="P37", languages=["en", "tr"])
    with pytest.warns(UserWarning, match="zh: nothing of P37"):
        assert "zh" not in ns.tasks.fact_probing(mpararel, relations=["P36", "P37"], form="cloze").languages


def test_choices_are_objects_of_the_relation_that_are_not_true_and_differ_in_every_language(mpararel):
    prompts = ns.tasks.fact_probing(mpararel, relations=["P36", "P37"], languages=["de", "en"], n_choices=4)
    assert len(prompts) == len(sources.CAPITALS) + len(sources.TONGUES)
    places = set()
    for index, example in enumerate(prompts.examples):
        relation, subject, object = example.split("/")
        facts = sources.CAPITALS if relation == "P36" else sources.TONGUES
        true = {facts[pair]["en"][1] for pair in facts if pair[0] == subject}
        names = {labels["en"][1]: labels["de"][1] for labels in facts.values()}
        english, german = ([text.strip() for text in prompts.choices[language][index]] for language in ("en", "de"))
        assert german == [names[name] for name in english]  # choice k is the same object in both
        assert true & set(english) == {facts[subject, object]["en"][1]}
        assert len(set(english)) == len(english) == (4 if relation == "P36" else 3)
        places.add(prompts.choices["en"][index].index(prompts.answers["en"][index]))
    assert len(places) > 2
    assert {len(row) for row in ns.tasks.fact_probing(mpararel, n_choices=2).choices["en"]} == {2}


def test_what_another_language_says_of_a_subject_is_no_wrong_choice(mpararel):
    """English and German files know one capital of Bolivia only; the other is no wrong choice, nor is its namesake."""
    facts = {language: sources.read_lines(mpararel / "tuples" / language / "P36.jsonl") for language in ("en", "de")}
    for language, of_language in facts.items():
        rows = [row for row in of_language if row["obj_uri"] != "Q2907"]
        rows.append({"sub_uri": "Q1", "obj_uri": "Q2907", "sub_label": "Chuquisaca", "obj_label": "Sucre", "lineid": 8})
        rows.append({"sub_uri": "Q2", "obj_uri": "Q3", "sub_label": "Bolívar", "obj_label": "sucre", "lineid": 9})
        sources.write_lines(mpararel / "tuples" / language / "P36.jsonl", rows)
    prompts = ns.tasks.fact_probing(mpararel, languages=["en", "de"], n_choices=9)
    index = prompts.examples.index("P36/Q750/Q1491")  # La Paz; that of Sucre is in the Turkish and Chinese files only
    assert not {" Sucre", " sucre"} & set(prompts.choices["en"][index])
    other = prompts.examples.index("P36/Q419/Q2868")  # of Peru both are wrong, but only one can be a choice
    assert len({" Sucre", " sucre"} & set(prompts.choices["en"][other])) == 1


def test_of_the_papers_languages_two_are_needed(mpararel):
    for kind in ("tuples", "patterns"):
        for language, other in (("de", "sw"), ("tr", "yo"), ("zh-hans", "ja")):
            (mpararel / kind / language).rename(mpararel / kind / other)
    (mpararel / "tuples" / ".DS_Store").write_text("not a language")
    prompts = ns.tasks.fact_probing(mpararel)
    assert prompts.languages == ("en", "ja", "sw", "yo")
    assert "left out" not in set(prompts.report["outcome"])


def test_labels_hold_characters_at_which_python_splits_lines(mpararel):
    path = mpararel / "tuples" / "en" / "P36.jsonl"
    rows = sources.read_lines(path)
    rows[0]["sub_label"] = "Ita\u0085ly\u2028"
    path.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8-sig")
    assert any("Ita\u0085ly" in text for text in ns.tasks.fact_probing(mpararel).prompts["en"])


TUPLE = {"sub_uri": "Q142", "obj_uri": "Q90", "obj_label": "Paris", "sub_label": "Frankreich", "lineid": 1}
MPARAREL = {
    "cut off": ("tuples/de/P36.jsonl", 2, None, r"tuples/de/P36\.jsonl, line 2: this is not JSON .*cut off"),
    "no object": ("tuples/de/P36.jsonl", 2, json.dumps(TUPLE).replace("obj_label", "x"), "line 2: no 'obj_label'"),
    "empty answer": ("tuples/de/P36.jsonl", 2, json.dumps(TUPLE | {"obj_label": " "}), "line 2: 'obj_label' is ' '"),
    "a list": ("tuples/de/P36.jsonl", 2, "[1, 2]", "line 2: a list where an object with sub_uri"),
    "same key": (
        "tuples/de/P36.jsonl",
        3,
        json.dumps(TUPLE | {"obj_label": "Lutetia"}),
        r"line 3: P36/Q142/Q90 appears at .*de/P36\.jsonl, line 2 too, and says something else",
    ),
    "not UTF-8": ("tuples/de/P36.jsonl", 4, b'{"sub_uri": "Q\xfc"}', r"line 4: byte 0xfc is not UTF-8"),
    "no subject": ("patterns/de/P36.jsonl", 1, '{"pattern": "Es ist [Y]"}', r"line 1: the pattern .* has no \[X\]"),
    "no blank": ("patterns/de/P36.jsonl", 1, '{"pattern": "[X] hat eine"}', r"line 1: the pattern .* has no \[Y\]"),
    "no pattern": ("patterns/de/P36.jsonl", 1, '{"x": 1}', r"patterns/de/P36\.jsonl, line 1: no 'pattern'"),
}


@pytest.mark.parametrize(("file", "number", "line", "message"), MPARAREL.values(), ids=MPARAREL)
def test_damage_to_mpararel(mpararel, file, number, line, message):
    sources.damaged(mpararel / file, number, line)
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.tasks.fact_probing(mpararel)


def test_the_same_line_again_counts_once(mpararel):
    path = mpararel / "tuples" / "de" / "P36.jsonl"
    before = ns.tasks.fact_probing(mpararel)
    sources.write_lines(path, sources.read_lines(path) + sources.read_lines(path)[:2])
    after = ns.tasks.fact_probing(mpararel)
    assert after == before
    assert sources.counts(after)["de", "dropped", "the same row again"] == 2
    assert sources.counts(after)["de", "kept", "read"] == len(after) + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relations": "P1"}, "has no relation 'P1'; it has P36, P37"),
        ({"relations": []}, "give one, such as 'P36'"),
        ({"form": "question"}, "form='question' is unknown; use one of continuation, cloze"),
        ({"pattern": "last"}, "pattern='last'; give a number"),
        ({"pattern": {"xx": "[X] [Y]"}}, "pattern is for 'xx' too"),
        ({"pattern": {"en": "[X] is [Z]"}}, r"pattern\['en'\]: the pattern '\[X\] is \[Z\]' has no \[Y\]"),
        ({"pattern": {"en": "[Y] is of [X]"}}, r"does not end in \[Y\]"),
        ({"n_choices": 1}, "n_choices=1; give a whole number, at least 2"),
        ({"relations": 36}, "relations=36; give one"),
        ({"relations": None}, "relations=None; give one"),
        ({"relations": ["P36", "P37"], "pattern": {"en": "[X] [Y]"}}, "ask for one relation only"),
        ({"instructions": "native"}, "instructions='native'; give a mapping"),
        ({"instructions": {"en": "{}"}}, "for form='cloze' only"),
        ({"form": "cloze", "instructions": {"xx": "{}"}}, "instructions is for 'xx' too"),
        ({"form": "cloze", "instructions": {"en": 5}}, "no instruction in 'en'"),
        ({"limit": 2.5}, "limit is 2.5"),
        ({"form": ["cloze"]}, "form=.*is unknown"),
        ({"form": "cloze", "instructions": {"en": "no place for it"}}, "no instruction in 'en'"),
        ({"languages": "en"}, "give a list such as"),
    ],
)
def test_options_of_fact_probing(mpararel, options, message, as_users_run_it):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.tasks.fact_probing(mpararel, **options)

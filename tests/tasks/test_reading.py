"""The readers of the paper's tasks, on small files in the original formats that are written here."""

from __future__ import annotations

import importlib
import json
import math
import random
from pathlib import Path

import pandas as pd
import pytest

import sources
import tl_neuronshare as ns


@pytest.fixture
def mpararel(tmp_path: Path) -> Path:
    return sources.mpararel(tmp_path / "mpararel_reviewed")


@pytest.fixture
def mzsre(tmp_path: Path) -> Path:
    return sources.mzsre(tmp_path / "MzsRE")


@pytest.fixture
def mgsm(tmp_path: Path) -> Path:
    return sources.mgsm(tmp_path / "mgsm")


@pytest.fixture
def xnli(tmp_path: Path) -> Path:
    return sources.xnli(tmp_path / "xnli.test.tsv")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def counts(prompts: ns.ParallelPrompts) -> dict[tuple[str, str, str], int]:
    table = prompts.report
    return {(row.language, row.outcome, row.reason): row.count for row in table.itertuples(index=False)}


def shuffled(path: Path, *, drop: int = 0) -> None:
    """Other order of lines, some of them fewer."""
    rows = sources.read_lines(path)
    random.Random(1).shuffle(rows)
    sources.write_lines(path, rows[drop:])


def reordered(mzsre: Path) -> None:
    path = mzsre / "mzsre_test_duplicate_enth.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8"))[::-1]), "utf-8")


# Each fact ---------------------------------------------------------------------------------------------------


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


def test_a_language_without_a_fitting_pattern_is_dropped_or_refused(mpararel):
    with pytest.warns(UserWarning, match="left out tr: no pattern of P37 that ends in"):
        prompts = ns.tasks.fact_probing(mpararel, relations="P37", languages=["en", "de", "tr"])
    assert prompts.languages == ("en", "de")
    assert counts(prompts)["tr", "left out", "no pattern of P37 that ends in [Y]"] == len(sources.TONGUES)
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


def test_an_edit_is_told_in_one_language_and_asked_in_another(mzsre):
    (fact,) = (edit for edit in sources.EDITS if "Bridge" in edit["en"][0])
    names = ("q", "other", "a", "loc", "loc_a", "new")
    english, german, thai = (dict(zip(names, row, strict=False)) for row in fact.values())
    key = f"{english['q']} {english['a']}"
    prompts = ns.tasks.knowledge_editing(mzsre, direction="en->xx")
    assert prompts.languages == ("en", "de", "th")
    index = prompts.examples.index(key)
    told = f"New fact: {english['q']} {english['a']}\n"
    assert prompts.prompts["th"][index] == f"{told}Question: {thai['q']}\nAnswer:"
    assert prompts.answers["th"][index] == f" {thai['a']}"
    assert prompts.prompts["en"][index] == f"{told}Question: {english['q']}\nAnswer:"
    assert prompts.choices is None
    back = ns.tasks.knowledge_editing(mzsre, direction="xx->en", instructions="native", asks="generality")
    told = f"Neue Tatsache: {german['q']} {german['a']}\n"
    assert back.prompts["de"][index] == f"{told}Question: {english['other']}\nAnswer:"
    assert set(zip(*back.answers.values(), strict=True)) == {(f" {edit['en'][2]}",) * 3 for edit in sources.EDITS}
    assert thai["a"] in back.prompts["th"][index]
    elsewhere = ns.tasks.knowledge_editing(mzsre, asks="locality", instructions="native")
    assert elsewhere.prompts["de"][index].endswith(f"\nFrage: {german['loc']}\nAntwort:")
    assert elsewhere.answers["de"][index] == f" {german['loc_a']}"
    assert elsewhere.prompts["en"][index].endswith(f"\nQuestion: {english['loc']}\nAnswer:")
    follows = ns.tasks.knowledge_editing(mzsre / "mzsre_test_duplicate_ende.json", asks="portability")
    assert follows.languages == ("en", "de")
    assert german["new"] in follows.prompts["de"][index]


def test_a_problem_ends_in_its_number(mgsm):
    prompts = ns.tasks.mgsm(mgsm)
    assert prompts.languages == ("en", "de", "zh")
    index = prompts.examples.index(2)
    assert prompts.prompts["de"][index] == f"Frage: {sources.PROBLEMS['de'][1][0]}\nAntwort:"
    assert [prompts.answers[language][index] for language in prompts.languages] == [" 1200", " 1200", "1200"]
    assert ns.tasks.mgsm(mgsm, instructions="english").prompts["zh"][index].startswith("Question: 一本书")
    assert counts(prompts)["tr", "left out", "of the paper's languages, but not in the source"] == 0


def test_a_premise_is_to_be_taken_as_true(xnli):
    prompts = ns.tasks.xnli(xnli)
    assert prompts.languages == ("en", "de", "zh")
    index = prompts.examples.index("2/21")
    assert prompts.prompts["de"][index] == (
        "Take the following as truth: Er sagte: „Niemand ist zu Hause.“\n"
        'Then the following statement: "Jemand hat gesprochen." is "true", "false" or "inconclusive"?'
    )
    gold = {"1/11": " false", "1/12": " inconclusive", "2/21": " true"}
    for language in prompts.languages:
        assert dict(zip(prompts.examples, prompts.answers[language], strict=True)) == gold
        assert set(prompts.choices[language]) == {(" true", " inconclusive", " false")}


def test_instructions_and_choices_of_xnli_in_the_language_itself(xnli):
    prompts = ns.tasks.xnli(xnli, instructions="native")
    index = prompts.examples.index("1/11")
    assert prompts.prompts["zh"][index].startswith("请将以下内容视为事实：从星期一起一直下雨。")
    assert [prompts.answers[language][index] for language in ("en", "de", "zh")] == [" false", " falsch", "错误"]
    for language, wording in importlib.import_module("tl_neuronshare.tasks.xnli").WORDING.items():
        assert all(answer in wording.instruction for answer in wording.answers), language
        assert len(set(wording.answers)) == 3


# Sources -----------------------------------------------------------------------------------------------------


def test_a_local_copy_from_the_hub_gives_the_same(tmp_path, offline, mpararel, mzsre, mgsm, xnli):
    """Through `datasets`, as from the hub, but for the network."""
    of_hub = ns.tasks.xnli(sources.xnli_from_the_hub(tmp_path / "facebook" / "xnli"))
    of_file = ns.tasks.xnli(xnli)
    by_text = [{(p, a) for p, a in zip(x.prompts["zh"], x.answers["zh"], strict=True)} for x in (of_hub, of_file)]
    assert by_text[0] == by_text[1]
    assert ns.tasks.mgsm(
        sources.mgsm_from_the_hub(tmp_path / "mgsm-hub"), languages=["de", "zh", "en"]
    ) == ns.tasks.mgsm(mgsm, languages=["de", "zh", "en"])
    of_hub = ns.tasks.fact_probing(sources.mpararel_from_the_hub(tmp_path / "autorr"))
    assert of_hub == ns.tasks.fact_probing(mpararel)
    of_hub = ns.tasks.knowledge_editing(sources.mzsre_from_the_hub(tmp_path / "editing"), direction="xx->en")
    assert of_hub == ns.tasks.knowledge_editing(mzsre, direction="xx->en")


def test_of_a_data_set_only_the_split_is_needed(tmp_path, offline):
    folder = sources.xnli_from_the_hub(tmp_path / "xnli")
    before = ns.tasks.xnli(folder)
    (folder / "README.md").unlink()
    (folder / "all_languages" / "train-00000-of-00001.parquet").write_text("not read")
    assert ns.tasks.xnli(folder) == before
    # And where files are called otherwise, the card says where they are.
    other = sources.xnli_from_the_hub(tmp_path / "other")
    (other / "all_languages").rename(other / "of_all")
    (other / "README.md").write_text((other / "README.md").read_text().replace("path: all_languages", "path: of_all"))
    assert ns.tasks.xnli(other) == before


def test_of_two_folders_of_one_name_each_gives_its_own(tmp_path, offline):
    """A cache must not take one for the other."""
    one, other = (sources.mgsm_from_the_hub(tmp_path / where / "mgsm") for where in ("here", "there"))
    before = ns.tasks.mgsm(one)
    for path in other.glob("*/*.parquet"):
        pd.read_parquet(path).assign(answer_number=[5, 6]).to_parquet(path)
    assert {text.strip() for text in ns.tasks.mgsm(other).answers["en"]} == {"5", "6"}
    assert ns.tasks.mgsm(one) == before


def test_the_repository_around_the_folder_will_do(tmp_path):
    inside = sources.mpararel(tmp_path / "clone" / "data" / "mpararel_reviewed")
    assert ns.tasks.fact_probing(tmp_path / "clone") == ns.tasks.fact_probing(str(inside))
    assert len(ns.tasks.xnli(sources.xnli(tmp_path / "XNLI-1.0" / "xnli.test.tsv").parent)) == 3


NAMES = {"xnli": "facebookresearch/XNLI", "mgsm": "url-nlp", "fact_probing": "mpararel", "knowledge_editing": "ReMaKE"}


def test_a_part_of_a_copy_says_what_it_has(tmp_path, offline):
    folder = sources.mgsm_from_the_hub(tmp_path / "mgsm")
    assert ns.tasks.mgsm(folder).languages == ("en", "de", "zh")
    with pytest.raises(ns.NeuronShareError, match="mgsm has nothing in 'th' in this source; it has de, en, zh"):
        ns.tasks.mgsm(folder, languages=["en", "th"])


def test_rows_of_a_data_set_that_were_not_asked_for_do_not_matter(tmp_path, offline):
    """Nor does their order."""
    folder = sources.mpararel_from_the_hub(tmp_path / "autorr")
    before = ns.tasks.fact_probing(folder, languages=["en", "de"])
    path = next(folder.glob("data/*.parquet"))
    rows = pd.read_parquet(path)[::-1]
    other = rows.iloc[:1].assign(relation="P99", obj_label=[[""]])
    pd.concat([other, rows]).to_parquet(path)
    assert ns.tasks.fact_probing(folder, languages=["en", "de"]) == before
    editing = sources.mzsre_from_the_hub(tmp_path / "editing")
    path = next(editing.glob("*/*.parquet"))
    rows = pd.read_parquet(path)
    rows["th"] = [rows["th"][0], None, rows["th"][2]]
    rows.to_parquet(path)
    assert len(ns.tasks.knowledge_editing(editing)) == len(sources.EDITS) - 1


@pytest.mark.parametrize(
    "damage",
    [
        {"premise": ["a string"] * 3},
        {"hypothesis": [{"language": ["en", "de"], "translation": ["one"]}] * 3},
        {"label": [7] * 3},
        {"premise": [{"en": "one", "de": None}] * 3},
    ],
)
def test_a_damaged_data_set(tmp_path, offline, damage):
    folder = sources.xnli_from_the_hub(tmp_path / "xnli")
    path = next(folder.glob("*/*.parquet"))
    pd.read_parquet(path).assign(**damage).to_parquet(path)
    with pytest.raises(ns.NeuronShareError, match="row 0 of the data set"):
        ns.tasks.xnli(folder)


@pytest.mark.parametrize("number", [2.5, 1e20, float("nan"), 7.0])
def test_numbers_of_a_data_set(tmp_path, offline, number):
    folder = sources.mgsm_from_the_hub(tmp_path / "mgsm")
    for path in folder.glob("*/*.parquet"):
        pd.read_parquet(path).assign(answer_number=number).to_parquet(path)
    if math.isnan(number):
        with pytest.raises(ns.NeuronShareError, match="row 0: the answer_number is (nan|None), which is no number"):
            ns.tasks.mgsm(folder)
    else:
        assert float(ns.tasks.mgsm(folder).answers["en"][0]) == number
        assert set("".join(ns.tasks.mgsm(folder).answers["en"])) <= set(" 0123456789.")


def test_other_files_beside_those_of_mzsre_are_left_alone(mzsre):
    before = ns.tasks.knowledge_editing(mzsre)
    for name in ("mzsre_test_duplicate_ende.json.bak", "mzsre_train_duplicate_ende.json", "my_english.json"):
        (mzsre / name).write_text("[]")
    (mzsre.parent / "tuples").mkdir()
    assert ns.tasks.knowledge_editing(mzsre) == before


def test_files_of_mzsre_that_differ_in_english_are_refused(mzsre):
    path = mzsre / "mzsre_test_duplicate_ende.json"
    path.write_text(path.read_text("utf-8").replace("Where is the Nile?", "Where is the Rhine?"), "utf-8")
    assert len(ns.tasks.knowledge_editing(mzsre)) == 3  # it is not asked for
    with pytest.raises(
        ns.NeuronShareError, match=r"enth\.json, line 2: .* stands also at .*ende\.json, line 2, and says"
    ):
        ns.tasks.knowledge_editing(mzsre, asks="locality")


def test_of_the_papers_languages_two_are_needed(mpararel):
    for kind in ("tuples", "patterns"):
        for language, other in (("de", "sw"), ("tr", "yo"), ("zh-hans", "ja")):
            (mpararel / kind / language).rename(mpararel / kind / other)
    (mpararel / "tuples" / ".DS_Store").write_text("not a language")
    prompts = ns.tasks.fact_probing(mpararel)
    assert prompts.languages == ("en", "ja", "sw", "yo")
    assert "left out" not in set(prompts.report["outcome"])


@pytest.mark.parametrize("task", NAMES)
@pytest.mark.parametrize(
    "source",
    ["no/such-set", "mgsm-misspelt", "/no/such/folder", "no.json", "~nobody/x", "x" * 5000, "here/../nowhere", " "],
)
def test_a_source_that_is_neither_file_nor_data_set(task, source, offline):
    with pytest.raises(ns.NeuronShareError, match=f"(?s){task}: .*{NAMES[task]}.*source"):
        getattr(ns.tasks, task)(source)


@pytest.mark.parametrize("task", NAMES)
def test_a_folder_with_something_else(task, tmp_path, offline):
    (tmp_path / "notes.txt").write_text("nothing of use")
    with pytest.raises(ns.NeuronShareError, match=f"(?s){task}.*{NAMES[task]}"):
        getattr(ns.tasks, task)(tmp_path)


# Alignment ---------------------------------------------------------------------------------------------------


def test_the_order_of_a_languages_file_does_not_matter(mpararel, mzsre, xnli):
    before = [ns.tasks.fact_probing(mpararel), ns.tasks.knowledge_editing(mzsre), ns.tasks.xnli(xnli)]
    shuffled(mpararel / "tuples" / "tr" / "P36.jsonl")
    reordered(mzsre)
    header, *lines = xnli.read_text("utf-8").splitlines()
    random.Random(1).shuffle(lines)
    xnli.write_text("\n".join([header, *lines]), "utf-8")
    after = [ns.tasks.fact_probing(mpararel), ns.tasks.knowledge_editing(mzsre), ns.tasks.xnli(xnli)]
    assert [set(one.languages) for one in before] == [set(one.languages) for one in after]
    for one, other in zip(before, after, strict=True):
        assert one == other.select(list(one.languages))


def test_a_thinner_file_in_one_language_drops_those_examples_and_changes_nothing_else(mpararel, mzsre, xnli):
    before = [ns.tasks.fact_probing(mpararel), ns.tasks.knowledge_editing(mzsre), ns.tasks.xnli(xnli)]
    shuffled(mpararel / "tuples" / "tr" / "P36.jsonl", drop=2)
    path = mzsre / "mzsre_test_duplicate_ende.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8"))[1:]), "utf-8")
    lines = xnli.read_text("utf-8").splitlines()
    xnli.write_text("\n".join([*lines[:2], *lines[3:]]), "utf-8")
    after = [ns.tasks.fact_probing(mpararel), ns.tasks.knowledge_editing(mzsre), ns.tasks.xnli(xnli)]
    for one, other, gone in zip(before, after, (2, 1, 1), strict=True):
        assert len(other) == len(one) - gone
        assert list(other.examples) == [example for example in one.examples if example in other.examples]
        dropped = {language: count for (language, how, _), count in counts(other).items() if how == "dropped"}
        thin = "tr" if other.name.startswith("fact_probing") else "de"
        assert dropped == {language: gone for language in other.languages if language != thin}
        gone_now = [index for index, example in enumerate(one.examples) if example not in other.examples]
        lost = {la: {one.answers[la][i] for i in gone_now} if len(gone_now) == 2 else set() for la in one.languages}
        for index, example in enumerate(other.examples):
            was = one.examples.index(example)
            for language in other.languages:
                assert other.prompts[language][index] == one.prompts[language][was]
                assert other.answers[language][index] == one.answers[language][was]
                if one.choices:  # a choice goes only with the last example that has it, and others keep their order
                    stays = [text for text in one.choices[language][was] if text not in lost[language]]
                    assert [text for text in other.choices[language][index] if text in stays] == stays


def test_files_of_mgsm_that_are_not_parallel_are_refused(mgsm):
    path = mgsm / "mgsm_de.tsv"
    whole = path.read_text("utf-8").splitlines()
    path.write_text("\n".join(whole[::-1]), "utf-8")
    with pytest.raises(
        ns.NeuronShareError, match=r"the answer is 7 at .*mgsm_en.tsv, line 1, and 1200 at .*mgsm_de.tsv"
    ):
        ns.tasks.mgsm(mgsm)
    path.write_text(whole[0], "utf-8")
    with pytest.raises(ns.NeuronShareError, match="'en' has 2 problems, 'de' 1"):
        ns.tasks.mgsm(mgsm)


def test_labels_hold_characters_at_which_python_splits_lines(mpararel):
    path = mpararel / "tuples" / "en" / "P36.jsonl"
    rows = sources.read_lines(path)
    rows[0]["sub_label"] = "Ita\u0085ly\u2028"
    path.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8-sig")
    assert any("Ita\u0085ly" in text for text in ns.tasks.fact_probing(mpararel).prompts["en"])


@pytest.mark.parametrize("task", ["fact_probing", "knowledge_editing", "xnli", "mgsm"])
def test_seed_limit_and_languages(task, tmp_path, as_users_run_it):
    write, name = {
        "fact_probing": (sources.mpararel, "m"),
        "knowledge_editing": (sources.mzsre, "z"),
        "xnli": (sources.xnli, "x.tsv"),
        "mgsm": (sources.mgsm, "g"),
    }[task]
    source, read = write(tmp_path / name), getattr(ns.tasks, task)
    whole = read(source)
    assert whole == read(source)
    assert len({read(source, seed=seed).examples for seed in range(8)}) > 1
    assert read(source, limit=2) == whole[:2]
    assert counts(read(source, limit=1)).get(("all", "dropped", "beyond the limit of 1"), 0) == len(whole) - 1
    assert counts(whole)["all", "kept", "examples"] == len(whole)
    assert set(read(source, languages="all").languages) >= set(whole.languages)
    two = read(source, languages=["de", "en"], limit=2)
    assert two.languages == ("de", "en")
    for bad in ({"limit": 0}, {"limit": True}, {"seed": "x"}, {"languages": ["en"]}, {"languages": ["en", "en"]}):
        with pytest.raises(ns.NeuronShareError):
            read(source, **bad)
    with pytest.raises(ns.NeuronShareError, match=f"{task} has nothing in 'xx', 'yy' in this source; it has .*en"):
        read(source, languages=["en", "xx", "yy"])


def test_the_report_stays_with_slices_and_selections(mpararel):
    prompts = ns.tasks.fact_probing(mpararel)
    assert list(prompts.report.columns) == ["language", "outcome", "reason", "count"]
    assert prompts[:2].report is prompts.report
    assert prompts.select(["en", "de"]).report is prompts.report
    # Paris in three languages, Lima and Ankara likewise, La Paz and Sucre.
    assert counts(prompts)["de", "noted", "answer written as in another language"] == 5
    assert ("zh", "noted", "answer written as in another language") not in counts(prompts)
    assert ns.demo.prompts().report is None


# Bad input ---------------------------------------------------------------------------------------------------


def damaged(path: Path, number: int, line: str | bytes | None) -> None:
    """Another line in the place of one; None cuts it off in the middle."""
    lines: list[bytes] = path.read_bytes().split(b"\n")
    new = lines[number - 1][: len(lines[number - 1]) // 2] if line is None else line
    lines[number - 1] = new.encode() if isinstance(new, str) else new
    path.write_bytes(b"\n".join(lines))


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
        r"line 3: P36/Q142/Q90 stands also at .*de/P36\.jsonl, line 2, and says something else",
    ),
    "not UTF-8": ("tuples/de/P36.jsonl", 4, b'{"sub_uri": "Q\xfc"}', r"line 4: byte 0xfc is not UTF-8"),
    "no subject": ("patterns/de/P36.jsonl", 1, '{"pattern": "Es ist [Y]"}', r"line 1: the pattern .* has no \[X\]"),
    "no blank": ("patterns/de/P36.jsonl", 1, '{"pattern": "[X] hat eine"}', r"line 1: the pattern .* has no \[Y\]"),
    "no pattern": ("patterns/de/P36.jsonl", 1, '{"x": 1}', r"patterns/de/P36\.jsonl, line 1: no 'pattern'"),
}


@pytest.mark.parametrize(("file", "number", "line", "message"), MPARAREL.values(), ids=MPARAREL)
def test_damage_to_mpararel(mpararel, file, number, line, message):
    damaged(mpararel / file, number, line)
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.tasks.fact_probing(mpararel)


def test_the_same_line_again_counts_once(mpararel):
    path = mpararel / "tuples" / "de" / "P36.jsonl"
    before = ns.tasks.fact_probing(mpararel)
    sources.write_lines(path, sources.read_lines(path) + sources.read_lines(path)[:2])
    after = ns.tasks.fact_probing(mpararel)
    assert after == before
    assert counts(after)["de", "dropped", "the same row again"] == 2
    assert counts(after)["de", "kept", "read"] == len(after) + 2


EDITING = {
    "cut off": (lambda text: text[: len(text) // 2], r"ende\.json, line \d+: this is not JSON"),
    "cut off between entries": (lambda text: text.rstrip()[:-1], "line 80: the list does not go on here"),
    "a comma too many": (lambda text: text.rstrip()[:-1] + ",]", "this is not JSON"),
    "two lists": (lambda text: text + text, "line 80: more comes after the list"),
    "too deep": (lambda text: "[" * 100_000, "line 1: this is not JSON"),
    "half a character": (lambda text: text.replace('"blau"', '"\\ud83d"'), "'alt' holds half a character"),
    "no list": (lambda text: '{"en": {}}', "line 1: this is no JSON list"),
    "no answer": (lambda text: text.replace('"alt": "blau"', '"alt": ""'), r"line 28, 'de': 'alt' is ''"),
    "no question": (lambda text: text.replace('"src": "Wann', '"scr": "Wann'), r"line 54, 'de': no 'src'; it has"),
    "no English": (lambda text: text.replace('"en": {', '"eng": {', 1), r"line 2: no entry in 'en'"),
    "same key": (
        lambda text: json.dumps([*json.loads(text), json.loads(text.replace("blau", "rot"))[1]]),
        "What colour is the Red House\\? blue stands also at .* says something else",
    ),
}


@pytest.mark.parametrize(("damage", "message"), EDITING.values(), ids=EDITING)
def test_damage_to_mzsre(mzsre, damage, message):
    path = mzsre / "mzsre_test_duplicate_ende.json"
    path.write_text(damage(path.read_text("utf-8")), "utf-8")
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.tasks.knowledge_editing(mzsre)


MGSM = {
    "no answer": ("Wie viele?\t", r"mgsm_de\.tsv, line 1: the answer '' is no number"),
    "no tab": ("Wie viele? 7", r"mgsm_de\.tsv, line 1: no question, TAB and answer"),
    "two numbers": ("Wie viele?\t18/7", r"line 1: the answer '18/7' is no number"),
    "a word": ("Wie viele?\tsieben", r"line 1: the answer 'sieben' is no number"),
    "not UTF-8": (b"Wie viele \xc4pfel?\t7", r"line 1: byte 0xc4 is not UTF-8"),
}


@pytest.mark.parametrize(("line", "message"), MGSM.values(), ids=MGSM)
def test_damage_to_mgsm(mgsm, line, message):
    damaged(mgsm / "mgsm_de.tsv", 1, line)
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.tasks.mgsm(mgsm)


XNLI = {
    "cut off": (
        lambda lines: [*lines[:-1], lines[-1][:30]],
        "line 10: 8 cells where the header has 19 columns",
    ),
    "label": (
        lambda lines: [line.replace("neutral", "maybe") for line in lines],
        "line 3: the gold_label is 'maybe'",
    ),
    "header": (
        lambda lines: [lines[0].replace("promptID", "id"), *lines[1:]],
        "line 1: the header has no column 'promptID'",
    ),
    "no hypothesis": (
        lambda lines: [line.replace("Die Ernte wird gut.", "") for line in lines],
        "line 3: 'sentence2' is ''",
    ),
    "disagree": (
        lambda lines: [line.replace("neutral", "entailment") if line.startswith("de") else line for line in lines],
        "example 1/12 is neutral in 'en', and entailment in 'de'",
    ),
    "same key": (
        lambda lines: [*lines, lines[1].replace("Montag", "Sonntag")],
        "line 11: 1/11 stands also at .*, line 2, and says something else",
    ),
}


@pytest.mark.parametrize(("damage", "message"), XNLI.values(), ids=XNLI)
def test_damage_to_xnli(xnli, damage, message):
    xnli.write_text("\n".join(damage(xnli.read_text("utf-8").splitlines())), "utf-8")
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.tasks.xnli(xnli)


def test_pairs_without_a_gold_label_are_dropped(xnli):
    xnli.write_text(xnli.read_text("utf-8").replace("\tneutral\t\t", "\t-\t\t"), "utf-8")
    prompts = ns.tasks.xnli(xnli)
    assert set(prompts.examples) == {"1/11", "2/21"}
    assert counts(prompts)["de", "dropped", "no gold label"] == 1
    assert counts(prompts)["de", "kept", "read"] == 3


def test_an_xnli_file_without_rows(xnli):
    for text in ("", xnli.read_text("utf-8").splitlines()[0]):
        xnli.write_text(text, "utf-8")
        with pytest.raises(ns.NeuronShareError, match=r"xnli\.test\.tsv: there is nothing after the header"):
            ns.tasks.xnli(xnli)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relations": "P1"}, "has no relation 'P1'; it has P36, P37"),
        ({"relations": []}, "give one, such as 'P36'"),
        ({"form": "question"}, "form='question' is unknown; use one of 'continuation', 'cloze'"),
        ({"pattern": "last"}, "pattern='last'; give a number"),
        ({"pattern": {"xx": "[X] [Y]"}}, "pattern is for 'xx' too"),
        ({"pattern": {"en": "[X] is [Z]"}}, r"pattern\['en'\]: the pattern '\[X\] is \[Z\]' has no \[Y\]"),
        ({"pattern": {"en": "[Y] is of [X]"}}, r"does not end in \[Y\]"),
        ({"n_choices": 1}, "n_choices is 1"),
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

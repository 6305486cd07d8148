"""What the readers of the paper's tasks share: sources, alignment, seeds, limits and reports."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pandas as pd
import pytest

import tl_neuronshare as ns
from support import sources


def shuffled(path: Path, *, drop: int = 0) -> None:
    """Other order of lines, some of them fewer."""
    rows = sources.read_lines(path)
    random.Random(1).shuffle(rows)
    sources.write_lines(path, rows[drop:])


def reordered(mzsre: Path) -> None:
    path = mzsre / "mzsre_test_duplicate_enth.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8"))[::-1]), "utf-8")


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
        dropped = {language: count for (language, how, _), count in sources.counts(other).items() if how == "dropped"}
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
    assert sources.counts(read(source, limit=1)).get(("all", "dropped", "beyond the limit of 1"), 0) == len(whole) - 1
    assert sources.counts(whole)["all", "kept", "examples"] == len(whole)
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
    assert sources.counts(prompts)["de", "noted", "answer written as in another language"] == 5
    assert ("zh", "noted", "answer written as in another language") not in sources.counts(prompts)
    assert ns.demo.prompts().report is None

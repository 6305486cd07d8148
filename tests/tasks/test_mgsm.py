"""The reader of MGSM, on a small source."""

from __future__ import annotations

import math

import pandas as pd
import pytest

import tl_neuronshare as ns
from support import sources


def test_a_problem_ends_in_its_number(mgsm):
    prompts = ns.tasks.mgsm(mgsm)
    assert prompts.languages == ("en", "de", "zh")
    index = prompts.examples.index(2)
    assert prompts.prompts["de"][index] == f"Frage: {sources.PROBLEMS['de'][1][0]}\nAntwort:"
    assert [prompts.answers[language][index] for language in prompts.languages] == [" 1200", " 1200", "1200"]
    assert ns.tasks.mgsm(mgsm, instructions="english").prompts["zh"][index].startswith("Question: 一本书")
    assert sources.counts(prompts)["tr", "left out", "of the paper's languages, but not in the source"] == 0


@pytest.mark.parametrize("number", [2.5, 1e20, float("nan"), 7.0])
def test_numbers_of_a_data_set(tmp_path, offline, number):
    folder = sources.mgsm_from_the_hub(tmp_path / "mgsm")
    for path in folder.glob("*/*.parquet"):
        pd.read_parquet(path).assign(answer_number=number).to_parquet(path)
    if math.isnan(number):
        with pytest.raises(ns.NeuronShareError, match="row 0: the answer_number is (nan|None), which is not a number"):
            ns.tasks.mgsm(folder)
    else:
        assert float(ns.tasks.mgsm(folder).answers["en"][0]) == number
        assert set("".join(ns.tasks.mgsm(folder).answers["en"])) <= set(" 0123456789.")


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


MGSM = {
    "no answer": ("Wie viele?\t", r"mgsm_de\.tsv, line 1: the answer '' is not a number"),
    "no tab": ("Wie viele? 7", r"mgsm_de\.tsv, line 1: no question, TAB and answer"),
    "two numbers": ("Wie viele?\t18/7", r"line 1: the answer '18/7' is not a number"),
    "a word": ("Wie viele?\tsieben", r"line 1: the answer 'sieben' is not a number"),
    "not UTF-8": (b"Wie viele \xc4pfel?\t7", r"line 1: byte 0xc4 is not UTF-8"),
}


@pytest.mark.parametrize(("line", "message"), MGSM.values(), ids=MGSM)
def test_damage_to_mgsm(mgsm, line, message):
    sources.damaged(mgsm / "mgsm_de.tsv", 1, line)
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.tasks.mgsm(mgsm)

"""Tables of the user's own."""

from __future__ import annotations

import json

import pytest

import tl_neuronshare as ns

CSV = (
    "language,example,prompt,answer,choices,note\n"
    'en,sum,"Seven, and ""six"",\nis", 13, 13| 14,kept as it is\n'
    "de,sum,Sieben und sechs ist, 13, 13| 14,\n"
    "en,sky,The sky is, blue, blue| red,\n"
    "de,sky,Der Himmel ist, blau, blau| rot,\n"
    "en,only in English,Snow is, white, white| black,\n"
)


@pytest.fixture
def file(tmp_path):
    def written(text, ending=".csv"):
        path = tmp_path / f"own{ending}"
        path.write_text(text, encoding="utf-8-sig")
        return path

    return written


def test_texts_are_as_they_are_written_and_examples_that_lack_a_language_are_reported(file):
    prompts = ns.tasks.table(file(CSV))
    assert prompts.name == "table/own"
    assert prompts.languages == ("en", "de")
    assert set(prompts.examples) == {"sum", "sky"}
    place = prompts.examples.index("sum")
    assert prompts.prompts["en"][place] == 'Seven, and "six",\nis'
    assert prompts.answers["de"][place] == " 13"
    assert prompts.choices["de"][1 - place] == (" blau", " rot")
    dropped = prompts.report.query("outcome == 'dropped'")
    assert dropped[["language", "count"]].to_numpy().tolist() == [["en", 1]]


def test_the_same_table_in_three_formats_and_without_answers(file):
    whole = ns.tasks.table(file(CSV), seed=1)
    names = ("language", "example", "prompt", "answer")
    lines = [
        json.dumps(dict(zip(names, row, strict=False)) | {"choices": row[4:]})
        for row in (
            ("en", "sum", 'Seven, and "six",\nis', " 13", " 13", " 14"),
            ("de", "sum", "Sieben und sechs ist", " 13", " 13", " 14"),
            ("en", "sky", "The sky is", " blue", " blue", " red"),
            ("de", "sky", "Der Himmel ist", " blau", " blau", " rot"),
        )
    ]
    assert ns.tasks.table(file("\n".join(lines), ".jsonl"), seed=1) == whole
    rows = [["example", "language", "prompt"], ["1", "en", "Red, and"], ["1", "de", "Rot und"]]
    prompts = ns.tasks.table(file("\n".join("\t".join(row) for row in rows), ".tsv"))
    assert (prompts.answers, prompts.choices) == (None, None)
    assert prompts.prompts["en"] == ("Red, and",)


WRONG = {
    "no file": (None, ".csv", "there is no file or folder|is not a file"),
    "another ending": (CSV, ".xlsx", "ends in '.xlsx'. Give a file that ends in .csv"),
    "no column": (CSV.replace("prompt", "text", 1), ".csv", "line 3: there is no column 'prompt'"),
    "a cell too few": (CSV + "de,end\n", ".csv", "line 8: 2 cells for 6 columns"),
    "a cell too many": (CSV + "de,end,a,b,c,d,e\n", ".csv", "line 8: 7 cells for 6 columns"),
    "an open quotation mark": (CSV + '"de,end', ".csv", "line 7 or after it: .* is a quotation mark left open"),
    "an empty prompt": (CSV + "de,end, ,b,c,d\n", ".csv", "line 8: 'prompt' is ' '; give a text"),
    "no language": (CSV + ",end,a,b,c,d\n", ".csv", "line 8: 'language' is ''; give a text"),
    "two rows that differ": (
        CSV + "de,sky,Himmel ist, blau, blau| rot,\n",
        ".csv",
        "line 8: sky appears at .*line 6 too",
    ),
    "an answer that is not a choice": (CSV.replace(" blau, blau", " blau, grau"), ".csv", "' blau' is not among the"),
    "some without choices": (CSV.replace(" blau| rot", ""), ".csv", "'de', example 'sky': choices"),
    "one language": ("example,language,prompt\n1,en,a\n", ".csv", "at least two are needed"),
    "not JSON": ('{"example": 1', ".jsonl", "line 1: this is not JSON"),
    "not an object": ("[1]", ".jsonl", "line 1: a list where an object belongs"),
    "a number": ('{"example": 1, "language": "en", "prompt": 7}', ".jsonl", "line 1: 'prompt' is 7; give a text"),
    "choices that are a number": (
        '{"example": 1, "language": "en", "prompt": "a", "choices": 7}',
        ".jsonl",
        "line 1: 'choices' is 7",
    ),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("text", "ending", "message"), WRONG.values(), ids=WRONG)
def test_what_a_table_cannot_be(file, tmp_path, text, ending, message):
    path = tmp_path / "none.csv" if text is None else file(text, ending)
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.tasks.table(path)

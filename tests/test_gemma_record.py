"""The record of a real model: its page says what its runs say, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.record import script

ROOT = Path(__file__).parents[1]
PAGE, KEPT = ROOT / "docs" / "gemma-3-270m.md", ROOT / "docs" / "gemma-3-270m"
# A share or a change with decimals (.25, 0.31, −.04), or a percentage; whole numbers are too common to be looked up.
NUMBER = re.compile(r"[+−-]?\d*\.\d+|\d+(?= %)")


@pytest.fixture(scope="module")
def record():
    """The script that makes the record."""
    return script()


def values_in(text):
    """The numbers of a text, without sign and leading zero."""
    return {match.lstrip("+−-").removeprefix("0") for match in NUMBER.findall(text)}


def test_the_tables_are_those_of_the_runs(record):
    page = PAGE.read_text("utf-8")
    assert record.filled(page, KEPT) == page
    asked = set(re.findall(r"<!-- (\w+) -->", page)) - {"end"}
    assert asked == set(record.BLOCKS)


def test_every_number_of_the_prose_is_in_a_table(record):
    page = PAGE.read_text("utf-8")
    tables = "\n".join(re.findall(r"<!-- \w+ -->\n.*?<!-- end -->", page, re.DOTALL))
    prose = re.sub(r"<!-- \w+ -->\n.*?<!-- end -->", "", page, flags=re.DOTALL)
    prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", prose, flags=re.DOTALL)
    # A number may be of the paper, of the questions or of another page; each of these is named here, with what it is.
    elsewhere = {
        "91.6": "the paper",
        "2406.09265": "its number",
        "37.9": "the built-in model, docs/reproduction.md",
        "1.0": "the built-in model, docs/reproduction.md",
        "19": "the built-in model, docs/ablation.md",
        "95": "how sure an interval is, %",
    }
    missing = values_in(prose) - values_in(tables) - set(elsewhere)
    assert not missing, missing


def test_a_different_number_would_be_noticed(record):
    page = PAGE.read_text("utf-8")
    inside = re.search(r"<!-- accuracy -->\n.*?\d\.(\d\d).*?<!-- end -->", page, re.DOTALL)
    changed = page[: inside.start(1)] + f"{(int(inside[1]) + 1) % 100:02}" + page[inside.end(1) :]
    assert record.filled(changed, KEPT) == page
    assert values_in("−.17, 0.25 and 95 %, 1.5") == {".17", ".25", "95", "1.5"}

"""Cross-lingual knowledge editing with MzsRE (Wang, Haddow and Birch, 2023): told in a language, asked in a second."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from tl_neuronshare.arguments import explains
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.tasks import reading
from tl_neuronshare.tasks.reading import QUESTION, Instructions, Languages, Report

Direction = Literal["en->xx", "xx->en"]
Asks = Literal["reliability", "generality", "locality", "portability"]
HOW_TO_GET = (
    "The original is github.com/weixuan-wang123/ReMaKE, folder data/MzsRE, with mzsre_test_duplicate_enLANGUAGE.json: "
    "give that folder as source. A data set needs a column for each language, en among them, with the same fields."
)
# How the new fact is told in each language: {} is the text.
FACT = {
    "en": "New fact: {}",
    "de": "Neue Tatsache: {}",
    "es": "Nuevo dato: {}",
    "fr": "Fait nouveau : {}",
    "pt": "Novo fato: {}",
    "ru": "Новый факт: {}",
    "th": "ข้อเท็จจริงใหม่: {}",
    "tr": "Yeni bilgi: {}",
    "vi": "Sự thật mới: {}",
    "zh": "新事实：{}",
}
_NAME = re.compile(r"mzsre_test_duplicate_en([\w-]+)\.json")
_OF_NATURAL_QUESTIONS = "nq question: "  # comes before the unrelated questions, in English only


class _Edit(NamedTuple):
    """An edit in one language: the fact as question and answer, and what is asked after it, with its answer."""

    question: str
    answer: str
    asked: str
    expected: str


class _Both(NamedTuple):
    """An edit in English and in a second language."""

    english: _Edit
    other: _Edit


@explains
def knowledge_editing(
    source: str | Path,
    *,
    direction: Direction = "en->xx",
    asks: Asks = "reliability",
    instructions: Instructions = "english",
    languages: Languages = None,
    limit: int | None = None,
    seed: int = 0,
) -> ParallelPrompts:
    """Read edits of MzsRE, told in the context: a new fact in one language, then a question in a second language.

    Edits are aligned by their English question and answer. English itself is one of the languages: there the fact is
    told and asked in English. The words "nq question: ", with which only English questions of `locality` begin, are
    left out.

    Args:
        source: the folder with `mzsre_test_duplicate_enLANGUAGE.json`, one such file, or the name of a data set.
        direction: `en->xx`: told in English, asked in each language; `xx->en`: told in each language, asked in English.
        asks: what is asked: the fact itself (`reliability`), the fact in other words (`generality`), something else
            that the edit should not touch (`locality`), or what follows from the fact (`portability`).
        instructions: what introduces fact and question: `english`, or `native`, each in its own language.
        languages: a list, `all` that the source has, or None for those of the paper's nine that it has.
        limit: the most examples to give.
        seed: the seed of the order of examples.

    Returns:
        Prompts with answers in the language of the question, and no choices: score them with `scoring="exact"`.

    Raises:
        NeuronShareError: no such source or language; an entry in the wrong format, by file and line; an edit that
            appears twice with different contents.

    Source: MzsRE; arXiv 2406.09265, cross-lingual knowledge editing, EN to ALL and ALL to EN.

    Examples:
        >>> prompts = knowledge_editing("MzsRE", direction="xx->en", languages=["en", "de"], limit=1)
        >>> print(prompts.prompts["de"][0] + prompts.answers["de"][0])
        New fact: Welche Farbe hat das Rote Haus? blau
        Question: What colour is the Red House?
        Answer: blue
    """
    reading.check_task(
        limit=limit,
        seed=seed,
        one_of={
            "direction": (direction, get_args(Direction)),
            "asks": (asks, get_args(Asks)),
            "instructions": (instructions, get_args(Instructions)),
        },
    )
    report = Report()
    entries = _source(source)
    chosen = reading.languages_of("knowledge_editing", languages, ["en", *entries], report)
    if instructions == "native":
        reading.check_wording("knowledge_editing", chosen, FACT, 'instructions="english"')
    tables = _tables(entries, chosen, asks, report)
    from_english = direction == "en->xx"

    def ask(language: str, key: str) -> reading.Asked:
        edits = tables[language][key]
        told, asked = (edits.english, edits.other) if from_english else (edits.other, edits.english)
        told_in, asked_in = ("en", language) if from_english else (language, "en")
        if instructions == "english":
            told_in = asked_in = "en"
        fact = told.question + reading.before_answer(told.question) + told.answer
        prompt = FACT[told_in].replace("{}", fact) + "\n" + QUESTION[asked_in].replace("{}", asked.asked)
        return reading.Asked(prompt, asked.expected)

    examples = reading.drawn(tables, "knowledge_editing", seed=seed, limit=limit, report=report)
    # From other languages to English all answers are the same, so nothing is noted of them.
    name = f"knowledge_editing/{direction}/{asks}"
    return reading.build(name, chosen, examples, ask, report=report, answers_noted=from_english)


def _tables(
    entries: Mapping[str, Iterable[tuple[str, Any]]], languages: Sequence[str], asks: Asks, report: Report
) -> dict[str, dict[str, _Both]]:
    """For each language its edits, in English and in the language, by their English question and answer."""
    rows = {language: list(_edits(entries[language], language, asks)) for language in languages if language != "en"}
    tables = {language: reading.by_key(of_language, language, report) for language, of_language in rows.items()}
    # English comes with every other language, and must be the same in all files; it is reported once.
    of_english = [(where, key, both.english) for table in rows.values() for where, key, both in table]
    english = reading.by_key(of_english, "en", Report())
    if "en" in languages:
        report.kept("en", "read", len(english))
        tables["en"] = {key: _Both(edit, edit) for key, edit in english.items()}
    return {language: tables[language] for language in languages}


def _source(source: str | Path) -> dict[str, Iterable[tuple[str, Any]]]:
    """For each language except English its entries, after their places."""
    path = reading.local_path(source, "knowledge_editing", HOW_TO_GET)
    if path and path.is_file():
        entries = list(reading.json_list(path))
        others = {language for _, entry in entries if isinstance(entry, dict) for language in entry} - {"en"}
        if len(others) != 1:
            raise NeuronShareError(
                f"{path}: entries are in en and {', '.join(sorted(others)) or 'nothing else'}; give a file of en and a "
                "single other language."
            )
        return {others.pop(): entries}
    files = {match[1]: file for file in sorted(path.iterdir()) if (match := _NAME.fullmatch(file.name))} if path else {}
    if files:
        return {language: reading.json_list(file) for language, file in files.items()}
    rows = reading.hub_data(
        path or source, config=None, split="test", columns=("en",), task="knowledge_editing", how_to_get=HOW_TO_GET
    )
    of_language: dict[str, list[tuple[str, Any]]] = {}
    for number, row in enumerate(rows):
        for language, entry in row.items():
            if language != "en" and isinstance(entry, dict) and any(entry.values()):  # other rows lack this language
                of_language.setdefault(language, []).append((f"{source}, row {number}", row))
    return {language: of_language[language] for language in sorted(of_language)}


def _edits(entries: Iterable[tuple[str, Any]], language: str, asks: Asks) -> Iterator[tuple[str, str, _Both]]:
    """The place of each edit of a file, its key, and the edit in English and in the language."""
    for where, entry in entries:
        english, other = (_edit(entry, name, asks, where) for name in ("en", language))
        yield where, f"{english.question} {english.answer}", _Both(english, other)


def _edit(entry: Any, language: str, asks: Asks, where: str) -> _Edit:
    """An entry's edit in one language."""
    if not isinstance(entry, dict) or not isinstance(entry.get(language), dict):
        raise NeuronShareError(f"{where}: no entry in {language!r}; every entry needs both languages.")
    of_language = entry[language]
    where = f"{where}, {language!r}"
    fact = reading.fields(of_language, ("src", "alt"), where)
    if asks == "portability":
        names = ("New Question", "New Answer")
        asked = reading.fields(of_language.get("portability"), names, f"{where}, portability")
    else:
        names = {"reliability": ("src", "alt"), "generality": ("rephrase", "alt"), "locality": ("loc", "loc_ans")}[asks]
        asked = reading.fields(of_language, names, where)
    question, expected = (asked[name] for name in names)
    return _Edit(fact["src"], fact["alt"], question.removeprefix(_OF_NATURAL_QUESTIONS), expected)

"""Cross-lingual knowledge editing with MzsRE (Wang, Haddow and Birch, 2023): told in one language, asked in another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

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
_OF_NATURAL_QUESTIONS = "nq question: "  # before the unrelated questions, in English only


class _Edit(NamedTuple):
    """One edit in one language: the fact as question and answer, and what is asked after it, with its answer."""

    question: str
    answer: str
    asked: str
    expected: str


class _Both(NamedTuple):
    """One edit in English and in another language."""

    english: _Edit
    other: _Edit


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
    """Edits of MzsRE, told in the context: a new fact in one language, then a question in another, with its answer.

    Edits are aligned by their English question and answer. English itself is one of the languages: told and asked
    in English. The words "nq question: ", with which only English questions of `locality` begin, are left out.

    Args:
        source: the folder with `mzsre_test_duplicate_enLANGUAGE.json`, one such file, or the name of a data set.
        direction: `en->xx`: told in English, asked in each language; `xx->en`: told in each language, asked in English.
        asks: for the fact itself (`reliability`), in other words (`generality`), for something else that the edit
            should not touch (`locality`), or for what follows from it (`portability`).
        instructions: what introduces fact and question: `english`, or `native`, each in its own language.
        languages: a list, `all` that the source has, or None for those of the paper's nine that it has.
        limit: the most examples to give.
        seed: of the order of examples.

    Returns:
        Prompts with answers in the language of the question, and no choices: score them with `scoring="exact"`.

    Raises:
        NeuronShareError: no such source or language; an entry that is not as it should be, by file and line; an edit
            that stands twice with different contents.

    Source: MzsRE; arXiv 2406.09265, cross-lingual knowledge editing, EN to ALL and ALL to EN.

    Example:
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
    # English stands beside every other language, the same in each.
    rows = {language: list(_edits(entries[language], language, asks)) for language in chosen if language != "en"}
    others = {language: reading.by_key(of_language, language, report) for language, of_language in rows.items()}
    of_english = [(where, key, both.english) for table in rows.values() for where, key, both in table]
    english = reading.by_key(of_english, "en", Report())  # refuses files that differ in English
    if "en" in chosen:
        report.kept("en", "read", len(english))
    tables = {
        language: others[language] if language != "en" else {key: _Both(edit, edit) for key, edit in english.items()}
        for language in chosen
    }
    shared = reading.in_all_languages(tables, "knowledge_editing", report)
    examples = reading.first(reading.in_order(shared, seed), limit, report)
    prompts: dict[str, list[str]] = {}
    answers: dict[str, list[str]] = {}
    for language in chosen:
        told, asked = ("en", language) if direction == "en->xx" else (language, "en")
        words = (told, asked) if instructions == "native" else ("en", "en")
        prompts[language], answers[language] = [], []
        for key in examples:
            english_edit, edit = tables[language][key]
            fact, wanted = (english_edit, edit) if direction == "en->xx" else (edit, english_edit)
            told_fact = fact.question + reading.before_answer(fact.question) + fact.answer
            text = FACT[words[0]].replace("{}", told_fact)
            text += "\n" + QUESTION[words[1]].replace("{}", wanted.asked)
            prompts[language].append(text)
            answers[language].append(reading.before_answer(text) + wanted.expected)
    if direction == "en->xx":  # the other way round all answers are the same, in English
        reading.note_answers(prompts, answers, report)
    return ParallelPrompts(
        prompts, answers, name=f"knowledge_editing/{direction}/{asks}", examples=examples, report=report.table()
    )


def _source(source: str | Path) -> dict[str, Iterable[tuple[str, Any]]]:
    """For each language beside English its entries, after where they stand."""
    path = reading.local_path(source, "knowledge_editing", HOW_TO_GET)
    if path and path.is_file():
        entries = list(reading.json_list(path))
        found = {language for _, entry in entries if isinstance(entry, dict) for language in entry if language != "en"}
        if len(found) != 1:
            raise NeuronShareError(
                f"{path}: entries are in en and {', '.join(sorted(found)) or 'nothing else'}, not in two."
            )
        return {found.pop(): entries}
    files = {match[1]: file for file in sorted(path.iterdir()) if (match := _NAME.fullmatch(file.name))} if path else {}
    if files:
        return {language: reading.json_list(file) for language, file in files.items()}
    rows = reading.hub_data(
        path or source, config=None, split="test", columns=("en",), task="knowledge_editing", how_to_get=HOW_TO_GET
    )
    of_language: dict[str, list[tuple[str, Any]]] = {}
    for number, row in enumerate(rows):
        for language, entry in row.items():
            if language != "en" and isinstance(entry, dict) and any(entry.values()):  # else it lacks this language
                of_language.setdefault(language, []).append((f"{source}, row {number}", row))
    return {language: of_language[language] for language in sorted(of_language)}


def _edits(entries: Iterable[tuple[str, Any]], language: str, asks: Asks) -> Iterator[tuple[str, str, _Both]]:
    """Where each edit of a file stands, its key, and what it is in English and in the language."""
    for where, entry in entries:
        english, other = (_edit(entry, of, asks, where) for of in ("en", language))
        yield where, f"{english.question} {english.answer}", _Both(english, other)


def _edit(entry: Any, language: str, asks: Asks, where: str) -> _Edit:
    if not isinstance(entry, dict) or not isinstance(entry.get(language), dict):
        raise NeuronShareError(f"{where}: no entry in {language!r}.")
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

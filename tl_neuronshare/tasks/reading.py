"""What the readers of tasks share: sources, files read strictly, alignment by key, and what was kept and dropped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pandas as pd

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.prompts import short_hash

if TYPE_CHECKING:
    from datasets import Dataset

Row = TypeVar("Row")
Key = TypeVar("Key", bound=Hashable)
Languages = Sequence[str] | Literal["all"] | None
Instructions = Literal["english", "native"]
PAPER = ("en", "de", "es", "fr", "ru", "th", "tr", "vi", "zh")
REPORT_COLUMNS = ("language", "outcome", "reason", "count")
_SPACE = re.compile(r"\s*")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# How a question is put in each language: {} is the text.
QUESTION = {
    "bn": "প্রশ্ন: {}\nউত্তর:",
    "de": "Frage: {}\nAntwort:",
    "en": "Question: {}\nAnswer:",
    "es": "Pregunta: {}\nRespuesta:",
    "fr": "Question : {}\nRéponse :",
    "ja": "質問：{}\n答え：",
    "pt": "Pergunta: {}\nResposta:",
    "ru": "Вопрос: {}\nОтвет:",
    "sw": "Swali: {}\nJibu:",
    "te": "ప్రశ్న: {}\nసమాధానం:",
    "th": "คำถาม: {}\nคำตอบ:",
    "tr": "Soru: {}\nCevap:",
    "vi": "Câu hỏi: {}\nTrả lời:",
    "zh": "问题：{}\n答案：",
}


class Report:
    """What a reader kept and dropped, and why, as it goes."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str, int]] = []

    def kept(self, language: str, reason: str, count: int) -> None:
        """So many rows or examples were read or kept."""
        self._rows.append((language, "kept", reason, count))

    def dropped(self, language: str, reason: str, count: int) -> None:
        """So many were dropped, if any."""
        if count:
            self._rows.append((language, "dropped", reason, count))

    def left_out(self, language: str, reason: str, count: int) -> None:
        """A language was left out as a whole, with so many rows."""
        self._rows.append((language, "left out", reason, count))

    def noted(self, language: str, reason: str, count: int) -> None:
        """So many of the examples that were kept are worth knowing of, if any."""
        if count:
            self._rows.append((language, "noted", reason, count))

    def examples(self, count: int, *, limit: int | None, beyond: int) -> None:
        """So many examples are given, and so many more were beyond the limit."""
        self.dropped("all", f"beyond the limit of {limit}", beyond)
        self.kept("all", "examples", count)

    def table(self) -> pd.DataFrame:
        """The table that `ParallelPrompts.report` is: language (or all), outcome, reason, count."""
        return pd.DataFrame(self._rows, columns=list(REPORT_COLUMNS))


def check_task(*, limit: int | None, seed: int, one_of: Mapping[str, tuple[Any, Iterable[str]]] | None = None) -> None:
    """Refuse options that no task has; `one_of` says for each other option its value and what it can be."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, Integral) or limit < 1):
        raise NeuronShareError(f"limit is {limit!r}; ask for at least one example, or leave it out for all.")
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise NeuronShareError(f"seed is {seed!r}; give a whole number.")
    for name, (value, known) in (one_of or {}).items():
        if not isinstance(value, str) or value not in tuple(known):
            raise NeuronShareError(f"{name}={value!r} is unknown; use one of {', '.join(map(repr, known))}.")


def local_path(source: str | Path, task: str, how_to_get: str) -> Path | None:
    """The file or folder that a source is, or None if it can only be the name of a data set on the hub."""
    if not isinstance(source, (str, Path)) or not str(source).strip():
        raise NeuronShareError(f"{task}: source={source!r} is no path and no name of a data set. {how_to_get}")
    try:
        path = Path(source).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError, ValueError) as error:
        raise NeuronShareError(f"{task}: source={str(source)[:80]!r} is no path ({error}). {how_to_get}") from error
    if isinstance(source, Path) or not _HUB_NAME.fullmatch(source) or path.suffix in (".tsv", ".json", ".jsonl"):
        raise NeuronShareError(
            f"{task}: there is no file or folder {str(source)!r}, and a data set of the hub is called OWNER/NAME. "
            f"{how_to_get}"
        )
    return None


def hub_data(
    source: str | Path, *, config: str | None, split: str, columns: Sequence[str], task: str, how_to_get: str
) -> Dataset:
    """A split of a data set with these columns: from the hub, by its name, or from a local copy of its repository."""
    import datasets  # slow to import

    # A configuration's other splits would be downloaded too, and XNLI's train split is huge: the split's own files are
    # asked for, by the names that they have on the hub, and the configuration only where these are not there.
    of_split = {"data_files": {split: f"{config}/{split}*"}} if config else {}
    # Without a network `datasets` knows a folder by its name only, and would give what another of this name held.
    how = {"split": split, "download_mode": "force_redownload" if isinstance(source, Path) else None}
    try:
        try:
            found = datasets.load_dataset(str(source), **how, **of_split)
        except FileNotFoundError:
            found = datasets.load_dataset(str(source), config, **how)
    except Exception as error:  # what it raises depends on how there is no network, and on its version
        raise NeuronShareError(
            f"{task}: {str(source)!r} is no file or folder in the original format, and could not be loaded as a data "
            f"set (configuration {config!r}, split {split!r}: {_first_line(error)}). {how_to_get}"
        ) from error
    if not len(found) or any(column not in found.column_names for column in columns):
        raise NeuronShareError(
            f"{task}: {str(source)!r} has {len(found)} rows with columns {', '.join(found.column_names)}; it needs "
            f"{', '.join(columns)}. {how_to_get}"
        )
    return found


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".split("\n", 1)[0].rstrip(".")


def text_of(path: Path) -> str:
    """A file's text, which must be UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise NeuronShareError(
            f"{path}, line {line}: byte {error.object[error.start]:#04x} is not UTF-8; save the file as UTF-8."
        ) from error
    except OSError as error:
        raise NeuronShareError(f"{path}: it cannot be read ({error.strerror}).") from error


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, after where it stands; lines end at line feeds only, for labels hold U+0085."""
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", line.removesuffix("\r")


def json_lines(path: Path, names: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The fields of each line of a JSON-lines file, after where it stands."""
    for where, line in lines_of(path):
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise NeuronShareError(f"{where}: this is not JSON ({error}); is the line cut off?") from error
        yield where, fields(value, names, where)


def json_list(path: Path) -> Iterator[tuple[str, Any]]:
    """The entries of a file that is one JSON list, each after the line on which it begins."""
    text, decoder = text_of(path), json.JSONDecoder()

    def line(place: int) -> str:
        return f"{path}, line {text.count(chr(10), 0, place) + 1}"

    def after_space(place: int) -> int:
        return _SPACE.match(text, place).end()  # type: ignore[union-attr]  # it matches nothing too

    place = after_space(0)
    if text[place : place + 1] != "[":
        raise NeuronShareError(f"{line(place)}: this is no JSON list; give the file in its original format.")
    while text[place] != "]":
        start = after_space(place + 1)
        try:
            value, end = decoder.raw_decode(text, start)
        except (json.JSONDecodeError, RecursionError) as error:
            at = getattr(error, "pos", start)
            raise NeuronShareError(f"{line(at)}: this is not JSON ({error}); is the file cut off?") from error
        yield line(start), value
        place = after_space(end)
        if text[place : place + 1] not in ("]", ","):
            raise NeuronShareError(f"{line(place)}: the list does not go on here; is the file cut off?")
    if text[place + 1 :].strip():
        raise NeuronShareError(f"{line(place + 1)}: more comes after the list; give one list.")


def fields(value: Any, names: Sequence[str], where: str) -> dict[str, str]:
    """The named fields of a JSON object, each a text that is not empty."""
    if not isinstance(value, dict):
        raise NeuronShareError(f"{where}: a {type(value).__name__} where an object with {', '.join(names)} belongs.")
    for name in names:
        if name not in value:
            raise NeuronShareError(f"{where}: no {name!r}; it has {', '.join(map(repr, value)) or 'nothing'}.")
        if not isinstance(value[name], str) or not value[name].strip():
            raise NeuronShareError(
                f"{where}: {name!r} is {value[name]!r}; give a text that is not empty, or drop this entry in every "
                "language."
            )
        if not value[name].isascii() and any("\ud800" <= char <= "\udfff" for char in value[name]):
            raise NeuronShareError(f"{where}: {name!r} holds half a character ({value[name]!r}); write it whole.")
    return {name: value[name].strip() for name in names}


def by_key(
    rows: Iterable[tuple[str, Key, Row]], language: str, report: Report, show: Callable[[Key], str] = str
) -> dict[Key, Row]:
    """Rows by their key, and a report of how many were read.

    The same row again counts once and is reported; another with the same key is refused.
    """
    found: dict[Key, Row] = {}
    places: dict[Key, str] = {}
    again = 0
    for where, key, row in rows:
        if key not in found:
            found[key], places[key] = row, where
        elif found[key] == row:
            again += 1
        else:
            raise NeuronShareError(
                f"{where}: {show(key)} stands also at {places[key]}, and says something else there; keep one of them."
            )
    report.kept(language, "read", len(found) + again)
    report.dropped(language, "the same row again", again)
    return found


def languages_of(task: str, asked: Languages, present: Sequence[str], report: Report) -> list[str]:
    """The languages to read: those asked for, all, or those of the paper's nine that are there (if two are)."""
    if asked is None:
        chosen = [language for language in PAPER if language in present]
        if len(chosen) < 2:
            return _two(task, list(present), present)
        for language in PAPER:
            if language not in present:
                report.left_out(language, "of the paper's languages, but not in the source", 0)
        return chosen
    if asked == "all":
        return _two(task, list(present), present)
    if isinstance(asked, str) or not isinstance(asked, Sequence):
        raise NeuronShareError(f"languages is {asked!r}; give a list such as ['en', 'de'], or 'all'.")
    if unknown := [language for language in asked if language not in present]:
        raise NeuronShareError(
            f"{task} has nothing in {', '.join(map(repr, unknown))} in this source; it has {', '.join(present)}."
        )
    if len(set(asked)) < len(asked):
        raise NeuronShareError(f"languages={list(asked)}: one stands there twice.")
    return _two(task, list(asked), present)


def check_wording(task: str, languages: Iterable[str], wording: Mapping[str, Any], instead: str) -> None:
    """Refuse languages for which a task has no words."""
    if unknown := [language for language in languages if language not in wording]:
        raise NeuronShareError(
            f"{task} has no words of its own in {', '.join(map(repr, unknown))}; it has some in {', '.join(wording)}. "
            f"Use {instead}, or other languages."
        )


def _two(task: str, chosen: list[str], present: Sequence[str]) -> list[str]:
    if len(chosen) < 2:
        raise NeuronShareError(
            f"{task}: {len(chosen)} language(s) ({', '.join(chosen)}); sharing is between languages, so at least two "
            f"are needed. This source has {', '.join(present) or 'none'}."
        )
    return chosen


def in_all_languages(tables: Mapping[str, Mapping[Key, Any]], task: str, report: Report) -> set[Key]:
    """The keys that every language has; what is dropped of each language is reported."""
    shared = set.intersection(*(set(table) for table in tables.values()))
    for language, table in tables.items():
        report.dropped(language, "not in every language", len(table) - len(shared))
    if not shared:
        sizes = ", ".join(f"{language} {len(table)}" for language, table in tables.items())
        raise NeuronShareError(f"{task}: no example is in every language ({sizes}); ask for fewer languages.")
    return shared


def in_order(labels: Iterable[str], seed: int | str) -> list[str]:
    """The labels in an order drawn by the seed, in which each has a place of its own.

    Unlike a shuffle's, the order of some labels stays the same when others come or go.
    """
    return sorted(labels, key=lambda label: short_hash(f"{seed}/{label}"))


def first(labels: Sequence[Key], limit: int | None, report: Report) -> Sequence[Key]:
    """At most so many; what is left out is reported."""
    chosen = labels[:limit]
    report.examples(len(chosen), limit=limit, beyond=len(labels) - len(chosen))
    return chosen


def before_answer(prompt: str) -> str:
    """What stands between prompt and answer: a space, but nothing after full-width punctuation."""
    return "" if prompt.endswith(("：", "？", "。")) else " "


def note_answers(prompts: Mapping[str, Sequence[str]], answers: Mapping[str, Sequence[str]], report: Report) -> None:
    """Report how many answers are written the same in several languages, and how many stand in their prompt."""
    texts = {language: [answer.strip() for answer in row] for language, row in answers.items()}
    for language, row in texts.items():
        others = [other for name, other in texts.items() if name != language]
        same = sum(any(text == other[index] for other in others) for index, text in enumerate(row))
        report.noted(language, "answer written as in another language", same)
        told = sum(text in prompt for text, prompt in zip(row, prompts[language], strict=True))
        report.noted(language, "answer stands in the prompt", told)
    same = sum(len(set(row)) == 1 for row in zip(*texts.values(), strict=True))
    report.noted("all", "answer written the same in every language", same)

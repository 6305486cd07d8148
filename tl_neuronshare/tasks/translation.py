"""Translation into one language: sentences that mean the same in several languages, such as FLORES."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import writable
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.tasks import reading
from tl_neuronshare.tasks.reading import Languages, Report

HOW_TO_GET = (
    "Give a folder with one file for each language, called LANGUAGE.ENDING, in which line i means the same in every "
    "language: such as the folder devtest of FLORES (github.com/openlanguagedata/flores), with eng_Latn.devtest. Or "
    "download a data set with a configuration for each language (hf download openlanguagedata/flores_plus --repo-type "
    "dataset --local-dir FOLDER), and give FOLDER."
)
# What FLORES calls the paper's languages.
FLORES = {
    "en": "eng_Latn",
    "de": "deu_Latn",
    "es": "spa_Latn",
    "fr": "fra_Latn",
    "ru": "rus_Cyrl",
    "th": "tha_Thai",
    "tr": "tur_Latn",
    "vi": "vie_Latn",
    "zh": "zho_Hans",
}
_SOURCE = "{source}"


@explains
def translation(
    source: str | Path = "openlanguagedata/flores_plus",
    *,
    target: str = "eng_Latn",
    template: str | Mapping[str, str] = _SOURCE,
    split: str = "devtest",
    languages: Languages = None,
    limit: int | None = None,
    seed: int = 0,
) -> ParallelPrompts:
    """Read sentences to translate into one language; score them by `scoring="exact"`.

    An encoder-decoder gets the sentence as its source. One that writes several languages must also know which, by its
    settings for generation or `model.tokenizer.tgt_lang`. A decoder needs a `template` that asks for the translation.

    Files have no keys: line i must be the same sentence in every language. Files of different length are refused; lines
    that changed places cannot be detected. Sentences of a data set are aligned by their `id`.

    Args:
        source: a folder with one file of sentences for each language, or the hub's data set or a local copy of it.
        target: the language to translate into, called as in the source.
        template: the prompt, in which {source} is the sentence, such as "{source} In English:"; or one for each
            language, such as {"deu_Latn": "translate German to English: {source}"}.
        split: the part of a data set; files need none.
        languages: the languages to translate from: a list, `all` that the source has, or None for those of the paper's
            nine that it has, called en or eng_Latn. The target is left out.
        limit: the most examples to give.
        seed: the seed of the order of examples.

    Returns:
        Prompts whose answers are the sentences in the target language, without choices. An example is labelled by its
        line in the files, from 1, or by its id.

    Raises:
        NeuronShareError: no such source or language; a line that is empty, by file and number; files of different
            length; a template without {source}.

    Source: FLORES-200 (NLLB team, 2022); the paper has no translation.

    Examples:
        >>> prompts = translation("devtest", languages=["deu_Latn", "zho_Hans"], limit=1)
        >>> print(prompts.prompts["deu_Latn"][0] + " ->" + prompts.answers["deu_Latn"][0])
        Es regnet. -> It rains.
    """
    reading.check_task(limit=limit, seed=seed)
    writable("split", split, least=1)
    report = Report()
    path = reading.local_path(source, "translation", HOW_TO_GET)
    if path and path.is_file():
        raise NeuronShareError(f"translation: {str(path)!r} is one language's file; give the folder. {HOW_TO_GET}")
    files = _files(path) if path else {}
    listed = list(files) or _configurations(path)
    present = listed or list(FLORES.values())  # a data set on the hub may have others
    if listed and target not in listed:
        raise NeuronShareError(f"translation has no target {target!r} in this source; it has {', '.join(present)}.")
    others = [language for language in present if language != target]
    paper = [language for language in FLORES.values() if language in others]
    if languages is None and len(paper) >= 2:
        languages = paper
    chosen = reading.languages_of("translation", languages, others, report)
    templates = _templates(template, chosen)
    tables = {
        language: reading.by_key(
            _of_file(files[language]) if files else _of_data_set(path or source, language, split), language, report
        )
        for language in [*chosen, target]
    }
    if files:
        _check_lengths({files[language]: len(table) for language, table in tables.items()})

    def ask(language: str, key: str) -> reading.Asked:
        return reading.Asked(templates[language].replace(_SOURCE, tables[language][key]), tables[target][key])

    keys = reading.drawn(tables, "translation", seed=seed, limit=limit, report=report)
    return reading.build(f"translation/{target}", chosen, keys, ask, report=report, answers_noted=False)


def _files(folder: Path) -> dict[str, Path]:
    """The files of a folder by their language; none if they are not called by languages."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith((".", "README")))
    endings = {file.name.partition(".")[2] for file in files}
    if len(files) < 2 or endings & {"parquet", "arrow"}:
        return {}
    if len(endings) > 1:
        raise NeuronShareError(
            f"translation: the files of {str(folder)!r} end in {', '.join(sorted(endings))}; give a folder of files "
            f"with one ending. {HOW_TO_GET}"
        )
    return {file.name.partition(".")[0]: file for file in files}


def _configurations(folder: Path | None) -> list[str]:
    """The languages of a local copy of a data set, each of which has a folder of its own."""
    return sorted({file.parent.name for file in folder.glob("*/*.parquet")}) if folder else []


def _templates(template: str | Mapping[str, str], languages: list[str]) -> dict[str, str]:
    """A template for each language, each of which has a place for the sentence."""
    templates = dict(template) if isinstance(template, Mapping) else dict.fromkeys(languages, template)
    for language in languages:
        if not isinstance(templates.get(language), str) or _SOURCE not in templates[language]:
            raise NeuronShareError(
                f"translation: the template of {language!r} is {templates.get(language)!r}; give a text with {_SOURCE}."
            )
    return templates


def _of_file(path: Path) -> Iterator[tuple[str, str, str]]:
    """The place, number and text of each line of a file; an empty line would be a sentence that has no translation."""
    for number, line in enumerate(reading.text_of(path).rstrip("\n").split("\n"), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            raise NeuronShareError(f"{where}: the line is empty; drop this line in every language.")
        yield where, str(number), line.strip()


def _of_data_set(source: str | Path, language: str, split: str) -> Iterator[tuple[str, str, str]]:
    """The same from a configuration of a data set, whose sentences are called `text` or `sentence`."""
    rows = reading.hub_data(
        source, config=language, split=split, columns=("id",), task="translation", how_to_get=HOW_TO_GET
    )
    column = "text" if "text" in rows.column_names else "sentence"
    for number, row in enumerate(rows):
        where = f"{source}, configuration {language!r}, row {number}"
        yield where, str(row["id"]), reading.fields(row, (column,), where)[column]


def _check_lengths(lengths: Mapping[Path, int]) -> None:
    """Refuse files that do not have the same number of lines."""
    (first, expected), *others = lengths.items()
    for path, length in others:
        if length != expected:
            raise NeuronShareError(
                f"translation: {first} has {expected} lines, {path} {length}. Line i must be the same sentence in "
                "every language: give whole files."
            )

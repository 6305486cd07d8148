"""XNLI (Conneau et al., EMNLP 2018): whether a hypothesis follows from a premise, in fifteen languages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, get_args

from tl_neuronshare.arguments import explains
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.tasks import reading
from tl_neuronshare.tasks.reading import Instructions, Languages, Report

LABELS = ("entailment", "neutral", "contradiction")  # 0, 1, 2 on the hub
FILE = "xnli.test.tsv"
HOW_TO_GET = (
    f"The original is XNLI-1.0.zip from github.com/facebookresearch/XNLI: unpack it, and give {FILE} as source. Or "
    "download the data set's part where there is a network (hf download facebook/xnli --repo-type dataset --include "
    "'all_languages/test*' --local-dir FOLDER), and give FOLDER."
)


class _Wording(NamedTuple):
    """An instruction with {premise} and {hypothesis}, and its word for each of LABELS."""

    instruction: str
    answers: tuple[str, str, str]


# The English wording is the paper's: the authors put it round premise and hypothesis in every language.
WORDING = {
    "en": _Wording(
        'Take the following as truth: {premise}\nThen the following statement: "{hypothesis}" is "true", "false" or '
        '"inconclusive"?',
        ("true", "inconclusive", "false"),
    ),
    "de": _Wording(
        "Nimm Folgendes als wahr an: {premise}\nIst dann die folgende Aussage: „{hypothesis}“ „wahr“, „falsch“ oder "
        "„unklar“?",
        ("wahr", "unklar", "falsch"),
    ),
    "es": _Wording(
        "Da por cierto lo siguiente: {premise}\nEntonces, la siguiente afirmación: «{hypothesis}», ¿es «verdadera», "
        "«falsa» o «indeterminada»?",
        ("verdadera", "indeterminada", "falsa"),
    ),
    "fr": _Wording(
        "Tiens pour vrai ce qui suit : {premise}\nAlors l'affirmation suivante : « {hypothesis} » est-elle « vraie », "
        "« fausse » ou « incertaine » ?",
        ("vraie", "incertaine", "fausse"),
    ),
    "ru": _Wording(
        "Прими следующее за истину: {premise}\nТогда следующее утверждение: «{hypothesis}» — «верно», «неверно» или "
        "«неясно»?",
        ("верно", "неясно", "неверно"),
    ),
    "th": _Wording(
        'ให้ถือว่าข้อความต่อไปนี้เป็นความจริง: {premise}\nดังนั้นข้อความต่อไปนี้: "{hypothesis}" เป็น "จริง" "เท็จ" หรือ "สรุปไม่ได้"?',
        ("จริง", "สรุปไม่ได้", "เท็จ"),
    ),
    "tr": _Wording(
        'Aşağıdakini gerçek kabul et: {premise}\nBuna göre şu ifade: "{hypothesis}" "doğru" mu, "yanlış" mı, yoksa '
        '"belirsiz" mi?',
        ("doğru", "belirsiz", "yanlış"),
    ),
    "vi": _Wording(
        'Hãy coi điều sau đây là sự thật: {premise}\nVậy phát biểu sau: "{hypothesis}" là "đúng", "sai" hay '
        '"không rõ"?',
        ("đúng", "không rõ", "sai"),
    ),
    "zh": _Wording(
        "请将以下内容视为事实：{premise}\n那么以下陈述：“{hypothesis}”是“正确”、“错误”还是“无法确定”？",
        ("正确", "无法确定", "错误"),
    ),
}


class _Sentences(NamedTuple):
    """A pair of sentences in one language, and how the second relates to the first."""

    premise: str
    hypothesis: str
    label: str


@explains
def xnli(
    source: str | Path = "facebook/xnli",
    *,
    instructions: Instructions = "english",
    languages: Languages = None,
    limit: int | None = None,
    seed: int = 0,
) -> ParallelPrompts:
    """Read pairs of sentences of XNLI's test set: the second is true, false or inconclusive if the first is true.

    Args:
        source: the hub's data set or a local copy of its repository, or the original `xnli.test.tsv` or its folder.
        instructions: `english`, as in the paper: an English instruction round the sentences of each language, with
            English choices. `native`: instruction and choices in the language of the sentences, for the paper's nine
            languages.
        languages: a list, `all` that the source has, or None for those of the paper's nine that it has.
        limit: the most examples to give.
        seed: the seed of the order of examples.

    Returns:
        Prompts with three choices each; their `report` says what was kept and dropped. An example is labelled by its
        `promptID/pairID` in the file, or by its row in the data set.

    Raises:
        NeuronShareError: no such source or language; a line in the wrong format, by file and number; a pair that
            appears twice with different sentences; languages that label a pair differently.

    Source: XNLI; arXiv 2406.09265, reasoning task.

    Examples:
        >>> prompts = xnli("xnli.test.tsv", languages=["en", "de"], limit=1)
        >>> print(prompts.prompts["de"][0] + prompts.answers["de"][0])
        Take the following as truth: Es regnet seit Montag.
        Then the following statement: "Am Dienstag schien nur die Sonne." is "true", "false" or "inconclusive"? false
    """
    reading.check_task(limit=limit, seed=seed, one_of={"instructions": (instructions, get_args(Instructions))})
    report = Report()
    path = reading.local_path(source, "xnli", HOW_TO_GET)
    if path and path.is_dir() and (path / FILE).is_file():
        path = path / FILE
    by_language = _by_language(path, source)
    chosen = reading.languages_of("xnli", languages, list(by_language), report)
    if instructions == "native":
        reading.check_wording("xnli", chosen, WORDING, 'instructions="english"')
    tables = {
        language: _labelled(reading.by_key(by_language[language], language, report), language, report)
        for language in chosen
    }
    _check_labels(tables)

    def ask(language: str, key: str) -> reading.Asked:
        premise, hypothesis, label = tables[language][key]
        instruction, answers = WORDING[language if instructions == "native" else "en"]
        prompt = instruction.format(premise=premise, hypothesis=hypothesis)
        return reading.Asked(prompt, answers[LABELS.index(label)], answers)

    examples = reading.drawn(tables, "xnli", seed=seed, limit=limit, report=report)
    return reading.build(f"xnli/{instructions}", chosen, examples, ask, report=report)


def _by_language(path: Path | None, source: str | Path) -> dict[str, list[tuple[str, str, _Sentences]]]:
    """For each language of the source the place, key and sentences of each row."""
    rows = _of_file(path) if path and path.is_file() else _of_data_set(path or source)
    by_language: dict[str, list[tuple[str, str, _Sentences]]] = {}
    for language, where, key, sentences in rows:
        by_language.setdefault(language, []).append((where, key, sentences))
    if not by_language:
        raise NeuronShareError(f"{path}: there is nothing after the header. {HOW_TO_GET}")
    return by_language


def _of_file(path: Path) -> Iterator[tuple[str, str, str, _Sentences]]:
    """Language, place, key and sentences of each row of the original, whose columns are found by their names."""
    columns: list[str] = []
    names = ("language", "gold_label", "sentence1", "sentence2", "promptID", "pairID")
    for where, line in reading.lines_of(path):
        cells = line.split("\t")
        if not columns:
            columns = cells
            if missing := [name for name in names if name not in columns]:
                raise NeuronShareError(f"{where}: the header has no column {missing[0]!r}; is this {FILE}?")
            continue
        if len(cells) != len(columns):
            raise NeuronShareError(f"{where}: {len(cells)} cells where the header has {len(columns)} columns.")
        row = reading.fields(dict(zip(columns, cells, strict=True)), names, where)
        sentences = _Sentences(row["sentence1"], row["sentence2"], _label(row["gold_label"], where))
        yield row["language"], where, f"{row['promptID']}/{row['pairID']}", sentences


def _of_data_set(source: str | Path) -> Iterator[tuple[str, str, str, _Sentences]]:
    """The same from the hub's configuration all_languages, where a row holds all languages."""
    rows = reading.hub_data(
        source,
        config="all_languages",
        split="test",
        columns=("premise", "hypothesis", "label"),
        task="xnli",
        how_to_get=HOW_TO_GET,
    )
    for number, row in enumerate(rows):
        where = f"row {number} of the data set"
        try:
            premises, hypotheses = row["premise"], row["hypothesis"]
            texts = [
                (language, premises.get(language), hypothesis)
                for language, hypothesis in zip(hypotheses["language"], hypotheses["translation"], strict=True)
            ]
            label = LABELS[row["label"]] if row["label"] >= 0 else "-"
        except (AttributeError, KeyError, TypeError, IndexError, ValueError) as error:
            raise NeuronShareError(
                f"{where}: no premise, hypothesis and label as facebook/xnli's configuration all_languages has."
            ) from error
        for language, premise, hypothesis in texts:
            both = {"premise": premise, "hypothesis": hypothesis}
            sentences = _Sentences(**reading.fields(both, tuple(both), f"{where}, {language!r}"), label=label)
            yield language, where, str(number), sentences


def _label(text: str, where: str) -> str:
    """A gold label, which must be a known one."""
    if text not in (*LABELS, "-"):
        raise NeuronShareError(f"{where}: the gold_label is {text!r}; it can be {', '.join(LABELS)}.")
    return text


def _labelled(table: Mapping[str, _Sentences], language: str, report: Report) -> dict[str, _Sentences]:
    """The pairs on whose label the annotators agreed; the label of the others is "-"."""
    labelled = {key: sentences for key, sentences in table.items() if sentences.label != "-"}
    report.dropped(language, "no gold label", len(table) - len(labelled))
    return labelled


def _check_labels(tables: Mapping[str, Mapping[str, _Sentences]]) -> None:
    """Refuse languages that label an example differently."""
    first, *others = tables
    shared = sorted(set.intersection(*map(set, tables.values())))
    for language in others:
        for key in shared:
            ours, theirs = tables[first][key].label, tables[language][key].label
            if ours != theirs:
                raise NeuronShareError(
                    f"xnli: example {key} is {ours} in {first!r}, and {theirs} in {language!r}; is one of the "
                    "languages from a different file?"
                )

"""Fact probing with mParaRel (Fierro and Søgaard, Findings of ACL 2022): facts of Wikidata, asked by patterns."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import count
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.launch import warn
from tl_neuronshare.prompts import ParallelPrompts, short_hash
from tl_neuronshare.tasks import reading
from tl_neuronshare.tasks.reading import Languages, Report

if TYPE_CHECKING:
    from datasets import Dataset

Form = Literal["continuation", "cloze"]
WithoutPattern = Literal["drop", "refuse"]
BLANK = "___"
# The instruction of a cloze, in the language of the pattern, with {} for the text.
CLOZE = {
    "en": "Fill in the blank: {}\nAnswer:",
    "de": "Fülle die Lücke aus: {}\nAntwort:",
    "es": "Completa el espacio en blanco: {}\nRespuesta:",
    "fr": "Complète la phrase : {}\nRéponse :",
    "pt": "Preencha a lacuna: {}\nResposta:",
    "ru": "Заполни пропуск: {}\nОтвет:",
    "th": "เติมคำในช่องว่าง: {}\nคำตอบ:",
    "tr": "Boşluğu doldur: {}\nCevap:",
    "vi": "Điền vào chỗ trống: {}\nTrả lời:",
    "zh": "填空：{}\n答案：",
}
HOW_TO_GET = (
    "mParaRel is github.com/coastalcph/mpararel: clone it where there is a network, and give its folder "
    "data/mpararel_reviewed, which holds tuples/LANGUAGE/RELATION.jsonl and patterns/LANGUAGE/RELATION.jsonl, as "
    "source. A data set needs the columns language, relation, template, sub_uri, obj_uri, sub_label and obj_label, as "
    "coastalcph/mpararel_autorr on the hub has."
)
_COLUMNS = ("language", "relation", "template", "sub_uri", "obj_uri", "sub_label", "obj_label")
_FOLDERS = (".", "data/mpararel_reviewed", "mpararel_reviewed")
_PUNCTUATION = re.compile("[,，、;；:：.。—–]|-(?= )")
_NO_SPACES = ("ja", "th", "zh")  # languages that put no space before [Y] where a data set cut it off


class _Pair(NamedTuple):
    """What makes an example the same in every language: the relation, and Wikidata's numbers for subject and object."""

    relation: str
    subject: str
    object: str

    def __str__(self) -> str:
        return "/".join(self)


class _Labels(NamedTuple):
    """What a language calls subject and object."""

    subject: str
    object: str


@explains
def fact_probing(
    source: str | Path,
    *,
    relations: str | Sequence[str] = "P36",
    form: Form = "continuation",
    pattern: int | str | Path | Mapping[str, str] | None = None,
    instructions: Mapping[str, str] | None = None,
    without_pattern: WithoutPattern = "drop",
    n_choices: int = 4,
    languages: Languages = None,
    limit: int | None = None,
    seed: int = 0,
) -> ParallelPrompts:
    """Read facts of mParaRel, aligned by subject and object, with answers and choices.

    An example is a pair of subject and object that every language has. Its wrong choices are objects of the same
    relation that are not true of its subject by any language's file, and whose names all differ in every language.

    Args:
        source: the folder `mpararel_reviewed` (or the repository around it), or the name of a data set.
        relations: one or more of Wikidata's relations, such as P36: the object is the subject's capital.
        form: `continuation`: patterns that end in `[Y]`, so that the answer continues the prompt.
            `cloze`: any pattern, with a blank for `[Y]`, and an instruction in the pattern's language.
        pattern: which of a language's patterns that fit the form: a number from 0, `random` (drawn for each example
            and language), a mapping from languages to patterns of your own, or a file of them, FILE.jsonl with the
            fields language, relation and pattern in each line. By default, and for languages without a
            pattern of your own, the first that has a word before `[Y]` and no punctuation, or else the first with a
            word before `[Y]`, so that prompts end alike in all languages; the `report` says which. Patterns that end in
            a comma in some languages and in a word in others make the former share more neurons.
        instructions: for some languages an instruction of the cloze instead of ours, with {} for the text.
        without_pattern: what happens to a language that has no fitting pattern, or no facts of a relation: `drop` it,
            with a warning, or `refuse`.
        n_choices: the most choices that an example has, the answer included.
        languages: a list, `all` that the source has, or None for those of the paper's nine that it has. Chinese is
            `zh`, which is mParaRel's zh-hans.
        limit: the most examples to give.
        seed: the seed of the order of examples, the choices and random patterns.

    Returns:
        Prompts whose `report` says what was kept and dropped, and how many answers are the same in several languages.

    Raises:
        NeuronShareError: no such source, relation, language or pattern; a line in the wrong format, by file and number;
            a pair that appears twice with different labels; no example that all languages have.

    Source: mParaRel; arXiv 2406.09265, fact probing.

    Examples:
        >>> prompts = fact_probing("mpararel_reviewed", languages=["en", "de"], limit=1)
        >>> prompts.prompts, prompts.answers
        ({'en': ('the capital of France is',), 'de': ('die Hauptstadt von Frankreich ist',)},
         {'en': (' Paris',), 'de': (' Paris',)})
        >>> prompts.choices["en"], prompts.choices["de"]
        (((' Paris', ' Athens', ' La Paz', ' Sucre'),), ((' Paris', ' Athen', ' La Paz', ' Sucre'),))
    """
    if isinstance(languages, (list, tuple)):
        languages = [_common_name(language) for language in languages]
    one_of = {"form": (form, get_args(Form)), "without_pattern": (without_pattern, get_args(WithoutPattern))}
    reading.check_task(limit=limit, seed=seed, one_of=one_of)
    count("n_choices", n_choices, least=2)
    names = _relation_names(relations)
    own = _own_patterns(pattern, names)
    facts = _source(source)
    for name in names:
        if name not in facts.relations:
            raise NeuronShareError(
                f"fact_probing: {str(source)!r} has no relation {name!r}; it has {', '.join(facts.relations)}."
            )
    report = Report()
    spoken = reading.languages_of("fact_probing", languages, facts.languages, report)
    _check_wording(spoken, form, own, instructions)
    usable = _usable_patterns(facts, names, spoken, form, pattern, own=own)
    tables = {
        language: reading.by_key((row for name in names for row in facts.pairs(name, language)), language, report)
        for language in spoken
    }
    _leave_out(_lacking(usable, tables, form), tables, form, without_pattern, report)
    shared = reading.in_all_languages(tables, "fact_probing", report)
    objects = _Objects(tables, _stated(facts, names, tables), seed)
    choices = _with_choices(shared, objects, n_choices, limit=limit, seed=seed, report=report)
    wording = _Wording(usable, form, own or pattern, CLOZE | dict(instructions or {}), seed)
    for language in tables:
        for relation in names:
            n_examples = sum(pair.relation == relation for pair in choices)
            report.noted(language, wording.said(language, relation), n_examples)

    def ask(language: str, pair: _Pair) -> reading.Asked:
        prompt, space = wording.of(pair, language, tables[language][pair].subject)
        labels = [choice[language] for choice in choices[pair]]
        return reading.Asked(prompt, tables[language][pair].object, labels, space)

    name = f"fact_probing/{'+'.join(names)}/{form}"
    return reading.build(name, tables, list(choices), ask, report=report, answers_noted=True)


def _relation_names(relations: Any) -> list[str]:
    """The relations that are asked for, as a list."""
    if isinstance(relations, str):
        return [relations]
    if not isinstance(relations, (list, tuple)) or not relations or len(set(relations)) < len(relations):
        raise NeuronShareError(f"relations={relations!r}; give one, such as 'P36', or several different ones.")
    return list(relations)


def _source(source: str | Path) -> _Folder | _DataSet:
    """The facts of a folder or data set."""
    path = reading.local_path(source, "fact_probing", HOW_TO_GET)
    for name in _FOLDERS:
        if path and (path / name / "tuples").is_dir() and (path / name / "patterns").is_dir():
            return _Folder(path / name)
    if path and path.is_file():
        raise NeuronShareError(f"fact_probing: {str(path)!r} is a file; give a folder. {HOW_TO_GET}")
    data = reading.hub_data(
        path or source, config=None, split="train", columns=_COLUMNS, task="fact_probing", how_to_get=HOW_TO_GET
    )
    return _DataSet(data, str(source))


class _Folder:
    """The original: a file of JSON lines for each language and relation. A missing file gives nothing."""

    def __init__(self, folder: Path) -> None:
        self._folders = {
            _common_name(path.name): path.name for path in sorted((folder / "tuples").iterdir()) if path.is_dir()
        }
        self._folder = folder
        self.languages = list(self._folders)
        self.relations = sorted({path.stem for path in (folder / "tuples").glob("*/*.jsonl")})

    def pairs(self, relation: str, language: str) -> Iterator[tuple[str, _Pair, _Labels]]:
        names = ("sub_uri", "obj_uri", "sub_label", "obj_label")
        for where, row in self._rows("tuples", relation, language, names):
            subject, object, *labels = (row[name] for name in names)
            yield where, _Pair(relation, subject, object), _Labels(*labels)

    def patterns(self, relation: str, language: str) -> Iterator[tuple[str, str]]:
        for where, row in self._rows("patterns", relation, language, ("pattern",)):
            yield where, row["pattern"]

    def _rows(
        self, kind: str, relation: str, language: str, names: Sequence[str]
    ) -> Iterable[tuple[str, dict[str, str]]]:
        path = self._folder / kind / self._folders[language] / f"{relation}.jsonl"
        return reading.json_lines(path, names) if path.is_file() else ()


class _DataSet:
    """The same from a table with a row for each language, relation, template and pair, as it is on the hub."""

    def __init__(self, data: Dataset, name: str) -> None:
        self._data, self._name = data, name
        self._read: dict[str, dict[str, list[dict[str, Any]]]] = {}  # by relation, by language
        self.languages = sorted(map(_common_name, data.unique("language")))
        self.relations = sorted(data.unique("relation"))

    def pairs(self, relation: str, language: str) -> Iterator[tuple[str, _Pair, _Labels]]:
        seen = set()
        for where, row in self._of(relation, language):
            fact = _Pair(relation, row["sub_uri"], row["obj_uri"]), _Labels(row["sub_label"], row["obj_label"])
            if fact not in seen:  # a fact has a row for each template
                seen.add(fact)
                yield where, *fact

    def patterns(self, relation: str, language: str) -> Iterator[tuple[str, str]]:
        numbered = {(row.get("template_id", 0), row["template"]): where for where, row in self._of(relation, language)}
        for (_, template), where in sorted(numbered.items()):
            space = "" if language in _NO_SPACES else " "
            yield where, template if "[Y]" in template else f"{template}{space}[Y]"  # some data sets cut it off

    def _of(self, relation: str, language: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows of a relation and language; of the data set's millions of rows only the relation's are read."""
        if relation not in self._read:
            of_relation = self._data.filter(
                lambda names: [name == relation for name in names],
                batched=True,
                input_columns=["relation"],
                keep_in_memory=True,
            )
            self._read[relation] = {name: [] for name in self.languages}
            for row in of_relation:
                self._read[relation][_common_name(row["language"])].append(row)
        for number, row in enumerate(self._read[relation][language]):
            # Where there are aliases, an object has a list of labels, and the first is its own.
            label = row["obj_label"]
            with_one_label = {**row, "obj_label": label[0] if isinstance(label, list) and label else label}
            where = f"{self._name}, {relation} in {language!r}, row {number}"
            numbered = {"template_id": row["template_id"]} if "template_id" in row else {}
            yield where, reading.fields(with_one_label, _COLUMNS, where) | numbered


def _common_name(folder: str) -> str:
    """The name that the other tasks have for a language: mParaRel's zh-hans is zh."""
    return "zh" if folder == "zh-hans" else folder


def _own_patterns(pattern: Any, relations: Sequence[str]) -> dict[tuple[str, str], str]:
    """The user's own patterns, by language and relation; none where `pattern` is something else."""
    if isinstance(pattern, Mapping):
        if len(relations) > 1:
            raise NeuronShareError(
                "pattern is a mapping, which would serve every relation alike; ask for one relation only, or give a "
                "file of patterns."
            )
        return {(language, relations[0]): text for language, text in pattern.items()}
    if not str(pattern).endswith(".jsonl"):
        return {}
    own: dict[tuple[str, str], str] = {}
    if not Path(pattern).is_file():
        raise NeuronShareError(f"pattern={str(pattern)!r}: there is no such file of patterns.")
    for where, row in reading.json_lines(Path(pattern), ("language", "relation", "pattern")):
        place = _common_name(row["language"]), row["relation"]
        if place in own:
            raise NeuronShareError(f"{where}: {row['language']} has a pattern of {row['relation']} already; leave one.")
        if row["relation"] in relations:
            own[place] = row["pattern"]
    return own


def _check_wording(
    languages: Sequence[str], form: Form, own_patterns: Mapping[tuple[str, str], str], instructions: Any
) -> None:
    """Refuse patterns and instructions that would not be used, and a cloze without an instruction."""
    if instructions is not None and (not isinstance(instructions, Mapping) or form != "cloze"):
        raise NeuronShareError(
            f"instructions={instructions!r}; give a mapping from languages to texts with {{}}, for form='cloze' only."
        )
    own = instructions or {}
    for what, given in (("pattern", [language for language, _ in own_patterns]), ("instructions", [*own])):
        for language in given:
            if language not in languages:
                raise NeuronShareError(f"{what} is for {language!r} too; give it only for {', '.join(languages)}.")
    for language in languages if form == "cloze" else ():
        text = own.get(language, CLOZE.get(language))
        if not isinstance(text, str) or "{}" not in text:
            raise NeuronShareError(
                f"fact_probing has no instruction in {language!r}, only in {', '.join(CLOZE)}. Give "
                f"instructions={{{language!r}: '... {{}} ...'}}, with {{}} for the text."
            )


def _usable_patterns(
    source: _Folder | _DataSet,
    relations: Sequence[str],
    languages: Sequence[str],
    form: Form,
    pattern: Any,
    *,
    own: Mapping[tuple[str, str], str],
) -> dict[str, dict[str, list[str]]]:
    """For each language and relation the patterns that fit the form, in their order; the user's own comes first."""
    is_number = isinstance(pattern, int) and not isinstance(pattern, bool)
    if not own and pattern not in (None, "random") and not is_number:
        raise NeuronShareError(
            f"pattern={pattern!r}; give a number from 0, 'random', a mapping from languages, or a file FILE.jsonl."
        )
    usable: dict[str, dict[str, list[str]]] = {language: {} for language in languages}
    for language in languages:
        for relation in relations:
            mine = own.get((language, relation))
            given = [] if mine is None else [(f"pattern[{language!r}]", mine)]
            fitting = [
                text
                for where, text in (*given, *source.patterns(relation, language))
                if _ending(text, where) is not None or form == "cloze"
            ]
            usable[language][relation] = fitting
            if given and fitting[:1] != [mine]:
                raise NeuronShareError(f"pattern[{language!r}] is {mine!r}, which does not end in [Y]; end it so.")
            if fitting and isinstance(pattern, int) and not 0 <= pattern < len(fitting):
                raise NeuronShareError(
                    f"pattern={pattern}: language {language!r} has {len(fitting)} patterns of {relation} for a {form}, "
                    f"so 0 to {len(fitting) - 1}."
                )
    return usable


def _ending(pattern: str, where: str) -> str | None:
    """What comes before [Y] if that is the pattern's end, otherwise None."""
    for part in ("[X]", "[Y]"):
        if not isinstance(pattern, str) or pattern.count(part) < 1:
            raise NeuronShareError(
                f"{where}: the pattern {pattern!r} has no {part}; it needs [X] for the subject and [Y] for the object."
            )
    stem = pattern.rstrip(" .。").removesuffix("[Y]")
    return stem if stem != pattern.rstrip(" .。") and "[Y]" not in stem else None


def _ends_in_a_word(pattern: str) -> bool:
    """Whether a pattern for a continuation has a word of its own before the answer."""
    stem = (_ending(pattern, "") or "").rstrip()
    return not _at_the_subject(pattern) and bool(stem) and unicodedata.category(stem[-1])[0] in "LMN"


def _at_the_subject(pattern: str) -> bool:
    """Whether a pattern for a continuation has the subject right before the answer."""
    return (_ending(pattern, "") or "").rstrip().endswith("[X]")


def _lacking(
    usable: Mapping[str, Mapping[str, Sequence[str]]], tables: Mapping[str, Mapping[_Pair, Any]], form: Form
) -> dict[str, str]:
    """The languages in which not every relation can be asked for, and why."""
    reasons = {}
    for language, patterns_of in usable.items():
        present = {pair.relation for pair in tables[language]}
        for relation, patterns in patterns_of.items():
            if relation not in present:
                reasons[language] = f"nothing of {relation}"
            elif not patterns:
                reasons[language] = f"no pattern of {relation}" + " that ends in [Y]" * (form == "continuation")
    return reasons


def _leave_out(
    lacking: Mapping[str, str],
    tables: dict[str, dict[_Pair, _Labels]],
    form: Form,
    without_pattern: WithoutPattern,
    report: Report,
) -> None:
    """Drop the lacking languages from the tables with a warning, or refuse them, as the user asked."""
    if not lacking:
        return
    reasons = "; ".join(f"{language}: {reason}" for language, reason in lacking.items())
    how = ' Use form="cloze", which takes any pattern, or other languages.' if form == "continuation" else ""
    if without_pattern == "refuse" or len(tables) - len(lacking) < 2:
        raise NeuronShareError(f"fact_probing cannot ask in every language ({reasons}).{how}")
    for language, reason in lacking.items():
        report.left_out(language, reason, len(tables.pop(language)))
    warn(f"fact_probing left out {reasons}. Types are among {', '.join(tables)}.{how}")


def _with_choices(
    pairs: Collection[_Pair], objects: _Objects, n_choices: int, *, limit: int | None, seed: int, report: Report
) -> dict[_Pair, list[Mapping[str, str]]]:
    """Draw at most `limit` of the pairs that have a second choice, and their choices."""
    kept: dict[_Pair, list[Mapping[str, str]]] = {}
    alone = 0
    for pair in reading.in_order(pairs, seed):
        if len(kept) == limit:
            break
        choices = objects.choices(pair, n_choices)
        if choices:
            kept[pair] = choices
        else:
            alone += 1
    if not kept:
        raise NeuronShareError("fact_probing: no example has a second choice; ask for other relations or languages.")
    report.dropped("all", "no other object to choose from", alone)
    report.examples(len(kept), limit=limit, beyond=len(pairs) - alone - len(kept))
    return kept


def _stated(
    source: _Folder | _DataSet, relations: Sequence[str], tables: Mapping[str, Iterable[_Pair]]
) -> dict[tuple[str, str], set[str]]:
    """For each subject the objects that are true of it by the file of any language, asked for or not."""
    true: dict[tuple[str, str], set[str]] = defaultdict(set)
    others = (
        pair
        for language in source.languages
        if language not in tables
        for relation in relations
        for _, pair, _ in source.pairs(relation, language)
    )
    for pair in chain(*tables.values(), others):
        true[pair.relation, pair.subject].add(pair.object)
    return true


class _Objects:
    """The objects of each relation, what all languages call them, and of which subjects they are true."""

    def __init__(
        self,
        tables: Mapping[str, Mapping[_Pair, _Labels]],
        true: Mapping[tuple[str, str], Iterable[str]],
        seed: int,
    ) -> None:
        self._tables, self._true, self._seed = tables, true, seed
        counts: dict[tuple[str, str], dict[str, Counter[str]]] = defaultdict(dict)
        for language, table in tables.items():
            for pair, labels in table.items():
                counts[pair.relation, pair.object].setdefault(language, Counter())[labels.object] += 1
        # Of several labels the most frequent is taken, and of equally frequent ones the first in the alphabet.
        self._labels: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
        for (relation, object), by_language in counts.items():
            self._labels[relation][object] = {
                language: min(labels, key=lambda label: (-labels[label], label))
                for language, labels in by_language.items()
            }

    def choices(self, pair: _Pair, n_choices: int) -> list[Mapping[str, str]] | None:
        """The pair's object and wrong ones, by their names in each language; None if there is no wrong one."""
        labels, true = self._labels[pair.relation], self._true[pair.relation, pair.subject]
        drawn = {pair.object: {language: table[pair].object for language, table in self._tables.items()}}
        # The name of a wrong object must differ from those of true objects and of objects drawn before.
        taken = {
            language: {
                label.casefold() for label in (drawn[pair.object][language], *self._names(labels, true, language))
            }
            for language in self._tables
        }
        for object in reading.in_order(labels, f"{self._seed}/{pair}"):
            if len(drawn) == n_choices:
                break
            names = labels[object]
            if object in true or len(names) < len(self._tables):
                continue
            if all(name.casefold() not in taken[language] for language, name in names.items()):
                drawn[object] = names
                for language, name in names.items():
                    taken[language].add(name.casefold())
        order = reading.in_order(drawn, f"{self._seed}/{pair}/order")
        return [drawn[object] for object in order] if len(drawn) > 1 else None

    @staticmethod
    def _names(labels: Mapping[str, Mapping[str, str]], objects: Iterable[str], language: str) -> Iterator[str]:
        """What a language calls these objects, where it knows them."""
        return (labels[object][language] for object in objects if language in labels.get(object, ()))


class _Wording:
    """Which pattern asks for a pair in a language, and how."""

    def __init__(
        self,
        usable: Mapping[str, Mapping[str, Sequence[str]]],
        form: Form,
        pattern: Any,
        cloze: Mapping[str, str],
        seed: int,
    ) -> None:
        self._usable, self._form, self._pattern, self._cloze, self._seed = usable, form, pattern, cloze, seed
        self._numbers: dict[tuple[str, str], int] = {}  # what `_number` has found

    def said(self, language: str, relation: str) -> str:
        """Say which pattern asks for a relation, and whether it ends as those of other languages do."""
        if self._pattern == "random":
            return f"{relation}: a random pattern for each example"
        pattern = self._usable[language][relation][self._number(language, relation)]
        if self._form == "cloze":
            return f"{relation}: pattern {pattern!r}"
        how = "a word" if _ends_in_a_word(pattern) else "the subject" if _at_the_subject(pattern) else "no word"
        return f"{relation}: pattern {pattern!r}, which ends in {how}"

    def _number(self, language: str, relation: str) -> int:
        """Which of the patterns asks for all pairs of a relation."""
        if isinstance(self._pattern, int):
            return self._pattern
        if self._form == "cloze" or (isinstance(self._pattern, Mapping) and (language, relation) in self._pattern):
            return 0
        if (language, relation) not in self._numbers:
            ranks = [
                (not _ends_in_a_word(each), bool(_PUNCTUATION.search(_ending(each, "") or "")), n)
                for n, each in enumerate(self._usable[language][relation])
            ]
            self._numbers[language, relation] = min(ranks)[-1]
        return self._numbers[language, relation]

    def of(self, pair: _Pair, language: str, subject: str) -> tuple[str, str]:
        """The prompt, and what comes before its answer: a space or nothing."""
        patterns = self._usable[language][pair.relation]
        if self._pattern == "random":
            number = int(short_hash(f"{self._seed}/{pair}/{language}"), 16) % len(patterns)
        else:
            number = self._number(language, pair.relation)
        pattern = patterns[number]
        if self._form == "cloze":
            text = pattern.replace("[X]", subject).replace("[Y]", BLANK)
            prompt = self._cloze[language].replace("{}", text)
            return prompt, reading.before_answer(prompt)
        stem = _ending(pattern, language) or ""
        return stem.replace("[X]", subject).rstrip(), " " if stem[-1:].isspace() else ""

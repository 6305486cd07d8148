"""Small sources of our own, in exactly the formats in which mParaRel, MzsRE, MGSM and XNLI are published."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

import tl_neuronshare as ns

# Wikidata's numbers, and the names of the countries and capitals in each language.
CAPITALS = {
    ("Q38", "Q220"): {
        "en": ("Italy", "Rome"),
        "de": ("Italien", "Rom"),
        "tr": ("İtalya", "Roma"),
        "zh": ("意大利", "罗马"),
    },
    ("Q142", "Q90"): {
        "en": ("France", "Paris"),
        "de": ("Frankreich", "Paris"),
        "tr": ("Fransa", "Paris"),
        "zh": ("法国", "巴黎"),
    },
    ("Q419", "Q2868"): {"en": ("Peru", "Lima"), "de": ("Peru", "Lima"), "tr": ("Peru", "Lima"), "zh": ("秘鲁", "利马")},
    ("Q43", "Q3640"): {
        "en": ("Turkey", "Ankara"),
        "de": ("Türkei", "Ankara"),
        "tr": ("Türkiye", "Ankara"),
        "zh": ("土耳其", "安卡拉"),
    },
    ("Q41", "Q1524"): {
        "en": ("Greece", "Athens"),
        "de": ("Griechenland", "Athen"),
        "tr": ("Yunanistan", "Atina"),
        "zh": ("希腊", "雅典"),
    },
    # Bolivia has two: neither may be a wrong choice for the other.
    ("Q750", "Q1491"): {
        "en": ("Bolivia", "La Paz"),
        "de": ("Bolivien", "La Paz"),
        "tr": ("Bolivya", "La Paz"),
        "zh": ("玻利维亚", "拉巴斯"),
    },
    ("Q750", "Q2907"): {
        "en": ("Bolivia", "Sucre"),
        "de": ("Bolivien", "Sucre"),
        "tr": ("Bolivya", "Sucre"),
        "zh": ("玻利维亚", "苏克雷"),
    },
}
TONGUES = {
    ("Q38", "Q652"): {"en": ("Italy", "Italian"), "de": ("Italien", "Italienisch"), "tr": ("İtalya", "İtalyanca")},
    ("Q142", "Q150"): {"en": ("France", "French"), "de": ("Frankreich", "Französisch"), "tr": ("Fransa", "Fransızca")},
    ("Q41", "Q9129"): {
        "en": ("Greece", "Greek"),
        "de": ("Griechenland", "Griechisch"),
        "tr": ("Yunanistan", "Yunanca"),
    },
}
PATTERNS = {
    "P36": {
        "en": ["the capital of [X] is [Y]", "[Y] is the capital of [X]", "[X] has the capital [Y]"],
        "de": ["die Hauptstadt von [X] ist [Y]", "[Y], die Hauptstadt von [X]"],
        "tr": ["[X] ülkesinin başkenti [Y]", "[Y], [X] ülkesinin başkentidir"],
        "zh": ["[X]的首都是[Y]", "[Y]是[X]的首都"],
    },
    "P37": {
        "en": ["[Y] is spoken in [X]", "people in [X] speak [Y]"],
        "de": ["in [X] spricht man [Y]"],
        "tr": ["[X] ülkesinde [Y] konuşulur"],
    },
}
EDITS = [  # question, paraphrase, answer, unrelated question, its answer, follow-up question, its answer
    {
        "en": [
            "Who built the Old Bridge?",
            "By whom was the Old Bridge built?",
            "Anna Weber",
            "Where is the Nile?",
            "Africa",
            "Who taught the builder of the Old Bridge?",
            "Karl Stein",
        ],
        "de": [
            "Wer baute die Alte Brücke?",
            "Von wem wurde die Alte Brücke gebaut?",
            "Anna Weber",
            "Wo ist der Nil?",
            "Afrika",
            "Wer lehrte die Erbauerin der Alten Brücke?",
            "Karl Stein",
        ],
        "th": [
            "ใครสร้างสะพานเก่า",
            "สะพานเก่าสร้างโดยใคร",
            "แอนนา เวเบอร์",
            "แม่น้ำไนล์อยู่ที่ไหน",
            "แอฟริกา",
            "ใครสอนผู้สร้างสะพานเก่า",
            "คาร์ล สไตน์",
        ],
    },
    {
        "en": [
            "What colour is the Red House?",
            "Which colour does the Red House have?",
            "blue",
            "How many days has a week?",
            "seven",
            "Is the Red House blue or green?",
            "blue",
        ],
        "de": [
            "Welche Farbe hat das Rote Haus?",
            "In welcher Farbe ist das Rote Haus gestrichen?",
            "blau",
            "Wie viele Tage hat eine Woche?",
            "sieben",
            "Ist das Rote Haus blau oder grün?",
            "blau",
        ],
        "th": [
            "บ้านสีแดงมีสีอะไร",
            "บ้านสีแดงทาสีอะไร",
            "สีน้ำเงิน",
            "หนึ่งสัปดาห์มีกี่วัน",
            "เจ็ด",
            "บ้านสีแดงเป็นสีน้ำเงินหรือสีเขียว",
            "สีน้ำเงิน",
        ],
    },
    {
        "en": [
            "When was the Iron Club founded?",
            "In which year did the Iron Club begin?",
            "1907",
            "What is frozen water?",
            "ice",
            "In which century was the Iron Club founded?",
            "the twentieth",
        ],
        "de": [
            "Wann wurde der Eisenklub gegründet?",
            "In welchem Jahr begann der Eisenklub?",
            "1907",
            "Was ist gefrorenes Wasser?",
            "Eis",
            "In welchem Jahrhundert wurde der Eisenklub gegründet?",
            "im zwanzigsten",
        ],
        "th": [
            "สโมสรเหล็กก่อตั้งเมื่อใด",
            "สโมสรเหล็กเริ่มในปีใด",
            "2450",
            "น้ำที่แข็งตัวคืออะไร",
            "น้ำแข็ง",
            "สโมสรเหล็กก่อตั้งในศตวรรษใด",
            "ศตวรรษที่ยี่สิบ",
        ],
    },
]
PROBLEMS = {
    "en": [
        ("Ann has 3 apples and buys 4. How many has she?", "7"),
        ("A book costs 12 euros. What do 100 cost?", "1,200"),
    ],
    "de": [
        ("Ann hat 3 Äpfel und kauft 4. Wie viele hat sie?", "7"),
        ("Ein Buch kostet 12 Euro. Was kosten 100 Bücher?", "1,200"),
    ],
    "zh": [("安有 3 个苹果，又买了 4 个。她有几个？", "7"), ("一本书 12 欧元。100 本多少钱？", "1,200")],
}
# promptID, pairID, gold label, and then the premise and hypothesis in each language.
SENTENCES = [
    (
        "1",
        "11",
        "contradiction",
        {
            "en": ("It has rained since Monday.", "On Tuesday there was only sunshine."),
            "de": ("Es regnet seit Montag.", "Am Dienstag schien nur die Sonne."),
            "zh": ("从星期一起一直下雨。", "星期二一直是晴天。"),
        },
    ),
    (
        "1",
        "12",
        "neutral",
        {
            "en": ("It has rained since Monday.", "The harvest will be good."),
            "de": ("Es regnet seit Montag.", "Die Ernte wird gut."),
            "zh": ("从星期一起一直下雨。", "收成会很好。"),
        },
    ),
    (
        "2",
        "21",
        "entailment",
        {
            "en": ('He said, "No one is at home."', "Somebody spoke."),
            "de": ("Er sagte: „Niemand ist zu Hause.“", "Jemand hat gesprochen."),
            "zh": ("他说：“家里没有人。”", "有人说话了。"),
        },
    ),
]
XNLI_COLUMNS = (
    "language gold_label sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse sentence1 "
    "sentence2 promptID pairID genre label1 label2 label3 label4 label5 sentence1_tokenized sentence2_tokenized match"
).split()


def mpararel(folder: Path) -> Path:
    """Write the relations P36, in four languages, and P37, in three; their Turkish patterns do not end in [Y]."""
    for relation, facts in (("P36", CAPITALS), ("P37", TONGUES)):
        for language, patterns in PATTERNS[relation].items():
            rows = [
                {
                    "sub_uri": subject,
                    "obj_uri": object,
                    "obj_label": labels[language][1],
                    "sub_label": labels[language][0],
                }
                | {"lineid": number}
                for number, ((subject, object), labels) in enumerate(facts.items())
            ]
            name = "zh-hans" if language == "zh" else language
            write_lines(folder / "tuples" / name / f"{relation}.jsonl", rows)
            write_lines(
                folder / "patterns" / name / f"{relation}.jsonl",
                [{"pattern": pattern, "checked-by-human": False} for pattern in patterns],
            )
    return folder


def write_lines(path: Path, rows: list[dict]) -> None:
    """Write JSON lines in mParaRel's format, with blank lines at the end, as in some of its files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n\n", "utf-8")


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]


def mzsre(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for language in ("de", "th"):
        entries = [{"en": _edit(edit["en"], english=True), language: _edit(edit[language])} for edit in EDITS]
        path = folder / f"mzsre_test_duplicate_en{language}.json"
        path.write_text(json.dumps(entries, indent=1, ensure_ascii=False), "utf-8")
    return folder


def _edit(texts: list[str], *, english: bool = False) -> dict:
    src, rephrase, alt, loc, loc_ans, question, answer = texts
    return {
        "subject": "it",
        "src": src,
        "rephrase": rephrase,
        "alt": alt,
        "loc": f"nq question: {loc}" if english else loc,
        "loc_ans": loc_ans,
        "portability": {"New Question": question, "New Answer": answer},
    }


def mgsm(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for language, problems in PROBLEMS.items():
        text = "".join(f"{question}\t{answer}\n" for question, answer in problems)
        (folder / f"mgsm_{language}.tsv").write_text(text, "utf-8")
    return folder


TRANSLATIONS = {
    "eng_Latn": ["The book is new.", "It rains."],
    "deu_Latn": ["Das Buch ist neu.", "Es regnet."],
    "zho_Hans": ["这本书是新的。", "下雨了。"],
    "rus_Cyrl": ["Книга новая.", "Идёт дождь."],
}


def translations(folder: Path) -> Path:
    """Write files of parallel sentences, as in FLORES."""
    folder.mkdir(parents=True, exist_ok=True)
    for language, sentences in TRANSLATIONS.items():
        (folder / f"{language}.devtest").write_text("\n".join(sentences) + "\n", "utf-8")
    return folder


def translations_from_the_hub(folder: Path, column: str = "text") -> Path:
    """Write a data set with a configuration for each language, as FLORES+ (`text`) and FLORES-200 (`sentence`)."""
    tables = {
        language: [{"id": number, column: sentence} for number, sentence in enumerate(sentences)]
        for language, sentences in TRANSLATIONS.items()
    }
    return _hub_copy(folder, tables)


def xnli(path: Path) -> Path:
    """Write all languages one after the other, as in xnli.test.tsv: unquoted, though sentences contain quotes."""
    lines = ["\t".join(XNLI_COLUMNS)]
    for language in ("de", "en", "zh"):
        for prompt_id, pair_id, label, texts in SENTENCES:
            premise, hypothesis = texts[language]
            cells = dict.fromkeys(XNLI_COLUMNS, "") | {"language": language, "gold_label": label}
            cells |= {"sentence1": premise, "sentence2": hypothesis, "promptID": prompt_id, "pairID": pair_id}
            cells |= {"genre": "facetoface", "label1": label, "match": "True"}
            lines.append("\t".join(cells[column] for column in XNLI_COLUMNS))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def _hub_copy(folder: Path, tables: dict[str, list[dict]]) -> Path:
    """Write the files of a data set as `hf download` does: a card that names the configurations, and their files."""
    card = ["---", "configs:"]
    for config, rows in tables.items():
        path = folder / config / "test-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_parquet(path)
        card += [f"- config_name: {config}", "  data_files:", "  - split: test", f"    path: {config}/test-*"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]), "utf-8")
    return folder


def xnli_from_the_hub(folder: Path) -> Path:
    labels = ["entailment", "neutral", "contradiction"]
    rows = [
        {
            "premise": {language: premise for language, (premise, _) in texts.items()},
            "hypothesis": {"language": list(texts), "translation": [hypothesis for _, hypothesis in texts.values()]},
            "label": labels.index(label),
        }
        for _, _, label, texts in SENTENCES
    ]
    return _hub_copy(folder, {"all_languages": rows})


def mgsm_from_the_hub(folder: Path) -> Path:
    tables = {
        language: [
            {
                "question": question,
                "answer": None,
                "answer_number": int(answer.replace(",", "")),
                "equation_solution": None,
            }
            for question, answer in problems
        ]
        for language, problems in PROBLEMS.items()
    }
    return _hub_copy(folder, tables)


def mpararel_from_the_hub(folder: Path) -> Path:
    """Write the authors' autoregressive version: patterns without their final [Y], one row for each pair."""
    rows = [
        {"id": f"{language}_P36_{subject}_{number}", "language": "zh-hans" if language == "zh" else language}
        | {"relation": "P36", "template": pattern.removesuffix("[Y]").strip(), "template_id": number}
        | {"query": "", "sub_uri": subject, "obj_uri": object, "sub_label": labels[language][0]}
        | {"obj_label": [labels[language][1], "another name"]}
        for language, patterns in PATTERNS["P36"].items()
        for (subject, object), labels in CAPITALS.items()
        for number, pattern in enumerate(pattern for pattern in patterns if pattern.endswith("[Y]"))
    ]
    path = folder / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(path)
    return folder


def mzsre_from_the_hub(folder: Path) -> Path:
    rows = [{language: _edit(texts, english=language == "en") for language, texts in edit.items()} for edit in EDITS]
    return _hub_copy(folder, {"default": rows})


def counts(prompts: ns.ParallelPrompts) -> dict[tuple[str, str, str], int]:
    table = prompts.report
    return {(row.language, row.outcome, row.reason): row.count for row in table.itertuples(index=False)}


def damaged(path: Path, number: int, line: str | bytes | None) -> None:
    """Replace one line of a file; None cuts the line off in the middle."""
    lines: list[bytes] = path.read_bytes().split(b"\n")
    new = lines[number - 1][: len(lines[number - 1]) // 2] if line is None else line
    lines[number - 1] = new.encode() if isinstance(new, str) else new
    path.write_bytes(b"\n".join(lines))

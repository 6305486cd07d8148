"""Real data in its original format, where it lies beside the checkout; the suite needs none of it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import tl_neuronshare as ns

DATA = Path(__file__).parents[2] / "shared" / "data"
MPARAREL = DATA / "mpararel"
LANGUAGES = ["de", "en", "es", "fr", "pt", "ru", "th", "tr", "vi", "zh-hans"]

TASKS = {
    "P36": ("fact_probing", "mpararel", {"relations": "P36", "languages": "all"}, "choice", 140, 10),
    "P37": ("fact_probing", "mpararel", {"relations": "P37", "form": "cloze", "languages": "all"}, "choice", 181, 10),
    "P1376": (
        "fact_probing",
        "mpararel",
        {"relations": "P1376", "form": "cloze", "languages": "all"},
        "choice",
        155,
        10,
    ),
    "en->xx": ("knowledge_editing", "mzsre", {"direction": "en->xx", "languages": "all"}, "exact", 100, 10),
    "xx->en": ("knowledge_editing", "mzsre", {"direction": "xx->en"}, "exact", 100, 9),
    "mgsm": ("mgsm", "mgsm", {}, "number", 250, 7),
}

pytestmark = pytest.mark.skipif(not MPARAREL.is_dir(), reason="the data is not beside the checkout")


def lines(kind: str, language: str) -> list[dict[str, str]]:
    text = (MPARAREL / kind / language / "P36.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]  # splitlines would split within labels, at U+0085


def capitals() -> pd.DataFrame:
    """Capitals in ten languages, joined by subject and object, asked with a pattern that ends in the answer."""
    tables = []
    for language in LANGUAGES:
        table = pd.DataFrame(lines("tuples", language)).drop_duplicates(["sub_uri", "obj_uri"])
        pattern = next(
            row["pattern"] for row in lines("patterns", language) if row["pattern"].rstrip(" .").endswith("[Y]")
        )
        stem = pattern.rstrip(" .").removesuffix("[Y]")
        table["prompt"] = [stem.replace("[X]", label).rstrip() for label in table["sub_label"]]
        table["answer"] = [" " * stem.endswith(" ") + label for label in table["obj_label"]]
        table["example"] = table["sub_uri"] + "/" + table["obj_uri"]
        tables.append(table.assign(language=language))
    frame = pd.concat(tables)
    in_all = frame.groupby("example")["language"].nunique() == len(LANGUAGES)
    return frame[frame["example"].map(in_all)][["example", "language", "prompt", "answer"]]


def test_the_reader_gives_what_a_join_by_hand_gives():
    by_hand = ns.ParallelPrompts.from_frame(capitals())
    assert len(by_hand) == 140
    prompts = ns.tasks.fact_probing(MPARAREL, relations="P36", languages=LANGUAGES, pattern=0)
    assert prompts.languages == (*LANGUAGES[:-1], "zh")
    for texts, expected in ((prompts.prompts, by_hand.prompts), (prompts.answers, by_hand.answers)):
        for language in LANGUAGES:
            found = zip(prompts.examples, texts["zh" if language == "zh-hans" else language], strict=True)
            assert {example.removeprefix("P36/"): text for example, text in found} == dict(
                zip(by_hand.examples, expected[language], strict=True)
            )
    index = prompts.examples.index("P36/Q227/Q9248")  # Azerbaijan, Baku
    assert "Aserbaidschan" in prompts.prompts["de"][index]
    assert prompts.answers["en"][index] == " Baku"
    assert prompts.answers["zh"][index] == "巴库"


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_loaded_categorised_and_ablated(task, animals):
    bloom = animals.lens("bloom", "bridge")
    reader, folder, options, scoring, n_examples, n_languages = TASKS[task]
    prompts = getattr(ns.tasks, reader)(DATA / folder, **options)
    print(prompts, prompts.report.to_string(index=False), sep="\n")
    assert (len(prompts), len(prompts.languages)) == (n_examples, n_languages)
    kept, dropped = (prompts.report[prompts.report["outcome"] == outcome] for outcome in ("kept", "dropped"))
    for language in prompts.languages:
        rows = [int(table.loc[table["language"] == language, "count"].sum()) for table in (kept, dropped)]
        assert rows[0] - rows[1] == n_examples
    sharing = ns.categorise(bloom, prompts[:40])
    assert sharing.summary().groupby("layer")["mean"].sum().round(6).eq(100).all()
    study = ns.ablation_study(
        bloom,
        prompts[:1],
        sharing[:1],
        types=["all-shared"],
        controls=["random"],
        seeds=[0],
        scoring=scoring,
        n_resamples=20,
    )
    assert set(study["ablated"]) == {"none", "type", "random"}
    assert study.loc[study["metric"] == "log_prob", "value"].lt(0).all()


@pytest.mark.parametrize(
    ("relation", "lacking"),
    [(relation, {"tr"}) for relation in ("P17", "P30", "P37", "P103", "P495")] + [("P1376", {"tr", "zh"})],
)
def test_languages_that_have_no_pattern_for_a_continuation(relation, lacking):
    with pytest.warns(UserWarning, match="left out tr: no pattern"):
        prompts = ns.tasks.fact_probing(MPARAREL, relations=relation, languages="all")
    left = {"zh" if language == "zh-hans" else language for language in LANGUAGES} - set(prompts.languages)
    assert left == lacking


# For each language of LAPE's published neurons, how many there are in all layers.
LAPE = {
    "BLOOM-7B": (16384, {"en": 445, "zh": 653, "fr": 680, "es": 918, "vi": 551, "id": 2823}, 30),
    "LLaMA-2-7B": (11008, {"en": 95, "zh": 583, "fr": 1022, "es": 838, "vi": 836, "id": 1068, "ja": 582}, 32),
}


@pytest.mark.skipif(not (DATA / "lape").is_dir(), reason="LAPE's neurons are not beside the checkout")
@pytest.mark.parametrize("name", LAPE)
def test_published_neurons_are_those_of_the_table(name):
    d_mlp, counts, n_layers = LAPE[name]
    masks = ns.load_lape_neurons(DATA / "lape" / f"{name}.neuron.pth", d_mlp=d_mlp)
    table = ns.methods.sizes({"lape": masks}, is_neuron=torch.ones(n_layers, d_mlp, dtype=torch.bool))
    whole = table[table["layer"].astype(str) == "all"].set_index("language")["neurons"]
    assert whole.to_dict() == counts
    assert sum(masks.values()).bool().sum() == round(0.01 * n_layers * d_mlp)  # each neuron counted once
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    assert all(f"| {n:,} |" in page for n in counts.values())

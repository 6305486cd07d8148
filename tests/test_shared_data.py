"""Real data in its original format, where it lies beside the checkout; the suite needs none of it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import tl_neuronshare as ns

MPARAREL = Path(__file__).parents[2] / "shared" / "data" / "mpararel"
LANGUAGES = ["de", "en", "es", "fr", "pt", "ru", "th", "tr", "vi", "zh-hans"]

pytestmark = pytest.mark.skipif(not MPARAREL.is_dir(), reason="mParaRel is not beside the checkout")


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


def test_a_frame_joined_by_hand_is_categorised(animals, backend):
    prompts = ns.ParallelPrompts.from_frame(capitals(), name="P36")
    assert len(prompts) > 100
    assert set(prompts.languages) == set(LANGUAGES)
    index = prompts.examples.index("Q227/Q9248")  # Azerbaijan, Baku
    assert "Aserbaidschan" in prompts.prompts["de"][index]
    assert prompts.answers["en"][index] == " Baku"
    assert prompts.answers["zh-hans"][index].strip() == "巴库"
    sharing = ns.categorise(animals.lens("bloom", backend), prompts)
    assert len(sharing) == len(prompts)
    assert sharing.summary().groupby("layer")["mean"].sum().round(6).eq(100).all()
    alone = ns.categorise(animals.lens("bloom", backend), prompts[index : index + 1])
    assert (alone.activated()[0] != sharing.activated()[index]).sum() <= sharing.activated()[0].numel() // 100_000

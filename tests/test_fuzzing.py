"""Damaged files: every reader gives a result or says what is wrong with the file, soon and in little memory."""

from __future__ import annotations

import os
import random
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tl_neuronshare as ns
from support import sources

pytestmark = pytest.mark.usefixtures("as_users_run_it")

READERS: dict[str, Callable[[Path], Any]] = {
    "sharing": ns.NeuronSharing.load,
    "rates": ns.NeuronRates.load,
    "histograms": ns.ValueHistograms.load,
    "masks": ns.load_masks,
    "lape": partial(ns.load_lape_neurons, d_mlp=8, languages=["en", "de"]),
    "table.csv": ns.tasks.table,
    "table.tsv": ns.tasks.table,
    "table.jsonl": ns.tasks.table,
    "mpararel": ns.tasks.fact_probing,
    "mzsre": ns.tasks.knowledge_editing,
    "mgsm": ns.tasks.mgsm,
    "xnli": ns.tasks.xnli,
    "devtest": ns.tasks.translation,
}
# What breaks parsers: ends, nesting, huge and odd numbers, half a surrogate, other encodings, quotes, separators.
PIECES = [
    *(b"", b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b"\r", b"\t", b",", b'"', b"|", b"{", b"}", b"[", b"]", b":"),
    *(b"9" * 5000, b"[" * 3000, b'{"a":' * 2000, b'"\\ud800"', b"null", b"-1", b"1e999", b"NaN", b"true", b"[]", b"{}"),
    *("\u200b".encode(), "İ".encode(), b"\xef\xbb\xbf", b"__metadata__", b"BF16", b"\x80\x02c", b"PK\x03\x04"),
]
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(PIECES) | st.binary(max_size=8)),
    min_size=1,
    max_size=4,
)


def damaged(data: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """The data with some places replaced; a replacement by nothing, of much, cuts the end off."""
    for place, length, piece in edits:
        start = round(place * len(data))
        end = len(data) if length == 12 and not piece else start + length
        data = data[:start] + piece + data[end:]
    return data


def right_files(folder: Path) -> dict[str, list[Path]]:
    """For each reader the files that it reads; its source is the file, or the folder of its name."""
    activated = torch.tensor([[[[True, False, True]], [[True, True, False]]]] * 3)
    ns.NeuronSharing.from_activated(activated, languages=["en", "de"], metadata={"a": [1]}).save(folder / "sharing")
    counts = torch.tensor([[[1, 2]], [[3, 0]]])
    ns.NeuronRates(counts, [4, 5], languages=["en", "de"], widths=[2]).save(folder / "rates")
    ends = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    binned = torch.ones(2, 1, 2, 4, dtype=torch.int32)
    ns.ValueHistograms(binned, *ends, languages=["en", "de"], widths=[2]).save(folder / "histograms")
    ns.save_masks({"en": torch.tensor([[True, False]]), "de": torch.tensor([[False, False]])}, folder / "masks")
    torch.save([[torch.tensor([0, 3])], [torch.tensor([1])]], folder / "lape")
    rows = "example{0}language{0}prompt{0}answer\n1{0}en{0}a b{0} c\n1{0}de{0}d{0} e\n"
    (folder / "table.csv").write_text(rows.format(","), "utf-8")
    (folder / "table.tsv").write_text(rows.format("\t"), "utf-8")
    line = '{{"example": 1, "language": "{}", "prompt": "a", "answer": " b", "choices": [" b", " c"]}}\n'
    (folder / "table.jsonl").write_text(line.format("en") + line.format("de"), "utf-8")
    sources.mpararel(folder / "mpararel")
    sources.mzsre(folder / "mzsre")
    sources.mgsm(folder / "mgsm")
    sources.xnli(folder / "xnli")
    sources.translations(folder / "devtest")
    found = {name: [folder / name] for name in READERS}
    return {
        name: sorted(file for file in paths[0].rglob("*") if file.is_file()) if paths[0].is_dir() else paths
        for name, paths in found.items()
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, list[tuple[Path, bytes]]]:
    """For each reader its files, and what is in them."""
    folder = tmp_path_factory.mktemp("right")
    return {name: [(file, file.read_bytes()) for file in some] for name, some in right_files(folder).items()}


def source_of(name: str, file: Path) -> Path:
    """What the reader is given: the file, or the folder of its name."""
    return next(parent for parent in (file, *file.parents) if parent.name == name)


def try_damage(name: str, file: Path, right: bytes, edits: list[tuple[float, int, bytes]]) -> bool:
    """Read a damaged file; whether it was refused. Whatever else is raised fails, and so do much time and memory."""
    source, data = source_of(name, file), damaged(right, edits)
    file.write_bytes(data)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    try:
        READERS[name](source)
    except ns.NeuronShareError:
        return True
    finally:
        file.write_bytes(right)
        took = time.monotonic() - start
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert took < 20
        assert grown < 10 * len(data) + 64 * 2**20
    return False


@pytest.mark.parametrize("name", READERS)
def test_right_files_are_read(files, name):
    assert READERS[name](source_of(name, files[name][0][0])) is not None


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(files, name):
    refused = []

    @settings(max_examples=50)
    @given(which=st.integers(0, 10**6), edits=EDITS)
    def try_it(which, edits):
        file, right = files[name][which % len(files[name])]
        refused.append(try_damage(name, file, right, edits))

    try_it()
    assert any(refused)


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_for_long(files, name):
    """As many as there are in FUZZ_SECONDS, ten minutes by default."""
    draw = random.Random(name)
    end, n_tried, n_refused = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "600")), 0, 0
    while time.monotonic() < end:
        file, right = draw.choice(files[name])
        edits = [
            (draw.random(), draw.randrange(13), draw.choice([*PIECES, draw.randbytes(draw.randrange(9))]))
            for _ in range(draw.randrange(1, 5))
        ]
        n_tried += 1
        n_refused += try_damage(name, file, right, edits)
    assert n_refused
    print(f"\nfuzzing {name}: {n_tried} damaged files, {n_refused} refused, the others read")

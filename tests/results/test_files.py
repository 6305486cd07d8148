"""Files: written whole or not at all, in a stream, and read where they lie."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tl_neuronshare as ns
from support.folders import said_in_a_read_only_folder
from tl_neuronshare.results.files import Stream, read_tensors, write_tensors

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
]  # fmt: skip


def read(path):
    return read_tensors(path, lambda tensors, header: (tensors, header), kind="test/1")


def test_the_library_reads_what_is_written(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{dtype} {shape}": (100 * torch.rand(shape, generator=generator)).to(dtype)
        for dtype in DTYPES
        for shape in ((3, 5), (7,), (), (0, 4))
    }
    tensors["transposed"] = torch.arange(60).reshape(3, 20).T
    write_tensors(tensors, tmp_path / "file", kind="test/1", header={"text": "中", "list": [1, None]})
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert file.metadata() == {"format": "test/1", "text": '"\\u4e2d"', "list": "[1, null]"}
    for found in (load_file(tmp_path / "file"), read(tmp_path / "file")[0]):
        assert set(found) == set(tensors)
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
    assert read(tmp_path / "file")[1] == {"text": "中", "list": [1, None]}


def test_it_is_written_as_the_library_writes_it(tmp_path):
    tensors = {"b": torch.arange(5), "a": torch.ones(3, dtype=torch.bool), "c": torch.rand(2, 2)}
    write_tensors(tensors, tmp_path / "ours", kind="test/1")
    save_file(tensors, tmp_path / "theirs", {"format": "test/1"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_stream_is_the_tensor_that_its_pieces_make(tmp_path):
    whole = torch.arange(70).reshape(10, 7)
    pieces = (whole[start : start + 4] for start in range(0, 10, 4))
    write_tensors({"x": Stream((10, 7), torch.int64, pieces), "y": whole}, tmp_path / "file", kind="test/1")
    tensors, _ = read(tmp_path / "file")
    assert torch.equal(tensors["x"], whole)
    assert torch.equal(tensors["y"], whole)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([torch.zeros(3, 7)], "The pieces of 'x' have 3 rows in all, not 10; give all"),
        ([torch.zeros(10, 6)], r"A piece of 'x' is torch.float32 of shape \(10, 6\); torch.float32 of shape \(10, 7\)"),
        ([torch.zeros(10, 7).double()], "A piece of 'x' is torch.float64"),
    ],
)
def test_pieces_that_do_not_fit_are_refused_and_leave_nothing(tmp_path, pieces, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        write_tensors({"x": Stream((10, 7), torch.float32, pieces)}, tmp_path / "file", kind="test/1")
    assert not list(tmp_path.iterdir())


def test_what_stops_half_way_leaves_the_older_file(tmp_path):
    write_tensors({"x": torch.ones(3)}, tmp_path / "file", kind="test/1")

    def interrupted():
        yield torch.zeros(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tensors({"x": Stream((3,), torch.float32, interrupted())}, tmp_path / "file", kind="test/1")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert read(tmp_path / "file")[0]["x"].tolist() == [1, 1, 1]


def test_what_is_read_stays_as_it_was(tmp_path):
    """Whoever writes to the tensor does not change the file, and whoever replaces the file not the tensor."""
    path = tmp_path / "file"
    write_tensors({"x": torch.ones(3), "y": torch.zeros(3)}, path, kind="test/1")
    tensors, _ = read(path)
    tensors["x"][0] = 5
    assert read(path)[0]["x"].tolist() == [1, 1, 1]
    write_tensors({"x": torch.full((2,), 7.0)}, path, kind="test/1")
    assert read(path)[0]["x"].tolist() == [7, 7]
    assert (tensors["x"].tolist(), tensors["y"].tolist()) == ([5, 1, 1], [0, 0, 0])
    path.unlink()
    assert tensors["y"].tolist() == [0, 0, 0]


READING = """
import sys, torch
from tl_neuronshare.results.files import Stream, read_tensors, write_tensors
def memory(what):
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(what))) / 1024
ones = torch.ones(1 << 20, dtype=torch.uint8)
ones.sum()
before, peak = memory("RssAnon"), memory("VmHWM")
write_tensors({"x": Stream((128 << 20,), torch.uint8, (ones for _ in range(128)))}, sys.argv[1], kind="test/1")
print(memory("VmHWM") - peak)
x = read_tensors(sys.argv[1], lambda tensors, header: tensors["x"], kind="test/1")
assert x.sum() == 128 << 20
print(memory("RssAnon") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_file_needs_no_memory(tmp_path):
    run = [sys.executable, "-c", READING, str(tmp_path / "file")]
    writing, reading = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    assert float(writing) < 16  # MiB, of 128
    assert float(reading) < 16


FULL_DISK = """
import resource, signal, sys, torch
import tl_neuronshare as ns
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # no file may grow beyond: what a full disk does
toy = ns.NeuronSharing.from_activated(torch.rand(20, 2, 1, 900) > 0.5, languages=["en", "de"])
for save in (toy.save, lambda path: ns.save_masks({"one": torch.eye(99, dtype=torch.bool)}, path)):
    try:
        save(sys.argv[1])
    except ns.NeuronShareError as error:
        print(error)
"""


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    run = [sys.executable, "-c", FULL_DISK, str(tmp_path / "file")]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 2
    assert all(
        "file' cannot be written (" in line and "is the disk full, or the folder read-only?" in line for line in said
    )
    assert not list(tmp_path.iterdir())


TOY = """
import torch
import tl_neuronshare as ns
toy = ns.NeuronSharing.from_activated(torch.rand(2, 2, 1, 9) > 0.5, languages=["en", "de"])
"""
SAVE = """
try:
    toy.save(folder + "/file")
except ns.NeuronShareError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="folders have other permissions")
def test_a_read_only_folder_is_said():
    said, left = said_in_a_read_only_folder(TOY, SAVE)
    assert "Permission denied" in said
    assert "is the disk full, or the folder read-only?" in said
    assert left == "[]"

"""Records on disk: whole or not there, of one call only, and written by one process only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tl_neuronshare as ns
from support.folders import said_in_a_read_only_folder
from tl_neuronshare.running.shards import Shards

ABOUT = {"call": "test", "model": {"name": "tiny", "layers": 3}, "seeds": [0, 1], "threshold": None}
RECORDS = {
    number: {"bits": torch.arange(number, number + 6, dtype=torch.uint8).reshape(2, 3), "x": torch.rand(2, number).T}
    for number in range(3)
}


def written(folder: Path, records=RECORDS, *, name="1", stage="scores") -> Path:
    """Write records, and return the process's file."""
    with Shards(folder, ABOUT, name) as shards:
        for number, record in records.items():
            shards.add(stage, number, record)
    return folder / f"records-{name}.bin"


def found(folder: Path, *, name="1", stage="scores"):
    with Shards(folder, ABOUT, name) as shards:
        return {number: shards.read(stage, number) for number in sorted(shards.known(stage))}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for number, record in expected.items():
        assert set(found[number]) == set(record)
        for key, tensor in record.items():
            assert found[number][key].dtype == tensor.dtype
            assert torch.equal(found[number][key], tensor)


def test_records_are_read_back_in_the_same_run_and_in_later_ones(tmp_path):
    with Shards(tmp_path / "a" / "b", ABOUT, "1") as shards:
        for number, record in RECORDS.items():
            shards.add("scores", number, record)
            assert shards.known("scores") == set(range(number + 1))
        shards.add("other", 5, RECORDS[0])
        assert_same({number: shards.read("scores", number) for number in range(3)}, RECORDS)
        assert shards.known("nothing") == set()
    assert_same(found(tmp_path / "a" / "b"), RECORDS)
    assert_same(found(tmp_path / "a" / "b", name="2", stage="other"), {5: RECORDS[0]})
    written(tmp_path / "a" / "b", {7: RECORDS[1]})
    assert_same(found(tmp_path / "a" / "b"), RECORDS | {7: RECORDS[1]})


def test_every_dtype_and_shape(tmp_path):
    dtypes = (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32)
    record = {
        f"{dtype} {shape}": torch.ones(shape, dtype=dtype) for dtype in dtypes for shape in ((2, 3), (0, 4), (1,))
    }
    whole = torch.arange(12).reshape(3, 4)
    record |= {"columns": whole[:, 1:3], "others": whole[:, 3:], "transposed": whole.T}
    written(tmp_path, {0: record})
    assert_same(found(tmp_path), {0: record})


def test_a_record_that_is_cut_anywhere_is_not_there_and_what_follows_it_is_written_well(tmp_path):
    file = written(tmp_path)
    content = file.read_bytes()
    ends = [0]
    for number, record in RECORDS.items():
        file.unlink()
        ends.append(ends[-1] + written(tmp_path, {number: record}).stat().st_size)
    assert ends[-1] == len(content)
    for length in range(len(content)):
        file.write_bytes(content[:length])
        whole = sum(end <= length for end in ends[1:])
        with Shards(tmp_path, ABOUT, "1") as shards:
            assert shards.known("scores") == set(range(whole))
            assert file.stat().st_size == ends[whole]
            shards.add("scores", 9, RECORDS[0])
        assert_same(found(tmp_path), {number: RECORDS[number] for number in range(whole)} | {9: RECORDS[0]})


def test_a_record_with_a_flipped_bit_is_not_there(tmp_path):
    """Nor are those after it in the same file, since nothing says where they begin."""
    file = written(tmp_path, {number: RECORDS[number] for number in range(2)})
    content = file.read_bytes()
    file.unlink()
    first = written(tmp_path, {0: RECORDS[0]}).stat().st_size
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        assert_same(found(tmp_path), {0: RECORDS[0]} if place >= first else {})
        assert (file.stat().st_size if file.exists() else 0) == (first if place >= first else 0)


def test_a_torn_file_of_a_different_process_is_read_up_to_there_and_left(tmp_path):
    file = written(tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert_same(found(tmp_path, name="2"), {number: RECORDS[number] for number in range(2)})
    assert file.read_bytes() == content[:-1]


def test_what_others_write_is_seen_when_one_looks(tmp_path):
    with Shards(tmp_path, ABOUT, "1") as one, Shards(tmp_path, ABOUT, "2") as other:
        one.add("scores", 0, RECORDS[0])
        other.add("scores", 1, RECORDS[1])
        assert (one.known("scores"), other.known("scores")) == ({0}, {1})
        one.look()
        assert one.known("scores") == {0, 1}
        assert_same({1: one.read("scores", 1)}, {1: RECORDS[1]})


@pytest.mark.parametrize("more", [{}, {0: RECORDS[1]}, {1: RECORDS[1], 2: RECORDS[2]}])
def test_records_that_a_different_call_has_removed_are_missed(tmp_path, more):
    """Whatever that call has written since then into its file, also of the same length."""
    with Shards(tmp_path, ABOUT, "1") as other:
        other.add("first", 0, RECORDS[0])
        with Shards(tmp_path, ABOUT, "2") as one:
            assert one.known("first") == {0}
            other.forget(["first"])
            for number, record in more.items():
                other.add("other", number, record)
            with pytest.raises(
                ns.NeuronShareError, match="A different call has joined the records .* run the same again"
            ):
                one.read("first", 0)


def test_a_second_process_with_the_same_file_is_refused(tmp_path):
    with Shards(tmp_path, ABOUT, "1"):
        with pytest.raises(ns.NeuronShareError, match="A different process is writing to the folder .* wait until it"):
            Shards(tmp_path, ABOUT, "1")
        with Shards(tmp_path, ABOUT, "2"):
            pass
    with Shards(tmp_path, ABOUT, "1"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["about.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"call": "other"}, "its call is 'test', and here it is 'other'; name a different folder, or remove that one"),
        ({"model": {"name": "tiny", "layers": 4}}, "its model.layers is 3, and here it is 4"),
        ({"seeds": [0]}, r"its seeds is \[0, 1\], and here it is \[0\]"),
        ({"more": 1}, "its more is None, and here it is 1"),
        ({"threshold": 0.5}, "its threshold is None, and here it is 0.5"),
    ],
)
def test_a_folder_of_a_different_call_is_refused_with_what_differs(tmp_path, change, message):
    written(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ns.NeuronShareError, match=message):
        Shards(tmp_path, ABOUT | change, "1")
    assert before == {file: file.read_bytes() for file in tmp_path.iterdir()}


def test_a_call_that_json_cannot_say_is_refused(tmp_path):
    with pytest.raises(ns.NeuronShareError, match=r"cannot say which call it belongs to \(.*Path"):
        Shards(tmp_path / "x", ABOUT | {"made_by": tmp_path}, "1")
    assert not (tmp_path / "x").exists()


def test_a_number_that_is_not_equal_to_itself_is_the_same_call(tmp_path):
    for _ in range(2):
        with Shards(tmp_path, ABOUT | {"share": float("nan")}, "1"):
            pass


def test_a_name_that_no_file_system_takes_is_said(tmp_path):
    with pytest.raises(ns.NeuronShareError, match="cannot be written to"):
        Shards(tmp_path / ("x" * 5000), ABOUT, "1")


def test_foreign_folders_and_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ns.NeuronShareError, match="holds other files \\(notes.txt\\); name a new folder"):
        Shards(tmp_path, ABOUT, "1")
    with pytest.raises(ns.NeuronShareError, match="notes.txt' is a file, and not a folder"):
        Shards(tmp_path / "notes.txt", ABOUT, "1")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "about.json").write_text("{")
    with pytest.raises(ns.NeuronShareError, match="about.json' cannot be read .*; remove the folder"):
        Shards(tmp_path, ABOUT, "1")


@pytest.mark.parametrize("name", ["thesis.part", "records-1.bin"])
def test_what_looks_like_ours_is_foreign_in_a_folder_that_belongs_to_nothing(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ns.NeuronShareError, match=f"holds other files \\({name}\\)"):
        Shards(tmp_path, ABOUT, "1")
    assert (tmp_path / name).read_text() == "mine"


def test_a_folder_that_was_killed_before_it_belonged_to_anything_is_used(tmp_path):
    (tmp_path / "about.json.1.part").write_text("{")
    (tmp_path / ".DS_Store").write_text("")
    assert_same(found(tmp_path), {})


def test_only_half_written_files_of_ours_are_removed(tmp_path):
    ours = ("about.json.1.part", "records-2-segment-000000.safetensors.part")
    with Shards(tmp_path, ABOUT, "1") as shards:
        for name in (*ours, "thesis.part", "result"):
            (tmp_path / name).write_text("half")
        shards.remove([tmp_path / "result"])
    assert {file.name for file in tmp_path.iterdir()} == {"about.json", "thesis.part"}


def test_only_files_without_other_records_are_removed(tmp_path):
    """What a part gave is written elsewhere then, and other parts, and other processes, still need theirs."""
    written(tmp_path, name="ended", stage="first")
    written(tmp_path, name="both", stage="first")
    written(tmp_path, name="both", stage="second")
    with Shards(tmp_path, ABOUT, "at-work") as other, Shards(tmp_path, ABOUT, "own") as own:
        other.add("first", 5, RECORDS[0])
        own.add("first", 6, RECORDS[0])
        own.forget({"first"})
        names = {file.name: file.stat().st_size for file in tmp_path.glob("records*")}
        assert set(names) == {"records-at-work.bin", "records-both.bin", "records-own.bin"}
        assert names["records-own.bin"] == 0
        assert (own.known("first"), own.known("second")) == (set(), {0, 1, 2})
        own.add("third", 0, RECORDS[2])
        assert_same({0: own.read("third", 0)}, {0: RECORDS[2]})
    assert_same(found(tmp_path, stage="second"), RECORDS)
    assert_same(found(tmp_path, stage="third"), {0: RECORDS[2]})
    with Shards(tmp_path, ABOUT, "own") as own:
        own.forget()
    assert [file.name for file in tmp_path.iterdir()] == ["about.json"]


def test_records_that_come_after_the_last_look_are_not_removed(tmp_path):
    with Shards(tmp_path, ABOUT, "own") as own:
        written(tmp_path, name="ended", stage="second")
        own.forget({"first"})
    assert_same(found(tmp_path, stage="second"), RECORDS)


def test_a_file_is_put_whole_or_not_at_all(tmp_path):
    with Shards(tmp_path, ABOUT, "1") as shards:
        shards.put("result", lambda path: path.write_text("whole"))

        def interrupted(path):
            path.write_text("half")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            shards.put("result", interrupted)
        assert (tmp_path / "result").read_text() == "whole"
        shards.remove([tmp_path / "result", tmp_path / "not there"])
    assert [file.name for file in tmp_path.iterdir()] == ["about.json"]


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
import tl_neuronshare as ns
from tl_neuronshare.running.shards import Shards
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))  # as a full disk does
with Shards(Path(sys.argv[1]), {"call": "test"}, "1") as shards:
    for number in range(9):
        try:
            shards.add("scores", number, {"x": torch.full((300,), number)})
        except ns.NeuronShareError as error:
            print(error)
            break
    print(sorted(shards.known("scores")))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if len(sys.argv) > 3:  # there is room again, and the same process goes on
        shards.add("scores", 5, {"x": torch.full((300,), 5)})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
@pytest.mark.parametrize("goes_on", [True, False])
def test_a_full_disk_is_said_and_what_was_written_is_kept(tmp_path, goes_on):
    run = [sys.executable, "-c", FULL_DISK, str(tmp_path / "out"), "6000", *["goes on"] * goes_on]
    said, kept = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "out' cannot be written to (File too large). What is in it is kept: make room" in said
    assert kept == "[0, 1]"
    with Shards(tmp_path / "out", {"call": "test"}, "1") as shards:
        assert shards.known("scores") == ({0, 1, 5} if goes_on else {0, 1})
        shards.add("scores", 2, {"x": torch.ones(3)})
        assert all((shards.read("scores", number)["x"] == number).all() for number in (0, 1))


IMPORTS = """
from pathlib import Path
import tl_neuronshare as ns
from tl_neuronshare.running.shards import Shards
"""
OPEN = """
for name in ("", "/new"):
    try:
        Shards(Path(folder + name), {"call": "test"}, "1")
    except ns.NeuronShareError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="folders have other permissions")
def test_a_read_only_folder_is_said():
    *said, left = said_in_a_read_only_folder(IMPORTS, OPEN)
    assert len(said) == 2
    assert all("Permission denied" in line and "make room or allow writing, and run the same" in line for line in said)
    assert left == "[]"


@pytest.mark.slow
def test_many_processes_that_begin_at_once_agree(tmp_path):
    """One of them makes the folder, whoever it is; a different call is refused by all that are later."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tl_neuronshare.running.shards import Shards\n"
        "import torch, time\n"
        "time.sleep(max(0, float(sys.argv[3]) - time.time()))\n"
        "with Shards(Path(sys.argv[1]), {'call': 'test'}, sys.argv[2]) as shards:\n"
        "    shards.add('scores', int(sys.argv[2]), {'x': torch.ones(1)})\n"
    )
    import time

    start = str(time.time() + 20)
    each = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out"), str(number), start])
        for number in range(6)
    ]
    assert [process.wait() for process in each] == [0] * 6
    with Shards(tmp_path / "out", {"call": "test"}, "0") as shards:
        assert shards.known("scores") == set(range(6))
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".json", ".bin"}

"""The folder of a run: its name, and that an old run stays until a new one is complete."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

import tl_neuronshare as ns
from tl_neuronshare import cli
from tl_neuronshare.cli import folders
from tl_neuronshare.cli.folders import RECORD, UNFINISHED, RunFolder, recorded
from tl_neuronshare.running.shards import locked

ANALYSES = [name for name in cli.COMMANDS if name not in ("verify", "reproduce")]
# For each kind of argument some values, all of which differ from the default, and from each other in what they mean.
VALUES = {
    "model": (["/a/bloom"], ["/b/bloom"], ["a/bloom"], ["a--bloom"], ["A/bloom"], ["bloom"], ["bloom-mgsm"]),
    "backend": (["hooked"], ["bridge"]),
    "device": (["cpu"], ["cuda"], ["cuda:0"]),
    "dtype": (["bfloat16"], ["float16"]),
    "target_language": (["deu_Latn"], ["eng_Latn"]),
    "task": (["world_facts"], ["xnli"], ["mgsm"]),
    "source": (
        ["None"],
        ["True"],
        ["x"],
        ["X"],
        ["a/x"],
        ["a-x"],
        ["x-limit=5"],
        ["x-chat-template"],
        ["ü"],
        ["x" * 300],
        ["x" * 301],
    ),
    "options": (["relations=P36"], ["relations=p36"], ["a=b,c"], ["a=b", "c"], ["a=1", "b=2"], ["b=2", "a=1"]),
    "chat_template": ([],),
    "languages": (["en", "de"], ["de", "en"], ["all"]),
    "limit": (["0"], ["5"], ["50"]),
    "site": (["gate"], ["up"]),
    "position": (["all"], ["-1"], ["-2"]),
    "threshold": (["0.1"], ["-0.1"], ["1e-5"]),
    "batch_size": (["4"], ["16"]),
    "seed": (["1"], ["-1"]),
    "also": (["mgsm --source mgsm"], ["mgsm --source MGSM"]),
    "others": (["a"], ["b", "a"], ["a", "b"]),
    "texts": (["a"], ["b"]),
    "thresholds": (["0"], ["0", "0.1"], ["0.1", "0"]),
    "wordings": (["pattern=1"], ["pattern=1", "pattern=2"]),
    "paraphrase": (["pattern=1"], ["pattern=2"]),
    "permutations": (["50"], ["99"]),
    "methods": (["lape"], ["lape", "parallel"]),
    "cross": (["parallel"], ["lape", "parallel"]),
    "type": (["specific"], ["non-activated"]),
    "shares": (["0.5"], ["0.5", "1"], ["1", "0.5"]),
    "share": (["0.05"], ["0.1"]),
    "measure": (["5"], ["10"]),
    "answers": (["5"], ["10"]),
    "known": (["all"], ["language"]),
    "known_by": (["pattern=1"], ["pattern=2"]),
    "masks": (["a.safetensors"], ["b.safetensors"]),
    "top_k": (["30"], ["0.1"]),
    "answer": (["all"],),
    "norm": (["full"], ["frozen"]),
    "neurons": (["40"], ["41"]),
    "types": (["all-shared"], ["specific"], ["all-shared", "specific"]),
    "controls": ([], ["random"], ["random-active"]),
    "mode": (["mean"], ["scale"]),
    "factor": (["3"], ["0.5"]),
    "seeds": (["1"], ["2"]),
    "scoring": (["choice"], ["exact"]),
    "max_new_tokens": (["4"], ["5"]),
    "stop": ([], [""], [" "], ["."], ["\t"]),
    "length_normalised": ([],),
    "ablate": (["last"], ["-1"]),
    "skip_special_tokens": ([],),
    "layers": (["0"], ["0", "1"], ["1", "0"]),
    "equal_size": ([],),
    "consistent": (["0.5"], ["0.75"]),
    "one_mask": ([],),
    "generate": ([],),
}


def folder_of(command: str, *given: str) -> Path:
    parser = cli.command(command).parser()
    return folders.default_folder(parser, parser.parse_args(given))


def test_names_of_folders():
    assert folder_of("ablation") == Path("runs/ablation/demo-demo")
    assert folder_of("ablation", "--task", "demo", "--limit", "200") == Path("runs/ablation/demo-demo")
    assert folder_of("ablation", "--seeds", "1", "--site", "gate", "--limit", "50", "--generate") == Path(
        "runs/ablation/demo-demo-limit=50-site=gate-seeds=1-generate"
    )
    assert folder_of("causal-check") == folder_of("causal-check", "--limit", "20")
    assert folder_of("reproduce", "--parts", "patterns", "--limit", "5") == Path("runs/reproduce/demo-demo-limit=5")
    cut = folder_of("patterns", "--source", "x" * 300).name
    assert len(cut) == folders.LONGEST
    assert cut.startswith("demo-demo-source=xxx")


@pytest.mark.parametrize("command", [*ANALYSES, "reproduce"])
def test_no_two_runs_that_differ_share_a_folder(command):
    """Every argument that the parser has; on file systems too that do not know capitals from small letters."""
    arguments = set(vars(cli.command(command).parser().parse_args([])))
    arguments -= {"experiment", "out", "page", "parts", "shard"}
    values = VALUES | {"extra": (["ablation --seeds 1"], ["ablation --seeds 2"])}
    assert arguments <= set(values), "tell this test values of the new argument"
    given = [[]]
    for name in arguments:
        option = {"extra": "--with"}.get(name, f"--{name.replace('_', '-')}")
        repeated = name in ("also", "extra")
        given += [[option, *words] for words in values[name]]
        given += [["--limit", "7", option, *words] for words in values[name] if name != "limit" and not repeated]
    given += [["--source", "x", "--chat-template"], ["--source", "x", "--limit", "5"]]
    names: dict[str, str] = {}
    for words in given:
        name = str(folder_of(command, *words)).lower()
        args = str(cli.command(command).parser().parse_args(words))
        assert names.setdefault(name, args) == args, (name, words)
        assert len(Path(name).name) <= folders.LONGEST
        assert set(Path(name).name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.,=+-")
        assert not name.endswith((".", "-"))
    assert len(names) > 60


@pytest.fixture
def write(tmp_path):
    """Makes a complete run in `unfinished`, not yet in its place."""

    def make(content: str, *names: str) -> RunFolder:
        run = RunFolder(tmp_path / "run").open()
        for name in names:
            (run.unfinished / name).write_text(content)
        (run.unfinished / RECORD).write_text(json.dumps({"experiment": content, "files": list(names)}))
        return run

    return make


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file() and path.name != RECORD}


def test_a_complete_run_takes_the_place_of_the_old_one_and_of_nothing_else(tmp_path, write):
    run = write("old", "a.csv", "b.csv")
    run.publish()
    run.close()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "run" / "mine").mkdir()
    run = write("new", "b.csv", "c.csv")
    assert contents(tmp_path / "run") == {"a.csv": "old", "b.csv": "old", "notes.txt": "mine"}
    run.publish()
    run.close()
    assert contents(tmp_path / "run") == {"b.csv": "new", "c.csv": "new", "notes.txt": "mine"}
    assert recorded(tmp_path / "run")["experiment"] == "new"
    assert {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()} == {"mine"}


def test_a_run_that_fails_is_removed_and_the_old_one_stays(tmp_path, write):
    run = write("old", "a.csv")
    run.publish()
    run.close()
    run = RunFolder(tmp_path / "run").open()
    (run.unfinished / "a.csv").write_text("new, incomplete")
    run.close()
    assert contents(tmp_path / "run") == {"a.csv": "old"}
    assert recorded(tmp_path / "run")["experiment"] == "old"
    assert not (tmp_path / "run" / UNFINISHED).exists()


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("step", range(6))
def test_a_kill_while_files_move_to_their_place_leaves_no_mixture(tmp_path, write, monkeypatch, step):
    run = write("old", "a.csv", "b.csv", "c.csv")
    run.publish()
    run.close()
    run = write("new", "b.csv", "c.csv", "d.csv")
    left = iter(range(step, -1, -1))

    def until_killed(original):
        def method(path, *args, **options):
            if next(left) == 0:
                raise Killed
            return original(path, *args, **options)

        return method

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(Path, name, until_killed(getattr(Path, name)))
        with pytest.raises(Killed):
            run.publish()
    run._lock.close()  # as the system does
    complete = recorded(tmp_path / "run")
    assert complete.get("experiment") == (None if step else "old")  # what is there is never taken for complete
    if complete:
        assert contents(tmp_path / "run") == dict.fromkeys(complete["files"], "old")
    RunFolder(tmp_path / "run").open().close()  # the next run
    assert contents(tmp_path / "run") == {"b.csv": "new", "c.csv": "new", "d.csv": "new"}
    assert recorded(tmp_path / "run")["experiment"] == "new"
    assert not (tmp_path / "run" / UNFINISHED).exists()


def test_files_that_no_run_wrote_are_not_overwritten(tmp_path, write):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.csv").write_text("mine")
    run = write("new", "a.csv", "b.csv")
    with pytest.raises(ns.NeuronShareError, match=r"has files that no run wrote, .*: a\.csv\. Move them away\."):
        run.publish()
    run.close()
    assert contents(tmp_path / "run") == {"a.csv": "mine"}
    assert contents(tmp_path / "run" / UNFINISHED)["a.csv"] == "new"
    with pytest.raises(ns.NeuronShareError, match="Move them away"):
        RunFolder(tmp_path / "run").open()
    (tmp_path / "run" / "a.csv").rename(tmp_path / "a.csv")
    RunFolder(tmp_path / "run").open().close()
    assert contents(tmp_path / "run") == {"a.csv": "new", "b.csv": "new"}


def test_two_runs_at_once_in_one_folder_are_refused(tmp_path):
    run = RunFolder(tmp_path / "run").open()
    with pytest.raises(ns.NeuronShareError, match="Another run is writing to the folder"):
        RunFolder(tmp_path / "run").open()
    assert run.unfinished.exists()
    run.close()
    RunFolder(tmp_path / "run").open().close()


def test_a_folder_and_a_record_that_are_not_ours_are_refused(tmp_path):
    (tmp_path / "run" / UNFINISHED).mkdir(parents=True)
    (tmp_path / "run" / UNFINISHED / "thesis.tex").write_text("mine")
    with pytest.raises(ns.NeuronShareError, match="is not the folder of a run"):
        RunFolder(tmp_path / "run").open()
    assert (tmp_path / "run" / UNFINISHED / "thesis.tex").exists()
    (tmp_path / RECORD).write_text('{"speed": 1}')
    with pytest.raises(ns.NeuronShareError, match="is not the record of a run"):
        recorded(tmp_path)


SMALL = ("--limit", 12, "--languages", "en", "de", "ru", "th")


def test_a_run_that_fails_leaves_the_older_one_as_it_was(at_once):
    assert at_once("thresholds", *SMALL, "--out", "here")[0] == 0
    before = {path.name: path.read_bytes() for path in Path("here").iterdir()}
    assert at_once("thresholds", *SMALL, "--out", "here", "--thresholds", "inf")[0] == 1
    assert {path.name: path.read_bytes() for path in Path("here").iterdir()} == before


def test_the_folder_of_somebody_s_own(tmp_path, at_once, monkeypatch):
    """It may be empty, hold other files, be a link, or the working folder itself."""
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "there" / "notes.txt").write_text("mine")
    for out in ("link", "."):
        for limit in (12, 13):
            assert at_once("thresholds", *SMALL, "--limit", limit, "--out", out)[0] == 0
            assert recorded(Path(out))["arguments"]["limit"] == limit
    assert (tmp_path / "there" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "link").is_symlink()
    assert len(list((tmp_path / "there").iterdir())) == 5


def process(*given: object, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tl_neuronshare", *map(str, given)]
    # What runs in the background of a shell ignores Ctrl-C, and so would this process.
    heeds_ctrl_c = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, text=True, preexec_fn=heeds_ctrl_c, **pipes)  # noqa: PLW1509


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_leaves_the_old_one_and_the_next_clears_up(tmp_path, at_once, end):
    assert at_once("patterns", *SMALL, "--out", "here")[0] == 0
    before = {path.name: path.read_bytes() for path in Path("here").iterdir()}
    running = process("patterns", "--limit", 0, "--out", "here", folder=tmp_path)
    while not Path("here", UNFINISHED).exists():
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    status, said = at_once("patterns", *SMALL, "--out", "here")
    assert status == 1
    assert said.startswith("error: Another run is writing to the folder 'here'")
    os.kill(running.pid, end)
    assert running.wait() != 0
    assert {path.name: path.read_bytes() for path in Path("here").iterdir() if path.is_file()} == before
    assert at_once("patterns", *SMALL, "--limit", 13, "--out", "here")[0] == 0
    assert recorded(Path("here"))["arguments"]["limit"] == 13
    assert not Path("here", UNFINISHED).exists()


def test_what_is_kept_belongs_to_a_run_wherever_it_lies(tmp_path, monkeypatch, capsys):
    """The same run goes on from it; a different one removes it, but not while others work on it."""
    monkeypatch.chdir(tmp_path)
    run = RunFolder(tmp_path / "run").open()
    kept = run.kept({"limit": 5}, alone=True)
    (kept / "study").mkdir()
    records = kept / "study" / "records-1.bin"
    records.write_text("of a batch")
    assert RunFolder(Path("run")).kept({"limit": 5}, alone=False).samefile(kept)
    with pytest.raises(ns.NeuronShareError, match="holds parts of a different run; remove it"):
        RunFolder(Path("run")).kept({"limit": 6}, alone=False)
    with records.open("a") as file:
        locked(file)
        with pytest.raises(ns.NeuronShareError, match="of a different run, which is at work; remove it"):
            RunFolder(Path("run")).kept({"limit": 6}, alone=True)
    assert records.exists()
    assert capsys.readouterr().out == ""
    RunFolder(Path("run")).kept({"limit": 6}, alone=True)
    assert not records.exists()
    assert "Removed what an unfinished, different run had left in" in capsys.readouterr().out


def test_runs_that_begin_at_the_same_moment_agree(tmp_path, monkeypatch):
    """Each has looked before the other had written."""
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    looked = folders._read_begun

    def slow(path):
        found = looked(path)
        monkeypatch.setattr(folders, "_read_begun", looked)
        first.kept({"limit": 5}, alone=False)
        return found

    monkeypatch.setattr(folders, "_read_begun", slow)
    assert second.kept({"limit": 5}, alone=False).is_dir()
    (tmp_path / "run" / UNFINISHED / "kept" / "begun.json").unlink()
    monkeypatch.setattr(folders, "_read_begun", slow)
    with pytest.raises(ns.NeuronShareError, match="A different run has begun in the folder"):
        second.kept({"limit": 6}, alone=False)
    assert not list((tmp_path / "run").rglob("*.part"))


@pytest.mark.slow
def test_a_run_goes_on_whichever_way_its_folder_is_named(tmp_path, at_once, monkeypatch):
    """What an interrupted run has kept is used by the same command with the folder's whole path."""
    run = partial(at_once, "ablation", "--limit", 4, "--languages", "en", "de", "--seeds", 1)
    assert "other parts are not done" in run("--out", "here", "--shard", "1/2")[1]
    assert "other parts are not done" not in run("--out", tmp_path / "here", "--shard", "2/2")[1]
    given = ("ablation", "--limit", 4, "--languages", "en", "de", "--seeds", 1, "--out", "here", "--shard", "1/2")
    said, _ = process(*given, folder=tmp_path).communicate()
    assert "All parts are done and joined already, in 'here'" in said


def test_a_full_disk_leaves_the_old_run(at_once, monkeypatch):
    assert at_once("patterns", *SMALL, "--out", "here")[0] == 0
    before = {path.name: path.read_bytes() for path in Path("here").iterdir()}

    def full(table, path, **_):
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    status, said = at_once("patterns", *SMALL, "--limit", 13, "--out", "here")
    assert status == 1
    assert "No space left on device. Is the disk full" in said
    assert {path.name: path.read_bytes() for path in Path("here").iterdir() if path.is_file()} == before
    assert Path("here", UNFINISHED, "kept", "categorise", "sharing.safetensors").exists()

"""Several processes, of a launch or of a job array: each ends with the result of one, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import tl_neuronshare as ns
from support.runs import KEPT, SHARED
from tl_neuronshare import launch
from tl_neuronshare.running.processes import Processes, launched

SCRIPT = Path(__file__).parents[1] / "support" / "in_a_launch.py"
ALONE = [sys.executable]
LAUNCHERS = {
    "torchrun": [*ALONE, "-m", "torch.distributed.run", "--nproc-per-node"],
    # Without `--multi_gpu`, accelerate starts processes on CPUs by MPI only.
    "accelerate": [
        *ALONE, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no",
        "--dynamo_backend", "no", "--num_processes",
    ],
}  # fmt: skip
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


def begun(run: list[str], *given: object, **variables: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(ns.__file__).parents[1])} | variables
    return subprocess.Popen(
        [*run, str(SCRIPT), *map(str, given)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )


def ended(process: subprocess.Popen[str], *, well: bool = True) -> str:
    said, _ = process.communicate(timeout=900)
    assert (process.returncode == 0) == well, said
    return said


def read(results: Path) -> dict[str, list[str]]:
    """What each run gave, in the order of the processes."""
    found: dict[str, list[str]] = {}
    for file in sorted(results.glob("*.*"), key=lambda file: (file.stem, int(file.suffix[1:]))):
        found.setdefault(file.stem, []).append(file.read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict[str, str]:
    """What one process gives."""
    results = tmp_path_factory.mktemp("one")
    ended(begun(ALONE, results))
    found = {name: said for name, (said,) in read(results).items()}
    assert set(found) == set(SHARED)
    return found


def assert_all(results: Path, one: dict[str, str], n_processes: int, names=SHARED) -> None:
    found = read(results)
    assert set(found) == set(names)
    for name in names:
        assert len(found[name]) == n_processes
        for said in found[name]:
            assert said == one[name], name


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "n_processes"), [("torchrun", 2), ("accelerate", 3)])
def test_processes_give_what_one_gives(one, tmp_path, launcher, n_processes):
    """The numbers of batches are uneven, and some plans have fewer batches than there are processes."""
    run = [*LAUNCHERS[launcher], str(n_processes)]
    ended(begun(run, tmp_path / "without"))
    assert_all(tmp_path / "without", one, n_processes)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "n_processes"), [("accelerate", 2), ("torchrun", 3)])
def test_processes_share_a_folder(one, tmp_path, launcher, n_processes):
    """Processes with a folder; a single process then opens what they kept, and runs nothing."""
    ended(begun([*LAUNCHERS[launcher], str(n_processes)], tmp_path / "with", "--out", tmp_path / "out"))
    assert_all(tmp_path / "with", one, n_processes, KEPT)
    ended(begun(ALONE, tmp_path / "opened", "--out", tmp_path / "out"))
    assert_all(tmp_path / "opened", one, 1, KEPT)
    assert sorted(file.name for file in (tmp_path / "out" / "categorise").iterdir()) == [
        "about.json",
        "sharing.safetensors",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "passes"), [("categorise", 2), ("rates", 3), ("attribute", 5), ("study", 20)])
@pytest.mark.parametrize("then", [1, 3])
def test_a_process_that_dies_ends_the_launch_and_the_run_goes_on(one, tmp_path, name, passes, then):
    out = ("--out", tmp_path / "out", "--names", name)
    ended(begun([*LAUNCHERS["torchrun"], "2"], tmp_path / "dies", "--kill", passes, *out), well=False)
    assert time.time() - (tmp_path / "dies" / "killed").stat().st_mtime < 60
    assert read(tmp_path / "dies") == {}
    run = ALONE if then == 1 else [*LAUNCHERS["torchrun"], str(then)]
    ended(begun(run, tmp_path / "then", *out))
    assert_all(tmp_path / "then", one, then, [name])


@pytest.mark.slow
def test_only_the_main_process_says_something(tmp_path):
    run = [*LAUNCHERS["torchrun"], "2", "--redirects", "3", "--log-dir", str(tmp_path / "logs")]
    names = ["categorise", "choice", "perplexity"]
    ended(begun(run, tmp_path / "results", "--most-tokens", 12, "--names", *names))
    main, other = (
        "".join(file.read_text("utf-8") for file in sorted((tmp_path / "logs").rglob(f"{rank}/*.log")))
        for rank in range(2)
    )
    assert main.count("Memory does not suffice") >= 1
    for said in ("Memory does not suffice", "categorise:", "evaluate:", "perplexity:"):
        assert said not in other
    assert len(read(tmp_path / "results")) == len(names)


@pytest.mark.slow
def test_processes_that_are_not_at_the_same_work_are_refused(tmp_path):
    ended(
        begun([*LAUNCHERS["torchrun"], "2"], tmp_path / "results", "--own-prompts", "--names", "categorise", "choice")
    )
    for each in read(tmp_path / "results").values():
        for said in each:
            assert "The processes of this launch are not at the same work; call the same function in each" in said


@pytest.mark.slow
def test_all_processes_refuse_a_folder_of_a_different_call(tmp_path):
    ended(begun(ALONE, tmp_path / "first", "--out", tmp_path / "out", "--names", "choice"))
    (tmp_path / "out" / "choice").rename(tmp_path / "out" / "exact")
    ended(
        begun([*LAUNCHERS["torchrun"], "2"], tmp_path / "then", "--out", tmp_path / "out", "--names", "exact", "choice")
    )
    found = read(tmp_path / "then")
    assert all("belongs to a different call: its scoring is 'choice'" in said for said in found["exact"])
    assert found["choice"] == 2 * read(tmp_path / "first")["choice"]  # after which all go on


@pytest.mark.slow
def test_tasks_of_an_array_one_after_the_other(one, tmp_path):
    for number in range(1, 5):
        how = ("--out", tmp_path / "out", "--shard", f"{number}/4")
        ended(begun(ALONE, tmp_path / f"{number}", *how))
        found = read(tmp_path / f"{number}")
        assert set(found) == set(KEPT)
        for name, (said,) in found.items():
            # Where there are fewer parts than tasks, an earlier one has them all.
            assert said == one[name] or (number < 4 and f"Part {number} of 4 is done and kept in" in said)
        assert number > 1 or "is done and kept in" in found["categorise"][0]
    assert_all(tmp_path / "4", one, 1, KEPT)
    ended(begun(ALONE, tmp_path / "joined", "--out", tmp_path / "out"))
    assert_all(tmp_path / "joined", one, 1, KEPT)
    assert not list((tmp_path / "out").rglob("segment*"))


@pytest.mark.slow
@pytest.mark.parametrize("run", [ALONE, [*LAUNCHERS["torchrun"], "2"]], ids=["alone", "two processes each"])
def test_tasks_of_an_array_at_the_same_time(one, tmp_path, run):
    n_tasks = 4 if run is ALONE else 2
    tasks = [
        begun(run, tmp_path / f"{number}", "--out", tmp_path / "out", "--shard", f"{number}/{n_tasks}")
        for number in range(1, n_tasks + 1)
    ]
    for task in tasks:
        ended(task)
    for number in range(1, n_tasks + 1):
        for name, each in read(tmp_path / f"{number}").items():
            assert len(set(each)) == 1
            assert each[0] == one[name] or f"Part {number} of {n_tasks} is done and kept in" in each[0]
    ended(begun(ALONE, tmp_path / "joined", "--out", tmp_path / "out"))
    assert_all(tmp_path / "joined", one, 1, KEPT)


@pytest.mark.slow
def test_an_array_that_is_cut_short_is_finished_by_one_call(one, tmp_path):
    """What a task kept of later segments and groups is not run again, nor removed with what is done."""
    ended(begun(ALONE, tmp_path / "1", "--out", tmp_path / "out", "--shard", "1/2", "--names", "categorise", "rates"))
    ended(begun(ALONE, tmp_path / "joined", "--out", tmp_path / "out", "--names", "categorise", "rates"))
    assert_all(tmp_path / "joined", one, 1, ["categorise", "rates"])


@pytest.mark.slow
def test_variables_of_a_launcher_without_a_launch(one, tmp_path):
    """A batch system's script may have them for other programs, and nobody else will come."""
    variables = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    slurm = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}
    ended(begun(ALONE, tmp_path, "--names", "categorise", "choice", **variables, **slurm))
    assert_all(tmp_path, one, 1, ["categorise", "choice"])


@pytest.fixture
def in_a_launch(monkeypatch):
    """As process 1 of 3, which a launcher has started on this machine."""
    for name, value in zip(VARIABLES, ("1", "1", "3", "127.0.0.1", "29531", "abc"), strict=True):
        monkeypatch.setenv(name, value)


def test_a_single_process_is_no_launch(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert (launch.is_launched(), launch.rank(), launch.local_rank()) == (False, 0, None)
    assert launched() == Processes()
    assert Processes().together(lambda: 5) == [5]


@pytest.mark.usefixtures("in_a_launch")
def test_what_a_launcher_says(monkeypatch, recwarn):
    assert (launch.is_launched(), launch.rank(), launch.local_rank()) == (True, 1, 1)
    launch.warn("not said")
    monkeypatch.setenv("RANK", "0")
    launch.warn("said")
    assert [str(warning.message) for warning in recwarn] == ["said"]
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert (launch.is_launched(), launch.rank(), launch.local_rank()) == (False, 0, None)
    assert launched() == Processes()


@pytest.mark.usefixtures("in_a_launch")
def test_each_process_has_its_own_gpu(animals, monkeypatch):
    from transformer_lens.model_bridge import TransformerBridge

    placed = []
    boot = TransformerBridge.boot_transformers

    def fake(name, *, device, **options):
        placed.append(device)
        return boot(name, device="cpu", **options)

    monkeypatch.setattr(TransformerBridge, "boot_transformers", fake)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    for has_gpus, device in ((False, None), (True, None), (True, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpus=has_gpus: has_gpus)
        ns.load_model(animals.directory("bloom"), backend="bridge", device=device)
    assert placed == [None, torch.device("cuda", 1), "cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ns.NeuronShareError, match="Process 1 of this launch has no GPU of its own, since there are 1;"):
        ns.load_model(animals.directory("bloom"), backend="bridge")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    ns.load_model(animals.directory("bloom"), backend="bridge")
    assert placed[-1] is None

"""The loop over batches: the order in which records are kept, and what happens if memory does not suffice."""

from __future__ import annotations

from functools import partial

import pandas as pd
import pytest
import torch

import tl_neuronshare as ns
from support.prompts import QUIZ
from support.runs import SHARED, facts, passes
from tl_neuronshare import models
from tl_neuronshare.ablation.controls import CONTROLS
from tl_neuronshare.attribution.causal import causal_check
from tl_neuronshare.errors import UnfinishedError
from tl_neuronshare.running.loop import Keeping, Loop, as_shard
from tl_neuronshare.running.plan import Plan
from tl_neuronshare.running.shards import Shards

ROWS = [[5] * length for length in (3, 1, 4, 1, 5, 2, 6)]
LACKS = {
    "torch": torch.OutOfMemoryError("Allocation on device"),
    "CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you"
    ),
    "CUDA": RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
    "driver": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "Python": MemoryError("Unable to allocate 2 GiB"),
}


@pytest.fixture
def plan(animals):
    return Plan(animals.lens("bloom", "bridge"), ROWS, batch_size=3)


def summed(batch):
    return {"sum": batch.tokens.sum(1), "rows": torch.tensor(batch.rows)}


def kept(plan, loop, compute=summed, **options):
    into = []
    loop(plan, compute, lambda rows, record: into.append((rows, record["rows"].tolist())), **options)
    return into


def test_records_are_kept_in_the_order_of_the_plan(plan, tmp_path):
    expected = [(rows, rows) for rows in plan.batches]
    assert kept(plan, Loop()) == expected
    for computed in ([0, 1, 2], []):  # the second time all are read
        numbers = []

        def compute(batch, numbers=numbers):
            numbers.append(plan.batches.index(batch.rows))
            return summed(batch)

        with Shards(tmp_path, {}, "1") as shards:
            assert kept(plan, Loop(shards=shards), compute) == expected
        assert numbers == computed


def test_records_of_other_rows_are_not_taken(plan, tmp_path):
    """The same stage with a different plan, such as of a device on which other prompts may share a batch."""
    with Shards(tmp_path, {}, "1") as shards:
        kept(plan, Loop(shards=shards))
    for other in (Plan(plan.model, ROWS, batch_size=2), Plan(plan.model, [[6], *ROWS[1:]], batch_size=3)):
        with Shards(tmp_path, {}, "1") as shards:
            assert kept(other, Loop(shards=shards)) == [(rows, rows) for rows in other.batches]


def test_parts_of_an_array_meet_in_a_folder(plan, tmp_path):
    expected = [(rows, rows) for rows in plan.batches]
    for number in (3, 1):
        with Shards(tmp_path, {}, str(number)) as shards, pytest.raises(UnfinishedError):
            kept(plan, Loop(shards=shards, shard=(number, 3)))
    with Shards(tmp_path, {}, "2") as shards:
        assert kept(plan, Loop(shards=shards, shard=(2, 3))) == expected
    with Shards(tmp_path, {}, "all") as shards:
        assert kept(plan, Loop(shards=shards), compute=pytest.fail) == expected


@pytest.mark.parametrize("n_tasks", [2, 4])
def test_many_small_plans_are_dealt_to_all_tasks_of_an_array(plan, n_tasks, tmp_path):
    computed = []
    for number in range(1, n_tasks + 1):
        with Shards(tmp_path, {}, str(number)) as shards:
            loop = Loop(shards=shards, shard=(number, n_tasks))
            for stage in range(40):
                loop.part(partial(kept, plan, loop, stage=str(stage)))
        computed.append((tmp_path / f"records-{number}.bin").stat().st_size)
    assert min(computed) > 0.5 * max(computed)


@pytest.mark.parametrize("error", LACKS.values(), ids=LACKS)
def test_a_batch_that_is_too_large_is_halved_and_so_are_later_ones(plan, error):
    tried = []

    def compute(batch):
        tried.append(batch.tokens.numel())
        if tried[-1] > 8:
            raise error
        return summed(batch)

    with pytest.warns(UserWarning, match="does not suffice for a batch of 18 tokens; .* halves") as said:
        into = kept(Plan(plan.model, [[5] * 6] * 9, batch_size=3), Loop(), compute)
    assert [rows for rows, _ in into] == [computed for _, computed in into]
    assert len(said) == 1
    assert tried == [18, 12, 6, 6, 6, *[6] * 6]


def test_halves_are_not_cut_again_where_they_fit(plan):
    tried = []

    def compute(batch):
        tried.append(len(batch.rows))
        if tried[-1] > 3:
            raise torch.OutOfMemoryError
        return summed(batch)

    with pytest.warns(UserWarning, match="a smaller batch_size avoids this|A smaller batch_size avoids this"):
        kept(Plan(plan.model, [[5] * 6] * 10, batch_size=5), Loop(), compute)
    assert tried == [5, 3, 2, 3, 2]


def test_a_single_row_that_is_too_large_is_an_error(plan):
    def compute(batch):
        raise torch.OutOfMemoryError("Tried to allocate 2 GiB")

    with (
        pytest.warns(UserWarning, match="halves"),
        pytest.raises(ns.NeuronShareError, match=r"too little memory to run a single row of \d+ tokens \(Tried to"),
    ):
        kept(plan, Loop(), compute)


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), RuntimeError("a", "b"), KeyError("x")])
def test_other_errors_pass_through(plan, error):
    def compute(batch):
        raise error

    with pytest.raises(type(error)) as raised:
        kept(plan, Loop(), compute)
    assert raised.value is error


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * ("study" in name)) for name in SHARED if name != "causal check"],
)
def test_little_memory_changes_no_result(animals, name, monkeypatch):
    """Each function, on a model that has no memory for more than the longest row; equal, apart from rounding."""
    model = animals.lens("bloom", "bridge")
    added = models.added_through(model)
    monkeypatch.setattr(models, "added_through", lambda model: added)  # runs a small batch that is not in a plan
    with passes(model) as undisturbed:
        expected = SHARED[name](model, QUIZ, batch_size=9)
    most = undisturbed.longest
    with pytest.warns(UserWarning, match="Memory does not suffice"), passes(model, most_tokens=most) as short:
        found = SHARED[name](model, QUIZ, batch_size=9)
    assert undisturbed.largest > most >= short.largest
    assert_close(found, expected)


def assert_close(found, expected):
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-5)
        assert facts(dict(found.attrs)) == facts(dict(expected.attrs))
    elif isinstance(expected, ns.NeuronSharing):
        assert torch.equal(found.types, expected.types)
        assert found.metadata == expected.metadata
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, equal_nan=True)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_close(found[key], value)
    elif isinstance(expected, list) and not isinstance(expected[0], str):
        assert_close(found[0], expected[0])


def test_one_row_that_does_not_fit_is_said_by_each_function(animals):
    model = animals.lens("bloom", "bridge")
    SHARED["categorise"](model, QUIZ)
    with (
        pytest.warns(UserWarning, match="halves"),
        passes(model, most_tokens=3),
        pytest.raises(ns.NeuronShareError, match="too little memory to run a single row of"),
    ):
        SHARED["categorise"](model, QUIZ)


@pytest.mark.parametrize("value", ["2/4", (2, 4), [2, 4]])
@pytest.mark.usefixtures("as_users_run_it")
def test_parts_are_written_in_two_ways(value):
    assert as_shard("shard", value) == (2, 4)
    assert Keeping("folder", value).part == (2, 4)


@pytest.mark.parametrize(
    "value", ["0/4", "5/4", "2", "2/4/6", "a/b", (2,), 2, (0, 0), "", (1, float("inf")), (2.7, 4), b"12", {1, 2}, "²/4"]
)
@pytest.mark.usefixtures("as_users_run_it")
def test_other_parts_are_refused(value):
    with pytest.raises(ns.NeuronShareError, match='give which part of how many, such as "2/4", counted from 1'):
        Keeping("folder", value)


@pytest.mark.parametrize("value", [5, "", "~nobody_of_this_name/x", "a\0b"])
@pytest.mark.usefixtures("as_users_run_it")
def test_what_is_no_folder_is_refused(value):
    with pytest.raises(ns.NeuronShareError, match="is not a folder.*; give its path"):
        Keeping(value)


@pytest.mark.usefixtures("as_users_run_it")
def test_options_that_do_not_fit_are_refused(animals, tmp_path):
    model = animals.lens("bloom", "bridge")
    with pytest.raises(ns.NeuronShareError, match=r"shard=\(1, 2\) needs out=, the folder"):
        ns.categorise(model, QUIZ, shard=(1, 2))
    for folder in ("", 3):
        with pytest.raises(ns.NeuronShareError, match="is not a folder; give its path"):
            ns.evaluate(model, QUIZ, out=folder)
    with (
        model.hooks([("blocks.0.hook_out", lambda value, hook: value)]),
        pytest.raises(ns.NeuronShareError, match="hooks of your own are on the model"),
    ):
        ns.categorise(model, QUIZ, out=tmp_path / "out")
    with pytest.raises(ns.NeuronShareError, match="could not know whether fwd_hooks are the same"):
        ns.evaluate(model, QUIZ, out=tmp_path / "out", fwd_hooks=[])
    assert not list(tmp_path.iterdir())


def test_a_control_of_ones_own_is_not_kept_in_a_folder(animals, monkeypatch, tmp_path):
    class Mine(type(CONTROLS["random"])):
        name = "mine"

    monkeypatch.setitem(CONTROLS, "mine", Mine())
    model = animals.lens("bloom", "bridge")
    with pytest.raises(ns.NeuronShareError, match="the control 'mine' is your own"):
        ns.ablation_study(model, QUIZ, ns.categorise(model, QUIZ), controls=["mine"], out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_causal_check_refuses_a_folder_with_something_else(animals, tmp_path):
    model = animals.lens("bloom", "bridge")
    sharing = ns.categorise(model, QUIZ, out=tmp_path, progress=False)
    with pytest.raises(ns.NeuronShareError, match=r"holds other files \(about.json\); name a new folder"):
        causal_check(model, QUIZ, sharing, n_neurons=4, out=tmp_path)

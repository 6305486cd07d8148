"""The causal check as a function; test_experiments.py compares its numbers with hooks of one's own."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns
from tl_neuronshare.attribution.causal import causal_check


@pytest.fixture
def few(animals):
    model = animals.lens("demo", "bridge")
    prompts = ns.demo.prompts()[:2].select(["en", "de"])
    return model, prompts, ns.categorise(model, prompts)


def test_the_draw_is_the_seed_s_and_the_table_says_how_it_was_made(few):
    tables = [causal_check(*few, n_neurons=8, seed=seed, progress=False) for seed in (0, 0, 1)]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])
    assert tables[0].attrs["seed"] == 0
    assert tables[0].attrs["n_neurons"] == 8
    assert tables[0].attrs["norm"] == ["none", "frozen", "full"]
    assert set(tables[0]["target"]) == {"logit", "log_prob", "abs_logit"}
    assert set(tables[0].query("score == 'generation'")["target"]) == {"abs_logit"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_neurons": 1}, "n_neurons=1; give a whole number, at least 2"),
        ({"n_neurons": 2.5}, "n_neurons=2.5; give a whole number"),
        ({"seed": "0"}, "seed='0'"),
    ],
)
def test_wrong_options(few, options, message, as_users_run_it):
    with pytest.raises(ns.NeuronShareError, match=message):
        causal_check(*few, **options)


def test_half_precision_is_refused(animals):
    model = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu", dtype=torch.bfloat16)
    prompts = ns.tasks.world_facts(limit=2, languages=["en", "de"])
    sharing = ns.categorise(model, prompts)
    with pytest.raises(
        ns.NeuronShareError, match="The weights are bfloat16, in which a single neuron's effect is lost"
    ):
        causal_check(model, prompts, sharing)

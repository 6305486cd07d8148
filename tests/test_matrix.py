"""Tiny models of many architectures, judged against a literal reading of the Hugging Face model."""

from __future__ import annotations

import pytest
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

from support.architectures import HOOKED, architectures
from support.judging import COLUMNS, MISLEADING, NO_BOOT, NONE, RAW, REFUSED, RIGHT, UNKNOWN, WRONG, judge
from support.zoo import BACKENDS

CASES = architectures(SUPPORTED_ARCHITECTURES)
# One of each kind: no gate, a gate, one fused tensor, multipliers, norms after the MLP, a map before the head.
RIGHT_ONES = (
    "ApertusForCausalLM", "BloomForCausalLM", "Exaone4ForCausalLM", "FalconForCausalLM", "Gemma3ForCausalLM",
    "GPTBigCodeForCausalLM", "GraniteForCausalLM (multipliers)", "LlamaForCausalLM (MLP bias)", "MptForCausalLM",
    "Olmo2ForCausalLM", "Phi3ForCausalLM", "StableLmForCausalLM (parallel residual)",
)  # fmt: skip
# Mixtures of experts; their gates of a kind of their own may be refused.
MIXTURES = (
    "DeepseekV3ForCausalLM", "GptOssForCausalLM", "GraniteMoeForCausalLM", "Llama4ForCausalLM", "MixtralForCausalLM",
    "OlmoeForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM (a dense layer)",
)  # fmt: skip


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_that_are_right(name, tmp_path):
    """Types, ablated logits, both scores and answers are those of a reading that goes expert by expert."""
    row = judge(CASES[name], tmp_path / "model", "bridge")
    assert row["verdict"] == RIGHT, row["notes"]
    assert {row[column] for column in ("post", "ablation", "attribution", "decoding")} == {RIGHT}
    assert {row[column] for column in ("gate", "up")} <= {RIGHT, REFUSED}


@pytest.mark.parametrize("name", RIGHT_ONES)
def test_architectures_that_are_right(name, tmp_path):
    row = judge(CASES[name], tmp_path / "model", "bridge")
    assert row["verdict"] == RIGHT, row["notes"]
    assert {row[column] for column in COLUMNS} <= {RIGHT, NONE}


def test_an_architecture_that_transformer_lens_does_not_know(tmp_path):
    row = judge(CASES["XLMRobertaForMaskedLM"], tmp_path / "model", "bridge")
    assert (row["verdict"], row["boots"]) == (NO_BOOT, "no")


@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has no HookedTransformer")
def test_a_hooked_transformer_that_drops_a_bias_is_refused(tmp_path):
    row = judge(CASES["LlamaForCausalLM (attention bias)"], tmp_path / "model", "hooked")
    assert row["verdict"] == REFUSED, row["notes"]


def test_the_judge_finds_what_is_wrong(tmp_path, monkeypatch):
    """A judge that always says right would be of no use."""
    activated = "tl_neuronshare.results.sharing.NeuronSharing.activated"
    monkeypatch.setattr(activated, lambda self, *_, **__: ~self.is_neuron.expand(len(self), 1, -1, -1))
    row = judge(CASES["BloomForCausalLM"], tmp_path / "model", "bridge")
    assert (row["post"], row["verdict"]) == (WRONG, WRONG)


@pytest.mark.matrix
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_wrong_raw_or_misleading(name, tmp_path):
    row = judge(CASES[name], tmp_path / "model", "bridge")
    assert row["verdict"] in (RIGHT, REFUSED, NO_BOOT, UNKNOWN), f"{row['verdict']}: {row['notes']}"


@pytest.mark.matrix
@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize("name", HOOKED)
def test_nothing_hooked_is_wrong_raw_or_misleading(name, tmp_path):
    row = judge(CASES[name], tmp_path / "model", "hooked")
    assert row["verdict"] not in (WRONG, RAW, MISLEADING), f"{row['verdict']}: {row['notes']}"

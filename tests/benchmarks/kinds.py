"""The models of the benchmarks: the built-in one, a random BLOOM, Gemma 3 270M where it is installed, and a mixture."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from common import Sizes
from transformers import (
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
)

import tl_neuronshare as ns

DENSE = ("built-in", "bloom", "gemma")
KINDS = (*DENSE, "mixture")
SIZES = {
    "built-in": Sizes(examples=200, fewer=200, study=100, single=20, repeats=5),
    "bloom": Sizes(examples=200, fewer=20, study=1, single=3, repeats=3),
    "gemma": Sizes(examples=200, fewer=10, study=1, single=2, repeats=3),
    "mixture": Sizes(examples=20, fewer=5, study=2, single=2, repeats=3),
}
OTHER = Sizes(examples=200, fewer=40, study=10, single=10, repeats=3)


def why_not(kind: str) -> str | None:
    """Why a model cannot be measured here; None if it can."""
    missing = [name for name in ("gguf", *_record().PARTS_OF_WEIGHTS) if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed" if kind == "gemma" and missing else None


def directory_of(kind: str, temporary: Path) -> Path:
    """The directory of a model, which is made if it is one of ours."""
    if kind == "built-in":
        return ns.demo.DIRECTORY
    make = {"bloom": random_bloom, "gemma": gemma, "mixture": random_mixture}.get(kind)
    return Path(kind) if make is None else make(temporary / kind)


def random_bloom(directory: Path, **sizes: int) -> Path:
    """A BLOOM with random weights and the built-in tokenizer; by default of 8 layers and 250,880 tokens."""
    given = {"vocab_size": 250_880, "hidden_size": 512, "n_layer": 8, "n_head": 8} | sizes
    return _saved(BloomForCausalLM(BloomConfig(**given)), directory)


def random_mixture(directory: Path) -> Path:
    """An OLMoE with random weights and the built-in tokenizer."""
    config = OlmoeConfig(
        vocab_size=4000, hidden_size=512, intermediate_size=256, num_hidden_layers=16, num_attention_heads=8,
        num_experts=64, num_experts_per_tok=8, max_position_embeddings=512,
    )  # fmt: skip
    return _saved(OlmoeForCausalLM(config), directory)


def gemma(directory: Path) -> Path:
    """Gemma 3 270M in float32, as the record of a real model has it."""
    return Path(_record().gemma(directory))


def _record() -> ModuleType:
    """The script that makes the record of that model."""
    file = Path(__file__).parents[2] / "experiments" / "gemma_3_270m.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    record = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(record)
    return record


def _saved(model: PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(ns.demo.DIRECTORY).save_pretrained(directory)
    return directory

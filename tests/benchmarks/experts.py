"""What categorising a mixture of experts costs: ratios of runs that take turns in one process, and its memory.

    python tests/benchmarks/experts.py                                # 16 layers x 64 experts x 256 neurons, float32
    python tests/benchmarks/experts.py --device cuda --dtype bfloat16 --examples 200

The yardstick is the bare trunk under the same implementation of experts: the same batches through all blocks, without
the unembedding and without our hooks. Memory is what a result keeps, against the formula: one bit for each neuron, and
one for each expert, of each prompt and layer.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from categorise import arguments, bare_trunk, compare
from transformers import AutoTokenizer, OlmoeConfig, OlmoeForCausalLM

import tl_neuronshare as ns
from tl_neuronshare import models

LAYERS, EXPERTS, WIDTH, SLOTS = 16, 64, 256, 8


def random_mixture(directory: Path, *, d_model: int) -> Path:
    """An OLMoE with random weights and the built-in tokenizer."""
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=4000, hidden_size=d_model, intermediate_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=8,
        num_experts=EXPERTS, num_experts_per_tok=SLOTS, max_position_embeddings=512,
    )  # fmt: skip
    OlmoeForCausalLM(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(ns.demo.DIRECTORY).save_pretrained(directory)
    return directory


def times(model: Any, prompts: ns.ParallelPrompts, *, repeats: int) -> None:
    """Time against the bare trunk."""
    jobs = {
        f"categorise, position {position}": lambda position=position: ns.categorise(
            model, prompts, position=position, progress=False
        )
        for position in ("last", "any")
    }
    implementation = model.original_model.config._experts_implementation
    compare(
        f"{LAYERS} layers x {EXPERTS} experts x {WIDTH}, {implementation}",
        {"the bare trunk": lambda: bare_trunk(model, prompts), **jobs},
        repeats=repeats,
    )


def memory(model: Any, prompts: ns.ParallelPrompts) -> None:
    """What a result keeps, against one bit a neuron and one an expert."""
    sharing = ns.categorise(model, prompts, progress=False)
    kept = sharing.packed.numel() + sharing.routing.packed.numel()
    formula = len(prompts) * len(prompts.languages) * LAYERS * (EXPERTS * WIDTH + EXPERTS) / 8
    print(f"memory: {kept / 2**20:.2f} MiB kept, {kept / formula:.3f} of the formula ({formula / 2**20:.2f} MiB)")


def main() -> None:
    """Print the ratios."""
    parser = arguments(__doc__)
    parser.add_argument("--d-model", type=int, default=512)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    prompts = ns.demo.prompts()[: args.examples]
    with tempfile.TemporaryDirectory() as directory:
        model = ns.load_model(
            random_mixture(Path(directory), d_model=args.d_model),
            backend="bridge",
            device=args.device,
            dtype=getattr(torch, args.dtype),
        )
        models.neuron_layers(model, "post")  # the hook points are there in both
        times(model, prompts, repeats=args.repeats)
        memory(model, prompts)


if __name__ == "__main__":
    main()

"""A toy whose neurons' types are known by construction: integer weights, ReLU, no attention.

Each word's embedding is a row of an 8 x 8 Hadamard matrix: +1 and -1 in equal number, so that LayerNorm leaves
it as it is, and orthogonal to the other rows. The neuron for a set S of words has the sum of their rows as weights and
a bias of -4, so its value is 8 - 4 for a word in S and 0 - 4, cut to 0, for any other: it is activated for S exactly.
There is a neuron for every set of four words, and the second layer has the same neurons in reverse.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, OPTConfig, PreTrainedTokenizerFast

WORDS = ("sun", "moon", "star", "sky")
SETS = [set(chosen) for size in range(5) for chosen in itertools.combinations(WORDS, size)]
# The last word of each example's prompt in three languages; the text before it must not matter.
LAST = {
    "en": ("sun", "moon", "star", "sky"),
    "de": ("moon", "moon", "sky", "sky"),
    "fr": ("star", "moon", "star", "sun"),
}


def hadamard() -> torch.Tensor:
    """Return eight orthogonal rows of +1 and -1; in all but the first, both are equally many."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    return torch.kron(torch.kron(two, two), two)


def save_tokenizer(directory: Path, words: Iterable[str]) -> dict[str, int]:
    """Save a tokenizer for which each word is a token; return their numbers."""
    vocabulary = {word: index for index, word in enumerate(("<pad>", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {f"{name}_token": "<pad>" for name in ("unk", "pad", "bos", "eos")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    return vocabulary


def empty_opt(n_tokens: int, *, d_model: int, d_mlp: int, n_layers: int = 1, **options: Any) -> Any:
    """Make an OPT whose weights are all zero, but for those of its norms, which change nothing."""
    model = AutoModelForCausalLM.from_config(
        OPTConfig(
            vocab_size=n_tokens,
            hidden_size=d_model,
            word_embed_proj_dim=d_model,
            ffn_dim=d_mlp,
            num_hidden_layers=n_layers,
            num_attention_heads=1,
            max_position_embeddings=16,
            **{f"{name}_token_id": 0 for name in ("pad", "bos", "eos")},
            **options,
        )
    )
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.fill_(1.0 if "layer_norm.weight" in name else 0.0)
    return model


def save_toy(directory: Path) -> Path:
    """Save the toy as an OPT."""
    vocabulary = save_tokenizer(directory, WORDS)
    model = empty_opt(len(vocabulary), d_model=8, d_mlp=len(SETS), n_layers=2)
    rows = dict(zip(WORDS, hadamard()[1:], strict=False))
    with torch.no_grad():
        for word, index in vocabulary.items():
            if word in rows:
                model.model.decoder.embed_tokens.weight[index] = rows[word]
        for layer, sets in zip(model.model.decoder.layers, (SETS, SETS[::-1]), strict=True):
            for neuron, words in enumerate(sets):
                layer.fc1.weight[neuron] = sum((rows[word] for word in words), torch.zeros(8))
                layer.fc1.bias[neuron] = -4
    model.save_pretrained(directory)
    return directory

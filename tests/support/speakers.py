"""A model with planted language neurons: some fire for every word of one language, others for a concept in all."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, OPTConfig, PreTrainedTokenizerFast

from support.toys import hadamard

WORDS = {
    "en": ("sun", "moon", "star", "sky"),
    "de": ("Sonne", "Mond", "Stern", "Himmel"),
    "fr": ("soleil", "lune", "étoile", "ciel"),
}
TEXTS = {language: list(words) for language, words in WORDS.items()}
CONCEPTS = range(4)
# Each neuron fires for a set of words and writes one direction. The first of each language writes the language's own
# direction, the second the direction of English.
FIRES = [
    *((set(words), language) for language, words in WORDS.items()),
    (set(WORDS["de"]), "en"),
    (set(WORDS["fr"]), "en"),
    *(({words[number] for words in WORDS.values()}, f"concept {number}") for number in CONCEPTS),
    *((set(), "nothing") for _ in range(11)),
]
# The neurons that fire in one language only, and those that move its texts to the direction of English.
PLANTED = {"en": {0}, "de": {1, 3}, "fr": {2, 4}}
TO_ENGLISH = {"de": 3, "fr": 4}


def save_speakers(directory: Path) -> Path:
    """Save an OPT of one layer whose language neurons are known."""
    spoken = [word for words in WORDS.values() for word in words]
    vocabulary = {word: index for index, word in enumerate(("<pad>", *spoken))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {f"{name}_token": "<pad>" for name in ("unk", "pad", "bos", "eos")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    rows = torch.kron(torch.kron(hadamard(), two), two)[1:]  # 31 rows of 32, orthogonal
    row = dict(zip((*spoken, *WORDS, *(f"concept {n}" for n in CONCEPTS), "nothing"), rows, strict=False))
    model = AutoModelForCausalLM.from_config(
        OPTConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=len(FIRES),
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=16,
            tie_word_embeddings=False,
            **{f"{name}_token_id": 0 for name in ("pad", "bos", "eos")},
        )
    )
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.fill_(1.0 if "layer_norm.weight" in name else 0.0)
        for word in spoken:
            model.model.decoder.embed_tokens.weight[vocabulary[word]] = row[word]
            model.lm_head.weight[vocabulary[word]] = row[word]
        layer = model.model.decoder.layers[0]
        for neuron, (words, written) in enumerate(FIRES):
            # A word's vector times itself is 32, and the norm leaves it as it is; so a neuron fires with 16 or not.
            layer.fc1.weight[neuron] = sum((row[word] for word in words), torch.zeros(32))
            layer.fc1.bias[neuron] = -16
            layer.fc2.weight[:, neuron] = row[written] / 16
    model.save_pretrained(directory)
    return directory

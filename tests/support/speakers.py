"""A model with planted language neurons: some fire for every word of one language, others for a concept in all."""

from __future__ import annotations

from pathlib import Path

import torch

from support.toys import empty_opt, hadamard, save_tokenizer

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
    vocabulary = save_tokenizer(directory, spoken)
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    rows = torch.kron(torch.kron(hadamard(), two), two)[1:]  # 31 rows of 32, orthogonal
    row = dict(zip((*spoken, *WORDS, *(f"concept {n}" for n in CONCEPTS), "nothing"), rows, strict=False))
    model = empty_opt(len(vocabulary), d_model=32, d_mlp=len(FIRES), tie_word_embeddings=False)
    with torch.no_grad():
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

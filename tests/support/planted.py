"""A model that needs one known neuron for each answer, in whatever language it is asked."""

from __future__ import annotations

from pathlib import Path

import torch

from support.toys import empty_opt, hadamard, save_tokenizer

LANGUAGES = ["en", "de", "fr"]
WORDS = {"sun": ("sun", "Sonne", "soleil"), "moon": ("moon", "Mond", "lune")}
RIGHT, WRONG = {"sun": "hot", "moon": "cold"}, {"sun": "cold", "moon": "hot"}
# Each neuron is activated by a set of words. The needed ones write the answer; nothing reads what all others write.
SETS = [
    *({word} for words in WORDS.values() for word in words),  # specific
    *({words[0], words[1]} for words in WORDS.values()),  # partial-shared
    *({words[1], words[2]} for words in WORDS.values()),
    *(set(words) for words in WORDS.values()),  # all-shared: the needed ones
    *({words[0], "never"} for words in WORDS.values()),
    *(set() for _ in range(10)),  # never activated
]
NEEDED = {concept: SETS.index(set(words)) for concept, words in WORDS.items()}


def save_planted(directory: Path) -> Path:
    """Save an OPT of one layer, whose answer about a concept is wrong in every language without one neuron."""
    spoken = [word for words in WORDS.values() for word in words]
    vocabulary = save_tokenizer(directory, (*spoken, "hot", "cold"))
    rows = torch.kron(hadamard(), torch.tensor([[1.0, 1.0], [1.0, -1.0]]))[1:]  # 15 rows of 16, orthogonal
    row = dict(zip((*spoken, "hot", "cold", "unread"), rows, strict=False))
    model = empty_opt(len(vocabulary), d_model=16, d_mlp=len(SETS), tie_word_embeddings=False)
    with torch.no_grad():
        for concept, words in WORDS.items():
            for word in words:  # each word itself leans to the wrong answer
                model.model.decoder.embed_tokens.weight[vocabulary[word]] = row[word] + 0.5 * row[WRONG[concept]]
        for word in ("hot", "cold"):
            model.lm_head.weight[vocabulary[word]] = row[word]
        layer = model.model.decoder.layers[0]
        for neuron, words in enumerate(SETS):
            layer.fc1.weight[neuron] = sum((row[word] for word in words if word in row), torch.zeros(16))
            layer.fc1.bias[neuron] = -8
            written = next((RIGHT[concept] for concept, needed in NEEDED.items() if needed == neuron), "unread")
            layer.fc2.weight[:, neuron] = row[written]
    model.save_pretrained(directory)
    return directory

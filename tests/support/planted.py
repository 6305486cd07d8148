"""A model that needs one known neuron for each answer, in whatever language it is asked."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, OPTConfig, PreTrainedTokenizerFast

from support.toys import hadamard

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
    vocabulary = {word: index for index, word in enumerate(("<pad>", *spoken, "hot", "cold"))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {f"{name}_token": "<pad>" for name in ("unk", "pad", "bos", "eos")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    rows = torch.kron(hadamard(), torch.tensor([[1.0, 1.0], [1.0, -1.0]]))[1:]  # 15 rows of 16, orthogonal
    row = dict(zip((*spoken, "hot", "cold", "unread"), rows, strict=False))
    model = AutoModelForCausalLM.from_config(
        OPTConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=len(SETS),
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

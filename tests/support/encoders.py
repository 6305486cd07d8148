"""Tiny encoders and encoder-decoders, with tokenizers that add their own special tokens, and a literal reference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from support import zoo

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "de")
START, END, GERMAN = 0, 2, 5
_SIZES = {"vocab_size": 405, "d_model": 32}
_T5 = {**_SIZES, "d_kv": 8, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
_BART = {
    **_SIZES,
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 3),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 96),
    "max_position_embeddings": 128,
}
_BERT = {
    "vocab_size": 405,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
}


@dataclass(frozen=True)
class Kind:
    """An architecture: how to make a small one, and its modules, in the order encoder, decoder.

    The modules are (stack, how many, the module's name with its number), for the input of the down projection, the
    output of the activation and the output of the up branch.
    """

    model_type: str
    config: dict[str, Any]
    post: Sequence[tuple[str, int, str]]
    gate: Sequence[tuple[str, int, str]] = ()
    up: Sequence[tuple[str, int, str]] = ()
    around: str = "$A </s>"  # what the tokenizer adds
    settings: dict[str, int] = field(default_factory=dict)  # for generation

    @property
    def is_encoder(self) -> bool:
        return not self.settings

    @property
    def decoder_prompt(self) -> list[int]:
        return list(self.settings.values())


def _t5(module: str) -> list[tuple[str, int, str]]:
    return [
        ("encoder", 2, f"encoder.block.{{}}.layer.1.DenseReluDense.{module}"),
        ("decoder", 3, f"decoder.block.{{}}.layer.2.DenseReluDense.{module}"),
    ]


_GATED = {"gate": _t5("act"), "up": _t5("wi_1")}
_FC2 = [("encoder", 3, "model.encoder.layers.{}.fc2"), ("decoder", 3, "model.decoder.layers.{}.fc2")]
_AROUND = "<s> $A </s>"

KINDS = {
    "t5": Kind("t5", {**_T5, "feed_forward_proj": "relu"}, _t5("wo"), settings={"decoder_start_token_id": 1}),
    "mt5": Kind(
        "mt5",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        _t5("wo"),
        **_GATED,
        settings={"decoder_start_token_id": 1},
    ),
    "bart": Kind("bart", _BART, _FC2, around=_AROUND, settings={"decoder_start_token_id": 2, "forced_bos_token_id": 0}),
    "mbart": Kind("mbart", _BART, _FC2, settings={"decoder_start_token_id": 2, "forced_bos_token_id": GERMAN}),
    "nllb": Kind("m2m_100", _BART, _FC2, settings={"decoder_start_token_id": 2, "forced_bos_token_id": GERMAN}),
    "marian": Kind("marian", _BART, _FC2, settings={"decoder_start_token_id": 1}),
    "bert": Kind("bert", _BERT, [("encoder", 3, "bert.encoder.layer.{}.output.dense")], around=_AROUND),
    "roberta": Kind("roberta", _BERT, [("encoder", 3, "roberta.encoder.layer.{}.output.dense")], around=_AROUND),
}
ENCODERS = ("bert", "roberta")
BOTH = ("t5", "mt5", "bart", "mbart", "nllb", "marian")


def save(name: str, directory: Path) -> Path:
    """Save a model with random weights and its tokenizer."""
    kind = KINDS[name]
    torch.manual_seed(0)
    ids = {"pad_token_id": 1, "bos_token_id": START, "eos_token_id": END}
    config = AutoConfig.for_model(kind.model_type, **ids, **kind.config)
    model = (AutoModelForMaskedLM if kind.is_encoder else AutoModelForSeq2SeqLM).from_config(config)
    with torch.no_grad():
        for parameter, weights in model.named_parameters():
            if "norm" in parameter.lower():
                weights.add_(0.2 * torch.randn_like(weights))
            else:
                weights.normal_(std=0.3)
    for setting, token in kind.settings.items():
        setattr(model.generation_config, setting, token)
    model.save_pretrained(directory)
    _tokenizer(kind.around).save_pretrained(directory)
    return directory


def _tokenizer(around: str) -> PreTrainedTokenizerFast:
    """Return the zoo's tokenizer with special tokens of its own, and what it adds to a text by itself."""
    known = json.loads(zoo.make_tokenizer().backend_tokenizer.to_str())
    vocabulary = {token: number for token, number in known["model"]["vocab"].items() if token != "<|end|>"}
    known["model"]["vocab"] = {token: number for number, token in enumerate((*SPECIAL, *vocabulary))}
    (added, *_) = known["added_tokens"]
    known["added_tokens"] = [{**added, "id": number, "content": token} for number, token in enumerate(SPECIAL)]
    tokenizer = Tokenizer.from_str(json.dumps(known))
    names = [(token, SPECIAL.index(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = TemplateProcessing(single=around, special_tokens=names)
    roles = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    roles = dict(zip(roles, SPECIAL, strict=False)) | {"additional_special_tokens": ["de"]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


@dataclass(frozen=True)
class Run:
    """What Hugging Face's model computed for one unpadded text: tokens, and each layer's values at each token."""

    ids: list[int]
    values: list[Tensor]
    logits: Tensor


class Reference:
    """The Hugging Face model of a directory, with torch hooks."""

    def __init__(self, name: str, directory: Path) -> None:
        self.kind = KINDS[name]
        auto = AutoModelForMaskedLM if self.kind.is_encoder else AutoModelForSeq2SeqLM
        self.model: nn.Module = auto.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)

    def run(self, text: str, site: str = "post", *, answer: Sequence[int] = (), zeroed: Tensor | None = None) -> Run:
        """Run one text, and the answer's tokens after the decoder's own; zero the neurons of each layer in a mask."""
        ids = self.tokenizer(text).input_ids
        decoder = torch.tensor([[*self.kind.decoder_prompt, *answer]])
        inputs = {} if self.kind.is_encoder else {"decoder_input_ids": decoder}
        values: list[Tensor] = []
        handles = []
        for layer, name in enumerate(self._modules(site)):

            def keep(tensor: Tensor) -> None:
                values.append(tensor.detach().reshape(-1, tensor.shape[-1]))

            def before(module, given, layer=layer):
                keep(given[0])
                return None if zeroed is None else (given[0].masked_fill(zeroed[layer], 0),)

            module = self.model.get_submodule(name)
            if site == "post":
                handles.append(module.register_forward_pre_hook(before))
            else:
                handles.append(module.register_forward_hook(lambda module, given, output: keep(output)))
        with torch.no_grad():
            logits = self.model(torch.tensor([ids]), **inputs).logits[0]
        for handle in handles:
            handle.remove()
        return Run(ids, values, logits)

    def _modules(self, site: str) -> list[str]:
        return [name.format(number) for _, n, name in getattr(self.kind, site) for number in range(n)]

    @property
    def stacks(self) -> list[str]:
        """Each layer's stack."""
        return [stack for stack, n, _ in self.kind.post for _ in range(n)]

    def active(self, text: str, site: str, position: str | int) -> list[Tensor]:
        """Return which neurons of each layer are above 0 at a position; the decoder's prompt has no plain tokens."""
        run = self.run(text, site)
        plain = [place for place, token in enumerate(run.ids) if token not in self.tokenizer.all_special_ids]
        found = []
        for stack, values in zip(self.stacks, run.values, strict=True):
            above = values > 0
            of_text = above[plain] if stack == "encoder" else above
            at = {"any": of_text.any(0), "all": of_text.all(0)}
            found.append(at[position] if position in at else above[-1 if position == "last" else position])
        return found

    def log_prob(self, text: str, answer: Sequence[int], zeroed: Tensor | None = None) -> float:
        """Return the log-probability of an answer's tokens."""
        logits = self.run(text, answer=answer, zeroed=zeroed).logits.double().log_softmax(-1)
        start = len(self.kind.decoder_prompt) - 1
        return sum(logits[start + place, token].item() for place, token in enumerate(answer))

    def greedy(self, text: str, n_new: int) -> list[int]:
        """Decode greedily, running everything again for each token, up to the end token."""
        new: list[int] = []
        while len(new) < n_new:
            token = int(self.run(text, answer=new).logits[-1].argmax())
            if token == END:
                break
            new.append(token)
        return new

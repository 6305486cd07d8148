"""Tiny models with random weights, and a tokenizer made on the spot, saved to a directory: no network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tl_neuronshare.models.lens import has_hooked_transformer

TEXTS = {
    "en": [
        "The capital of France is",
        "Two and three make",
        "Water boils at one hundred degrees",
        "Cats",
        "The sky is",
    ],
    "de": ["Die Hauptstadt von Frankreich ist", "Zwei und drei sind", "Wasser kocht bei hundert Grad", "Katzen", "Der"],
    "ru": ["Столица Франции —", "Два плюс три равно", "Вода кипит при ста градусах", "Кошки", "Небо"],
    "th": ["เมืองหลวงของฝรั่งเศสคือ", "สองบวกสามเท่ากับ", "น้ำเดือดที่หนึ่งร้อยองศา", "แมว", "ท้องฟ้าเป็นสี"],
    "zh": ["法国的首都是", "二加三等于", "水在一百度时沸腾", "猫", "天空是"],
}
# The tokenizer is not trained on these, so that each has several tokens, 7 to 31.
LONGER = {
    "en": ["Bread is made from", "Bees make", "The largest ocean of the world is the"],
    "de": ["Brot macht man aus", "Bienen machen", "Der größte Ozean der Welt ist der"],
    "ru": ["Хлеб пекут из", "Пчёлы делают", "Самый большой океан"],
    "th": ["ขนมปังทำ", "ผึ้งทำ", "มหาสมุทรที่ใหญ่"],
    "zh": ["面包的原料是", "蜜蜂酿造", "世界上最大的海洋是"],
}
_SIZES = {"vocab_size": 400, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 128}
_LLAMA = {
    **_SIZES,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_HOOKED_LLAMA = {
    "normalization_type": "RMS",
    "final_rms": True,
    "gated_mlp": True,
    "positional_embedding_type": "rotary",
    "rotary_dim": 8,
    "rotary_adjacent_pairs": False,
    "n_key_value_heads": 2,
    "d_mlp": 96,
    "eps": 1e-6,
    "n_layers": 3,
}


@dataclass(frozen=True)
class Kind:
    """An architecture: how to make a small one, and the facts that the literal reference needs about its modules."""

    model_type: str
    config: dict[str, Any]
    n_layers: int
    down: str  # the module whose input is the post-activation vector
    norm: str  # the module before the unembedding
    bos: bool  # whether the model was trained with a BOS token, so that prompts begin with one
    act: str | None = None  # gated MLPs: the module whose output is act(gate)
    up: str | None = None  # gated MLPs: the module whose output is the up branch
    # HookedTransformer: "directory" loads the directory, a dict is its config, and None is an unsupported architecture.
    hooked: str | dict[str, Any] | None = "directory"


KINDS = {
    "bloom": Kind(
        "bloom",
        {"vocab_size": 400, "hidden_size": 32, "n_layer": 3, "n_head": 4},
        3,
        "transformer.h.{}.mlp.dense_4h_to_h",
        "transformer.ln_f",
        bos=False,
    ),
    # It has twelve layers, because in alphabetical order layer 10 would come second.
    "gpt2": Kind(
        "gpt2",
        {"vocab_size": 400, "n_embd": 32, "n_layer": 12, "n_head": 4, "n_positions": 128},
        12,
        "transformer.h.{}.mlp.c_proj",
        "transformer.ln_f",
        bos=True,
        hooked={
            "original_architecture": "GPT2LMHeadModel",
            "act_fn": "gelu_new",
            "normalization_type": "LN",
            "d_mlp": 128,
            "n_layers": 12,
        },
    ),
    "neox": Kind(
        "gpt_neox",
        {**_SIZES, "num_hidden_layers": 3, "intermediate_size": 96},
        3,
        "gpt_neox.layers.{}.mlp.dense_4h_to_h",
        "gpt_neox.final_layer_norm",
        bos=False,
    ),
    "opt": Kind(
        "opt",
        {**_SIZES, "num_hidden_layers": 3, "ffn_dim": 128, "word_embed_proj_dim": 32},
        3,
        "model.decoder.layers.{}.fc2",
        "model.decoder.final_layer_norm",
        bos=True,
    ),
    "xglm": Kind(
        "xglm",
        {
            "vocab_size": 400,
            "d_model": 32,
            "num_layers": 3,
            "attention_heads": 4,
            "ffn_dim": 96,
            "max_position_embeddings": 128,
        },
        3,
        "model.layers.{}.fc2",
        "model.layer_norm",
        bos=True,
        hooked=None,
    ),
    "llama": Kind(
        "llama",
        _LLAMA,
        3,
        "model.layers.{}.mlp.down_proj",
        "model.norm",
        bos=True,
        act="model.layers.{}.mlp.act_fn",
        up="model.layers.{}.mlp.up_proj",
        hooked={**_HOOKED_LLAMA, "original_architecture": "LlamaForCausalLM", "act_fn": "silu"},
    ),
    "qwen2": Kind(
        "qwen2",
        _LLAMA,
        3,
        "model.layers.{}.mlp.down_proj",
        "model.norm",
        bos=False,
        act="model.layers.{}.mlp.act_fn",
        up="model.layers.{}.mlp.up_proj",
    ),
    "gemma2": Kind(
        "gemma2",
        {**_LLAMA, "query_pre_attn_scalar": 8, "sliding_window": 64},
        3,
        "model.layers.{}.mlp.down_proj",
        "model.norm",
        bos=True,
        act="model.layers.{}.mlp.act_fn",
        up="model.layers.{}.mlp.up_proj",
        hooked={
            **_HOOKED_LLAMA,
            "original_architecture": "Gemma2ForCausalLM",
            "act_fn": "gelu_pytorch_tanh",
            "use_normalization_before_and_after": True,
            "attn_scale": 8**0.5,
            "attn_scores_soft_cap": 50.0,
            "output_logits_soft_cap": 30.0,
            "use_local_attn": True,
            "window_size": 64,
            "attn_types": ["local", "global", "local"],
        },
    ),
}


def _like_llama(model_type: str, **config: Any) -> Kind:
    return Kind(
        model_type, {**_LLAMA, **config}, 3, "model.layers.{}.mlp.down_proj", "model.norm", bos=True, hooked=None
    )


# Architectures for tests of every decoder; other tests go through KINDS alone.
MORE_KINDS = {
    "qwen3": _like_llama("qwen3"),
    "mistral": _like_llama("mistral", sliding_window=6),
    "phi3": _like_llama("phi3"),
    "gemma3": _like_llama("gemma3_text", sliding_window=6),
}
SIX = ["bloom", "gpt2", "llama", "opt", "qwen2", "gemma2"]  # edits and scores are tried on these
BACKENDS = ["bridge", "hooked"] if has_hooked_transformer() else ["bridge"]
DENSE = [*KINDS, "demo"]
LITERAL = ["bloom", "gpt2", "llama", "demo"]  # their scores are computed neuron by neuron
CONTEXT = 24  # of models with a drawn size; short, so that a prompt that fills it runs quickly


def of_size(name: str, n_layers: int, d_mlp: int) -> Kind:
    """Return an architecture with different numbers of layers and neurons."""
    kind = KINDS[name]
    width = {"opt": "ffn_dim"}.get(name, "intermediate_size")
    config = {**kind.config, "num_hidden_layers": n_layers, width: d_mlp, "max_position_embeddings": CONTEXT}
    hooked = kind.hooked
    if isinstance(hooked, dict):
        hooked = {**hooked, "n_layers": n_layers, "d_mlp": d_mlp, "n_ctx": CONTEXT}
    return replace(kind, config=config, n_layers=n_layers, hooked=hooked)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of 400 tokens whose padding is its BOS and end token, as in GPT-2: the hard case."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for texts in TEXTS.values() for text in texts], trainer)
    end = "<|end|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end, unk_token=end
    )


def save_model(
    model_type: str, config: dict[str, Any], directory: Path, *, auto: type = AutoModelForCausalLM, seed: int = 0
) -> Path:
    """Save a model with random weights, which are so large that its neurons differ between prompts."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    ids = {f"{name}_token_id": tokenizer.bos_token_id for name in ("bos", "eos", "pad")}
    hugging_face_config = AutoConfig.for_model(model_type, **ids, **config)
    model = auto.from_config(hugging_face_config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "norm" not in name and "ln" not in name:
                weights.normal_(std=0.3)
            else:  # with weights of 1, a test could not see that a final norm's weight is left out
                weights.add_(0.2 * torch.randn_like(weights))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def hooked_by_hand(hooked: dict[str, Any], directory: Path) -> Any:
    """Return a HookedTransformer, with raw weights, of an architecture that TransformerLens 3 converts only by name."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions

    sizes = {"d_model": 32, "n_heads": 4, "d_head": 8, "n_ctx": 128, "d_vocab": 400}
    config = HookedTransformerConfig(device="cpu", **(sizes | hooked))
    convert = {
        "GPT2LMHeadModel": weight_conversions.convert_gpt2_weights,
        "LlamaForCausalLM": weight_conversions.convert_llama_weights,
        "Gemma2ForCausalLM": weight_conversions.convert_gemma_weights,
    }[config.original_architecture]
    model = HookedTransformer(config, AutoTokenizer.from_pretrained(directory))
    weights = convert(AutoModelForCausalLM.from_pretrained(directory), config)
    model.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return model

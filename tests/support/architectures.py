"""Tiny random models of every architecture that TransformerLens registers, and of variants of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from support.zoo import make_tokenizer

# The sizes by every name that a configuration gives them; each configuration takes those that it knows.
SIZES: dict[str, Any] = {
    "vocab_size": 400,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 3),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "encoder_attention_heads"), 4
    ),
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_dim"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim"), 96),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"), 128),
    **dict.fromkeys(("max_encoder_position_embeddings", "max_decoder_position_embeddings"), 128),
    # mixtures of experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 6),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), 24),
    "moe_shared_expert_intermediate_size": 24,
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    # latent attention
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "global_head_dim"), 8),
    "qk_head_dim": 16,
    # state spaces and linear attention
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "mamba_dt_rank", "time_step_rank"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_num_groups"), 1),
    "mamba_num_heads": 4,
    "mamba_n_heads": 8,
    "chunk_size": 16,
    "lru_width": 32,
    "attention_window_size": 64,
    "conv1d_width": 4,
    "sliding_window": 64,
    "attention_window": 16,
    # which layers are of which kind follows from the number of layers
    **dict.fromkeys(("layer_types", "no_rope_layers", "mlp_layer_types", "moe_layers"), None),
    # vision and audio
    "image_size": 32,
    "patch_size": 8,
    "num_mel_bins": 16,
    "max_source_positions": 32,
    "vocab_size_per_layer_input": 400,
    "hidden_size_per_layer_input": 8,
    **dict.fromkeys(
        ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_eos_token_id"), 0
    ),
    "forced_bos_token_id": None,
}


@dataclass(frozen=True)
class Architecture:
    """A tiny model to make.

    Attributes:
        name: the name of the row: the architecture, as TransformerLens registers it, and what is special.
        model_type: Transformers' name; empty where Transformers has no such model.
        config: settings beside the usual sizes; a dict is for a part of the model (`text_config`).
        registered: the name in the registry, where it differs from that of the class.
        class_name: the class in Transformers; by default the one of the registry's name.
        tokens: whether the model reads texts.
    """

    name: str
    model_type: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    registered: str = ""
    class_name: str = ""
    tokens: bool = True

    @property
    def architecture(self) -> str:
        """The name in TransformerLens's registry."""
        return self.registered or self.name.split(" ", maxsplit=1)[0]


def model_types() -> dict[str, str]:
    """Return Transformers' model type of each class."""
    found: dict[str, str] = {}
    for names in (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ):
        for model_type, classes in names.items():
            for name in [classes] if isinstance(classes, str) else classes:
                best = found.get(name)
                # `sarvam_mla` uses DeepSeek's class: the type whose name is most like the class's is its own
                if best is None or _likeness(model_type, name) > _likeness(best, name):
                    found[name] = model_type
    return found


def _likeness(model_type: str, class_name: str) -> int:
    plain = re.sub(r"[^a-z0-9]", "", model_type.lower())
    lower = class_name.lower().replace("_", "")
    return len(plain) if lower.startswith(plain) else -len(plain)


def make_config(model_type: str, given: Mapping[str, Any]) -> Any:
    """Return a small configuration: the sizes above where it has them, and then what is given."""
    config_class = CONFIG_MAPPING[model_type]
    default = config_class()
    numbers = default.to_dict()
    known = {*numbers, *getattr(default, "attribute_map", {}).values()}
    settings = {
        name: size for name, size in SIZES.items() if name in known and not _has_stages(numbers.get(name), size)
    }
    if "kv_lora_rank" in settings:  # latent attention has a key for every head
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    for name in getattr(config_class, "sub_configs", {}):
        part = getattr(default, name, None)
        if part is not None:
            own = given.get(name, {})
            settings[name] = make_config(part.model_type, own).to_dict() if part.model_type in CONFIG_MAPPING else own
    settings |= {name: value for name, value in given.items() if name not in getattr(config_class, "sub_configs", {})}
    return config_class(**settings)


def _has_stages(default: Any, size: Any) -> bool:
    """Whether a size is a list, of one number a stage, as in vision towers."""
    return isinstance(default, list | tuple) and size is not None


def make_weights(model: nn.Module, seed: int = 0) -> None:
    """Draw weights that are so large that neurons differ between prompts; leave time constants of state spaces."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            noise = torch.randn(weights.shape, generator=generator)
            last = name.rsplit(".", 1)[-1]
            if last in ("A_log", "D", "dt_bias", "a_param", "recurrent_param") or "time_" in last or "dt_" in name:
                continue
            if weights.ndim == 1 and last == "weight":  # a norm: the final one's weight must not be 1
                weights.add_(0.2 * noise)
            else:
                weights.copy_(0.3 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.05 * torch.randn(buffer.shape, generator=generator))


def reads_both_ways(model: nn.Module) -> bool:
    """Whether the model is an encoder or has one."""
    return bool(getattr(model.config, "is_encoder_decoder", False)) or "MaskedLM" in type(model).__name__


def make(architecture: Architecture, directory: Path) -> None:
    """Save the model and a tokenizer to a directory.

    Raises:
        Exception: whatever Transformers raises, where it cannot make so small a model.
    """
    config = make_config(architecture.model_type, architecture.config)
    model = getattr(transformers, architecture.class_name or architecture.architecture)(config)
    make_weights(model)
    if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", None) is None:
        # It is not the padding.
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 1
    model.save_pretrained(directory)
    if config.model_type == "switch_transformers":  # TransformerLens looks for this file alone
        torch.save(model.state_dict(), directory / "pytorch_model.bin")
    if architecture.tokens:
        tokenizer = make_tokenizer()
        around = "$A <|end|>" if getattr(config, "is_encoder_decoder", False) else "<|end|> $A <|end|>"
        if reads_both_ways(model):  # as theirs do, this one adds special tokens by itself
            marks = [("<|end|>", tokenizer.eos_token_id)]
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=around, special_tokens=marks)
        tokenizer.save_pretrained(directory)
    if architecture.registered:
        saved = json.loads((directory / "config.json").read_text())
        saved["architectures"] = [architecture.registered]
        (directory / "config.json").write_text(json.dumps(saved))


_MAMBA = {"mamba_chunk_size": 16, "mamba_n_heads": 8, "mamba_d_head": 8}
_JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
_LINEAR = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
_MROPE = {
    "text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
}
# What these need beside the usual sizes.
NEEDED: dict[str, dict[str, Any]] = {
    "BambaForCausalLM": {"attn_layer_indices": [1], **_MAMBA},
    "BertLMHeadModel": {"is_decoder": True},
    "FalconH1ForCausalLM": {"mamba_d_ssm": 64, **_MAMBA},
    "CodeGenForCausalLM": {"rotary_dim": 4},
    "Emu3ForConditionalGeneration": {
        "vocabulary_map": {"<image>": 5},
        "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1], "codebook_size": 64},
    },
    "Florence2ForConditionalGeneration": {
        "vision_config": {
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [16, 32],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "projection_dim": 32,
        },
    },
    "MuseGlimmerForConditionalGeneration": {"out_hidden_size": 32, "projector_hidden_size": 32},
    "Glm4vForConditionalGeneration": _MROPE,
    "Qwen2_5_VLForConditionalGeneration": _MROPE,
    "GPTJForCausalLM": {"rotary_dim": 4},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "GraniteMoeHybridForCausalLM": {"layer_types": ["mamba", "attention", "mamba"], **_MAMBA},
    "JambaForCausalLM": _JAMBA,
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention", "conv"]},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8},
    "NemotronHForCausalLM": {"layers_block_type": ["mamba", "mlp", "attention", "mlp"]},
    "Qwen3NextForCausalLM": _LINEAR,
    "Qwen3_5ForCausalLM": _LINEAR,
    "Qwen3_5ForConditionalGeneration": {"text_config": _LINEAR},
    "Qwen3_5MoeForCausalLM": _LINEAR,
    "Qwen3_5MoeForConditionalGeneration": {"text_config": _LINEAR},
    "RecurrentGemmaForCausalLM": {"head_dim": 8, "hidden_activation": "gelu_pytorch_tanh"},
    "Zamba2ForCausalLM": {"layers_block_type": ["mamba", "hybrid", "mamba"], "num_mem_blocks": 1},
}
# Registered names of Transformers' models under another class's name.
ALIASES = {
    "BloomModel": "BloomForCausalLM",
    "Gemma1ForCausalLM": "GemmaForCausalLM",
    "JetMoEForCausalLM": "JetMoeForCausalLM",
    "MPTForCausalLM": "MptForCausalLM",
    "NeoForCausalLM": "GPTNeoForCausalLM",
    "NeoXForCausalLM": "GPTNeoXForCausalLM",
    "PhiMoEForCausalLM": "PhimoeForCausalLM",
    "T5WithLMHeadModel": "T5ForConditionalGeneration",
}
# The model type where the class is listed under several, or in none of Transformers' lists of language models.
TYPES = {
    "ASTForAudioClassification": "audio-spectrogram-transformer",
    "DeiTForImageClassification": "deit",
    "DeiTModel": "deit",
    "HubertForCTC": "hubert",
    "HubertModel": "hubert",
    "Llama4ForCausalLM": "llama4_text",
    "Qwen3_5ForCausalLM": "qwen3_5_text",
    "Qwen3_5MoeForCausalLM": "qwen3_5_moe_text",
    "ViTForImageClassification": "vit",
    "ViTModel": "vit",
    "Wav2Vec2ForCTC": "wav2vec2",
    "Wav2Vec2ForPreTraining": "wav2vec2",
    "Wav2Vec2Model": "wav2vec2",
}
_NO_TEXT = re.compile("^(AST|Hubert|Wav2Vec2|ViT|DeiT)")
_DENSE_DEEPSEEK = {"first_k_dense_replace": 3}
_HYBRID_EXPERTS = {"layers_block_type": ["mamba", "moe", "attention", "mlp"]}
# Variants of architectures: settings that change what a layer computes, and sizes that real models have.
VARIANTS: dict[str, dict[str, Any]] = {
    "BitNetForCausalLM (tied)": {"tie_word_embeddings": True},
    "BloomForCausalLM (post-norm residual)": {"apply_residual_connection_post_layernorm": True},
    "CohereForCausalLM (query norm)": {"use_qk_norm": True},
    "Cohere2ForCausalLM (window 6)": {"sliding_window": 6},
    "DeepseekV2ForCausalLM (dense)": _DENSE_DEEPSEEK,
    "DeepseekV2ForCausalLM (Lite: no query LoRA)": {"q_lora_rank": None},
    "DeepseekV3ForCausalLM (dense)": _DENSE_DEEPSEEK,
    "DeepseekV3ForCausalLM (two groups)": {"n_group": 2, "topk_group": 1},
    "FalconForCausalLM (new decoder)": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "FalconForCausalLM (new decoder, no multi-query)": {
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "multi_query": False,
    },
    "FalconForCausalLM (ALiBi)": {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
    "FalconH1ForCausalLM (multipliers)": {
        "mamba_d_ssm": 64,
        "mlp_multipliers": [0.8, 0.3],
        "embedding_multiplier": 2.0,
        "lm_head_multiplier": 0.5,
        **_MAMBA,
    },
    "Gemma2ForCausalLM (window 6)": {"sliding_window": 6},
    "Gemma3ForCausalLM (window 6)": {"sliding_window": 6},
    "Gemma4ForCausalLM (experts)": {"enable_moe_block": True, "hidden_size_per_layer_input": 0},
    "Gemma4ForCausalLM (double-wide MLP)": {
        "use_double_wide_mlp": True,
        "num_kv_shared_layers": 1,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
    "GPT2LMHeadModel (twelve layers)": {"n_layer": 12},
    "GPT2LMHeadModel (ReLU, narrow)": {"activation_function": "relu", "n_inner": 40},
    "GPTBigCodeForCausalLM (multi-head)": {"multi_query": False},
    "GPTNeoXForCausalLM (sequential residual)": {"use_parallel_residual": False},
    "GraniteForCausalLM (multipliers)": {
        "residual_multiplier": 0.22,
        "embedding_multiplier": 12.0,
        "logits_scaling": 8.0,
    },
    "GraniteMoeHybridForCausalLM (dense)": {
        "layer_types": ["mamba", "attention", "mamba"],
        "num_local_experts": 0,
        **_MAMBA,
    },
    "GraniteMoeHybridForCausalLM (attention only)": {"layer_types": ["attention"] * 3, **_MAMBA},
    "JambaForCausalLM (dense)": {"num_experts": 1, **_JAMBA},
    "Llama4ForCausalLM (every other layer dense)": {"interleave_moe_layer_step": 2},
    "LlamaForCausalLM (attention bias)": {"attention_bias": True},
    "LlamaForCausalLM (MLP bias)": {"mlp_bias": True},
    "LlamaForCausalLM (heads of 16)": {"head_dim": 16},
    "LlamaForCausalLM (tied)": {"tie_word_embeddings": True},
    "LlamaForCausalLM (Llama 3 RoPE)": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "MistralForCausalLM (window 6)": {"sliding_window": 6},
    "MistralForCausalLM (no window)": {"sliding_window": None},
    "MT5ForConditionalGeneration (ReLU)": {"feed_forward_proj": "relu"},
    "NemotronHForCausalLM (experts)": _HYBRID_EXPERTS,
    "OlmoForCausalLM (clipped attention)": {"clip_qkv": 1.0},
    "OPTForCausalLM (post-norm, as OPT-350m)": {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
    "PhiForCausalLM (query norm)": {"qk_layernorm": True},
    "Qwen2ForCausalLM (window 6)": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "Qwen2MoeForCausalLM (a dense layer)": {"mlp_only_layers": [0]},
    "Qwen3MoeForCausalLM (a dense layer)": {"mlp_only_layers": [0]},
    "Qwen3MoeForCausalLM (every other layer dense)": {"decoder_sparse_step": 2},
    "StableLmForCausalLM (parallel residual)": {"use_parallel_residual": True, "qk_layernorm": True},
    "T5ForConditionalGeneration (gated, as T5 1.1)": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "XGLMForCausalLM (embeddings not scaled)": {"scale_embedding": False},
    "Zamba2ForCausalLM (shared twice)": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "num_hidden_layers": 4,
        "num_mem_blocks": 1,
    },
}
# Transformers has them, and TransformerLens does not register them: {class: model type}.
NOT_REGISTERED = {
    "BigBirdPegasusForConditionalGeneration": "bigbird_pegasus",
    "Dots1ForCausalLM": "dots1",
    "ElectraForMaskedLM": "electra",
    "HeliumForCausalLM": "helium",
    "MiniMaxForCausalLM": "minimax",
    "MinistralForCausalLM": "ministral",
    "ModernBertForMaskedLM": "modernbert",
    "NllbMoeForConditionalGeneration": "nllb-moe",
    "PersimmonForCausalLM": "persimmon",
    "PhimoeForCausalLM": "phimoe",
    "PLBartForConditionalGeneration": "plbart",
    "UMT5ForConditionalGeneration": "umt5",
    "XLMRobertaForMaskedLM": "xlm-roberta",
    "XLMRobertaXLForMaskedLM": "xlm-roberta-xl",
}
# On TransformerLens 3: HookedTransformers from a directory. Others are refused by their names.
HOOKED = (
    "BertForMaskedLM", "BloomForCausalLM", "Cohere2ForCausalLM", "CodeGenForCausalLM", "FalconForCausalLM",
    "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GemmaForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM",
    "GPTNeoForCausalLM", "GPTNeoXForCausalLM", "GptOssForCausalLM", "LlamaForCausalLM", "MistralForCausalLM",
    "MixtralForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM", "OlmoeForCausalLM", "OlmoForCausalLM",
    "OPTForCausalLM", "Phi3ForCausalLM", "PhiForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM", "SmolLM3ForCausalLM", "StableLmForCausalLM", "T5ForConditionalGeneration",
    "XGLMForCausalLM", "BloomForCausalLM (post-norm residual)", "LlamaForCausalLM (attention bias)",
    "LlamaForCausalLM (MLP bias)", "LlamaForCausalLM (heads of 16)", "LlamaForCausalLM (tied)",
    "LlamaForCausalLM (Llama 3 RoPE)", "MistralForCausalLM (window 6)", "MistralForCausalLM (no window)",
    "OPTForCausalLM (post-norm, as OPT-350m)", "Qwen2ForCausalLM (window 6)",
    "GPTNeoXForCausalLM (sequential residual)", "Gemma3ForCausalLM (window 6)", "Gemma2ForCausalLM (window 6)",
)  # fmt: skip


def architectures(registered: Iterable[str]) -> dict[str, Architecture]:
    """Return every tiny model by its name: of each registered architecture, of each variant, and of some others.

    Args:
        registered: the names in TransformerLens's registry.
    """
    types = model_types() | TYPES
    found = []
    for name in registered:
        class_name = ALIASES.get(name, name)
        given = NEEDED.get(class_name, {})
        known = types.get(class_name, "") if hasattr(transformers, class_name) else ""
        alias = {"registered": name, "class_name": class_name} if name in ALIASES else {}
        found.append(Architecture(name, known, given, tokens=not _NO_TEXT.search(name), **alias))
    found += [Architecture(name, types[name.split(" ")[0]], given) for name, given in VARIANTS.items()]
    found += [Architecture(name, model_type) for name, model_type in NOT_REGISTERED.items() if name not in registered]
    return {one.name: one for one in sorted(found, key=lambda one: one.name.lower())}

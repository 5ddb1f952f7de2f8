"""Configs of published models, as their `config.json` says, and the same at a small size.

CONFIGS["google/gemma-3-270m"]        what decides the graph, without names of classes and versions
small(CONFIGS["google/gemma-3-270m"]) a config of the same switches whose model has a few thousand weights
"""

from __future__ import annotations

import copy
from typing import Any

import transformers

_GEMMA3 = {
    "model_type": "gemma3_text", "attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": None,
    "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 32768,
    "num_attention_heads": 4, "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10000.0, "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 512, "vocab_size": 262144,
}  # fmt: skip
_SMOLLM3 = {
    "model_type": "smollm3", "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 11008, "layer_types": ["full_attention"] * 36, "max_position_embeddings": 65536, "max_window_layers": 28,
    "mlp_bias": False, "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16,
    "num_hidden_layers": 36, "num_key_value_heads": 4, "pretraining_tp": 2, "rms_norm_eps": 1e-6, "rope_scaling": None,
    "rope_theta": 5000000.0, "sliding_window": None, "use_sliding_window": False, "vocab_size": 128256,
}  # fmt: skip
_PHI4 = {
    "model_type": "phi3", "attention_bias": False, "attention_dropout": 0.0, "embd_pdrop": 0.0, "full_attn_mod": 1,
    "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192, "interpolate_factor": 1, "lm_head_bias": False,
    "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 24, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75, "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": True, "vocab_size": 200064,
    # the real long factors differ; how many there are does not
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0 + place for place in range(48)]},
}  # fmt: skip
_GRANITE3 = {
    "model_type": "granite", "attention_bias": False, "attention_dropout": 0.1, "attention_multiplier": 0.015625,
    "embedding_multiplier": 12.0, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "logits_scaling": 8.0,
    "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 40,
    "num_key_value_heads": 8, "residual_multiplier": 0.22, "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 5000000.0,
    "tie_word_embeddings": True, "vocab_size": 49155,
}  # fmt: skip
_GRANITE4 = {
    "model_type": "granitemoehybrid", "attention_bias": False, "attention_dropout": 0.0, "attention_multiplier": 0.015625,
    "embedding_multiplier": 12, "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 2048,
    "layer_types": ["attention"] * 28, "logits_scaling": 4, "max_position_embeddings": 32768, "num_attention_heads": 16,
    "num_experts_per_tok": 0, "num_hidden_layers": 28, "num_key_value_heads": 4, "num_local_experts": 0,
    "normalization_function": "rmsnorm", "position_embedding_type": "rope", "residual_multiplier": 0.246, "rms_norm_eps": 1e-5,
    "rope_scaling": None, "rope_theta": 10000000, "shared_intermediate_size": 2048, "tie_word_embeddings": True,
    "vocab_size": 100352, "mamba_n_heads": 32, "mamba_d_head": 64, "mamba_expand": 2,
}  # fmt: skip
_LFM2: dict[str, Any] = {
    "model_type": "lfm2", "block_auto_adjust_ff_dim": True, "block_dim": 1024, "block_ff_dim": 6656,
    "block_ffn_dim_multiplier": 1.0, "block_mlp_init_scale": 1.0, "block_multiple_of": 256, "block_norm_eps": 1e-5,
    "block_out_init_scale": 1.0, "block_use_swiglu": True, "block_use_xavier_init": True, "conv_L_cache": 3, "conv_bias": False,
    "conv_dim": 1024, "conv_dim_out": 1024, "conv_use_xavier_init": True, "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    "hidden_size": 1024, "max_position_embeddings": 128000, "norm_eps": 1e-5, "num_attention_heads": 16, "num_heads": 16,
    "num_hidden_layers": 16, "num_key_value_heads": 8, "rope_theta": 1000000.0, "use_pos_enc": True, "vocab_size": 65536,
}  # fmt: skip
_QWEN3_5: dict[str, Any] = {
    "model_type": "qwen3_5_text", "attention_bias": False, "attention_dropout": 0.0, "attn_output_gate": True, "head_dim": 256,
    "full_attention_interval": 4, "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3584,
    "layer_types": [*["linear_attention"] * 3, "full_attention"] * 6,
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 16,
    "linear_value_head_dim": 128, "mamba_ssm_dtype": "float32", "max_position_embeddings": 262144, "mlp_only_layers": [],
    "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False, "num_attention_heads": 8, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "vocab_size": 248320,
    "rope_parameters": {
        "mrope_interleaved": True, "mrope_section": [11, 11, 10], "rope_type": "default", "rope_theta": 10000000,
        "partial_rotary_factor": 0.25,
    },
}  # fmt: skip

_ALL: dict[str, dict[str, Any]] = {
    "google/gemma-3-270m": {
        **_GEMMA3, "_sliding_window_pattern": 6, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3, "use_bidirectional_attention": False,
    },
    "google/gemma-3-1b-it": {
        **_GEMMA3, "sliding_window_pattern": 6, "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
        "cache_implementation": "hybrid",
    },
    "HuggingFaceTB/SmolLM3-3B": _SMOLLM3,
    "microsoft/Phi-4-mini-instruct": _PHI4,
    "ibm-granite/granite-3.1-2b-instruct": _GRANITE3,
    "ibm-granite/granite-3.3-2b-instruct": {**_GRANITE3, "attention_dropout": 0.0, "rope_theta": 10000000.0, "vocab_size": 49159},
    "ibm-granite/granite-4.0-350m": _GRANITE4,
    "ibm-granite/granite-4.0-1b": {
        **_GRANITE4, "hidden_size": 2048, "intermediate_size": 4096, "shared_intermediate_size": 4096, "num_hidden_layers": 40,
        "layer_types": ["attention"] * 40, "attention_multiplier": 0.0078125, "logits_scaling": 8, "residual_multiplier": 0.22,
        "max_position_embeddings": 131072, "mamba_n_heads": 64,
    },
    "LiquidAI/LFM2-350M": _LFM2,
    "LiquidAI/LFM2-700M": {
        **_LFM2, "hidden_size": 1536, "block_dim": 1536, "conv_dim": 1536, "conv_dim_out": 1536, "block_ff_dim": 10240,
        "num_attention_heads": 24, "num_heads": 24,
    },
    "LiquidAI/LFM2-1.2B": {
        **_LFM2, "hidden_size": 2048, "block_dim": 2048, "conv_dim": 2048, "conv_dim_out": 2048, "block_ff_dim": 12288,
        "num_attention_heads": 32, "num_heads": 32,
    },
    "Qwen/Qwen3.5-0.8B": _QWEN3_5,
    "Qwen/Qwen3.5-2B": {**_QWEN3_5, "hidden_size": 2048, "intermediate_size": 6144},
    "Qwen/Qwen3.5-4B": {
        **_QWEN3_5, "hidden_size": 2560, "intermediate_size": 9216, "linear_num_value_heads": 32, "num_attention_heads": 16,
        "num_hidden_layers": 32, "num_key_value_heads": 4, "layer_types": [*["linear_attention"] * 3, "full_attention"] * 8,
    },
}  # fmt: skip
CONFIGS = {name: config for name, config in _ALL.items() if config["model_type"] in transformers.CONFIG_MAPPING}
"""Those that the installed transformers has."""
_LAYERS = {"gemma3_text": 7}  # six see a window, one sees all


def small(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config of the same switches, with few layers of a small width, for 256 positions."""
    kind = config["model_type"]
    layers = min(int(config["num_hidden_layers"]), _LAYERS.get(kind, 4))
    heads = 4
    kv_heads = max(1, heads * config["num_key_value_heads"] // config["num_attention_heads"])
    found = {
        **copy.deepcopy(config),
        "vocab_size": 100, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    for name in ("layer_types", "no_rope_layers"):
        if name in found:
            found[name] = found[name][:layers]
    if kind == "gemma3_text":
        found |= {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 12}
    if kind == "phi3":  # a head of 64, of which 48 values turn
        scaling = found["rope_scaling"]
        factors = {name: [*scaling[name][:20], 1.5, 2.0, 3.0, 4.0] for name in ("short_factor", "long_factor")}
        found |= {"hidden_size": 256, "rope_scaling": {**scaling, **factors}, "original_max_position_embeddings": 224}
    if kind == "lfm2":
        found |= {"block_ff_dim": 96, "block_multiple_of": 16, "full_attn_idxs": [1]}
    if kind == "qwen3_5_text":
        found |= {"head_dim": 64, "linear_num_key_heads": 16, "linear_key_head_dim": 8, "linear_value_head_dim": 6}
        found["linear_num_value_heads"] = 16 * config["linear_num_value_heads"] // config["linear_num_key_heads"]
        found["rope_parameters"] = {**config["rope_parameters"], "mrope_section": [3, 3, 2]}
    if kind == "granitemoehybrid":
        found |= {"shared_intermediate_size": 96, "mamba_n_heads": 8, "mamba_d_head": 32}
    return found

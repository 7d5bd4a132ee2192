"""The shapes of published models by name, as Hugging Face configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tempo_megatron.conversion import hf_config, hf_files
from tempo_megatron.conversion.mapping import BackboneSettings
from tempo_megatron.conversion.source import open_source

# No shape has an end-of-sequence token: responses get the requested length.
_COMMON = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
    "dtype": "bfloat16",
}
_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1e6,
    "use_sliding_window": False,
    "attention_bias": False,
}
_OLMO3_ROPE = {
    "full_attention": {
        "rope_type": "yarn",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": 1.2079441541679836,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
}
_OLMO3 = {
    "architectures": ["Olmo3ForCausalLM"],
    "model_type": "olmo3",
    "num_key_value_heads": 32,
    "vocab_size": 100278,
    "max_position_embeddings": 65536,
    "rope_parameters": _OLMO3_ROPE,
    "sliding_window": 4096,
    "attention_bias": False,
    "tie_word_embeddings": False,
}
_LLAMA3 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 32768,
    "rope_theta": 500000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
_QWEN3_MOE = {
    **_QWEN3,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
_OLMOE = {
    "architectures": ["OlmoeForCausalLM"],
    "model_type": "olmoe",
    "num_key_value_heads": 16,
    "vocab_size": 50304,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
    "attention_bias": False,
}
_TINY = {**_QWEN3, "vocab_size": 256, "num_key_value_heads": 2, "head_dim": 32, "dtype": "float32"}
_TINY_MOE = {**_QWEN3_MOE, **{key: _TINY[key] for key in ("vocab_size", "num_key_value_heads", "head_dim", "dtype")}}
_TINY_MOE |= {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}


def _shape(common: dict[str, Any], sizes: tuple[int, int, int, int], tied: bool = False) -> dict[str, Any]:
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    return {**_COMMON, **common, **dict(zip(names, sizes, strict=True)), "tie_word_embeddings": tied}


SHAPES: dict[str, dict[str, Any]] = {
    "tiny": _shape(_TINY, (2, 64, 128, 4)),
    "tiny-moe": _shape(_TINY_MOE, (2, 64, 128, 4)),
    "qwen3-0.6b": _shape(_QWEN3, (28, 1024, 3072, 16), tied=True),
    "qwen3-1.7b": _shape(_QWEN3, (28, 2048, 6144, 16), tied=True),
    "qwen3-4b": _shape(_QWEN3, (36, 2560, 9728, 32), tied=True),
    "qwen3-8b": _shape(_QWEN3, (36, 4096, 12288, 32)),
    "qwen3-14b": _shape(_QWEN3, (40, 5120, 17408, 40)),
    "olmo3-7b": _shape(_OLMO3, (32, 4096, 11008, 32)),
    "llama3-8b": _shape(_LLAMA3, (32, 4096, 14336, 32)),
    "qwen3-30b-a3b": _shape(_QWEN3_MOE, (48, 2048, 6144, 32)),
    "olmoe-1b-7b": _shape(_OLMOE, (16, 2048, 1024, 16)),
}

DIRECTORIES = {
    "Qwen3-0.6B-Base": "qwen3-0.6b",
    "Qwen3-1.7B-Base": "qwen3-1.7b",
    "Qwen3-4B-Base": "qwen3-4b",
    "Qwen3-8B-Base": "qwen3-8b",
    "Qwen3-14B-Base": "qwen3-14b",
    "Olmo-3-1025-7B": "olmo3-7b",
    "Llama-3.1-8B": "llama3-8b",
    "Qwen3-30B-A3B-Base": "qwen3-30b-a3b",
    "OLMoE-1B-7B-0924": "olmoe-1b-7b",
}
"""The shape of each published model name."""


def shape_config(name: str, layers: int | None, vocabulary: int | None) -> dict[str, Any]:
    """Return the config.json of a shape, with `layers` and `vocabulary` in place of its own if they are given."""
    config = dict(SHAPES[name])
    if layers:
        config["num_hidden_layers"] = layers
    if vocabulary:
        config["vocab_size"] = vocabulary
    return config


def backbone_shape(config: dict[str, Any]) -> BackboneSettings:
    """Return the shape that a config.json describes."""
    return hf_config.backbone_settings(config)


def model_shape(hf_path: str) -> BackboneSettings:
    """Return the shape of a model from its directory, or from its published name if there is no directory.

    A checkpoint of a run also counts as a directory: it holds the config.json of its model. Raises ConversionError.
    """
    directory = Path(hf_path)
    if (directory.parent / "state.json").is_file():
        return backbone_shape(hf_files.read_config(directory))
    if not directory.is_dir() and directory.name in DIRECTORIES:
        return backbone_shape(shape_config(DIRECTORIES[directory.name], None, None))
    return open_source(directory, "policy").settings

"""Shapes of published models by name, as Hugging Face configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tempo_megatron.conversion import hf_config, hf_files
from tempo_megatron.conversion.mapping import BackboneSettings
from tempo_megatron.conversion.source import open_source

# No shape names an end-of-sequence token: responses are as long as they are asked to be.
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
_TINY = {**_QWEN3, "vocab_size": 256, "num_key_value_heads": 2, "head_dim": 32, "dtype": "float32"}


def _shape(common: dict[str, Any], sizes: tuple[int, int, int, int], tied: bool = False) -> dict[str, Any]:
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    return {**_COMMON, **common, **dict(zip(names, sizes, strict=True)), "tie_word_embeddings": tied}


SHAPES: dict[str, dict[str, Any]] = {
    "tiny": _shape(_TINY, (2, 64, 128, 4)),
    "qwen3-0.6b": _shape(_QWEN3, (28, 1024, 3072, 16), tied=True),
    "qwen3-1.7b": _shape(_QWEN3, (28, 2048, 6144, 16), tied=True),
    "qwen3-4b": _shape(_QWEN3, (36, 2560, 9728, 32), tied=True),
    "qwen3-8b": _shape(_QWEN3, (36, 4096, 12288, 32)),
    "qwen3-14b": _shape(_QWEN3, (40, 5120, 17408, 40)),
    "olmo3-7b": _shape(_OLMO3, (32, 4096, 11008, 32)),
    "llama3-8b": _shape(_LLAMA3, (32, 4096, 14336, 32)),
}

DIRECTORIES = {
    "Qwen3-0.6B-Base": "qwen3-0.6b",
    "Qwen3-1.7B-Base": "qwen3-1.7b",
    "Qwen3-4B-Base": "qwen3-4b",
    "Qwen3-8B-Base": "qwen3-8b",
    "Qwen3-14B-Base": "qwen3-14b",
    "Olmo-3-1025-7B": "olmo3-7b",
    "Llama-3.1-8B": "llama3-8b",
}
"""names under which the models are published -> shapes"""


def config(name: str, layers: int | None, vocabulary: int | None) -> dict[str, Any]:
    """config.json of a shape, with fewer layers or another vocabulary where they are given."""
    made = dict(SHAPES[name])
    if layers:
        made["num_hidden_layers"] = layers
    if vocabulary:
        made["vocab_size"] = vocabulary
    return made


def backbone_shape(described: dict[str, Any]) -> BackboneSettings:
    return hf_config.backbone_settings(described)


def of_model(hf_path: str) -> BackboneSettings:
    """The shape of a Hugging Face directory, or, where there is none, of the model that is published under its name.

    What a run's checkpoint says of its model, beside weights in another form, is one too. Raises ConversionError.
    """
    directory = Path(hf_path)
    if (directory.parent / "state.json").is_file():
        return backbone_shape(hf_files.read_config(directory))
    if not directory.is_dir() and directory.name in DIRECTORIES:
        return backbone_shape(config(DIRECTORIES[directory.name], None, None))
    return open_source(directory, "policy").settings

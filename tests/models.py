"""Small models of every family that is converted, every tensor of them random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3Config

SHAPE: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "qwen3": (Qwen3Config, {"tie_word_embeddings": False}),
    "qwen3-tied": (Qwen3Config, {"tie_word_embeddings": True}),
    "llama": (LlamaConfig, {"tie_word_embeddings": True}),
    "llama-3": (LlamaConfig, {"rope_parameters": LLAMA_3_ROPE, "tie_word_embeddings": False}),
}
"""a row a test model: its config class, and what differs from SHAPE"""


def write_model(name: str, directory: Path, **changes: Any) -> None:
    """A Hugging Face directory of the named row; norms are random too, around 1."""
    kind, settings = CONFIGS[name]
    model = AutoModelForCausalLM.from_config(kind(**{**SHAPE, **settings, **changes}, dtype="float32"))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            parameter.copy_(1 + 0.3 * noise if parameter.dim() == 1 else noise * parameter.shape[1] ** -0.5)
    model.save_pretrained(directory)

"""Small models of every family that is converted, every tensor of them random."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoeConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

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
# attention_factor as published: 0.1 ln(8) + 1, the one that vLLM, which does not read it, computes too
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "attention_factor": 1.2079441541679836,
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 500000.0}
OLMO: dict[str, Any] = {
    "hidden_size": 128,
    "head_dim": None,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
"""vLLM computes OLMo's channels per head as hidden_size / heads."""
OLMO_3 = {"sliding_window": 24, "rope_parameters": {"full_attention": YARN_ROPE, "sliding_attention": PLAIN_ROPE}}
EXPERTS: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.0}
QWEN_3_MOE = {**EXPERTS, "moe_intermediate_size": 40, "tie_word_embeddings": False}
CONFIGS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "qwen3": (Qwen3Config, {"tie_word_embeddings": False}),
    "qwen3-tied": (Qwen3Config, {"tie_word_embeddings": True}),
    "llama": (LlamaConfig, {"tie_word_embeddings": True}),
    "llama-3": (LlamaConfig, {"rope_parameters": LLAMA_3_ROPE, "tie_word_embeddings": False}),
    "llama-biases": (LlamaConfig, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "olmo-2": (Olmo2Config, OLMO),
    "olmo-3": (Olmo3Config, {**OLMO, **OLMO_3}),
}
"""Each row is a dense test model: its config class, and what differs from SHAPE."""
EXPERT_CONFIGS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "qwen3-moe": (Qwen3MoeConfig, {**QWEN_3_MOE, "norm_topk_prob": True, "mlp_only_layers": [1]}),
    "qwen3-moe-step": (Qwen3MoeConfig, {**QWEN_3_MOE, "attention_bias": True, "decoder_sparse_step": 2}),
    "olmoe": (OlmoeConfig, {**OLMO, **EXPERTS, "intermediate_size": 40, "num_key_value_heads": 2}),
}
"""The same for models with experts."""
ALL_CONFIGS = CONFIGS | EXPERT_CONFIGS
ABSENT = object()
"""`described` leaves out a key with this value."""


def config_of(name: str, **changes: Any) -> PretrainedConfig:
    """The config of the named row, with changes."""
    kind, settings = ALL_CONFIGS[name]
    shape = {key: value for key, value in {**SHAPE, **settings, **changes}.items() if value is not None}
    return kind(**shape)


def described(name: str, **changes: Any) -> dict[str, Any]:
    """config.json of a row of ALL_CONFIGS with changes; ABSENT leaves a key out."""
    kind = ALL_CONFIGS[name][0]
    architecture = kind.__name__.replace("Config", "ForCausalLM")
    config = config_of(name).to_dict() | {"model_type": kind.model_type, "architectures": [architecture]} | changes
    return {key: value for key, value in config.items() if value is not ABSENT}


def split_experts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names on disk: transformers joins all experts of a layer in memory."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        prefix, _, kind = name.rpartition(".")
        if kind == "gate_up_proj":
            for expert, (gate, up) in enumerate(matrix.chunk(2) for matrix in tensor):
                split |= {f"{prefix}.{expert}.gate_proj.weight": gate, f"{prefix}.{expert}.up_proj.weight": up}
        elif kind == "down_proj":
            split |= {f"{prefix}.{expert}.down_proj.weight": matrix for expert, matrix in enumerate(tensor)}
        else:
            split[name] = tensor
    return split


def write_model(name: str, directory: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> None:
    """A Hugging Face directory of the named row; norms are random too, around 1."""
    save(AutoModelForCausalLM.from_config(config_of(name, **changes)), directory, dtype)


def save(model: PreTrainedModel, directory: Path, dtype: torch.dtype = torch.float32) -> None:
    """Save the model with random values in every tensor."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            parameter.copy_(1 + 0.3 * noise if parameter.dim() == 1 else noise * parameter.shape[-1] ** -0.5)
    model.to(dtype).save_pretrained(directory)


def join_experts(directory: Path) -> None:
    """Rewrite a model's files with transformers' tensors in memory, which join all experts of a layer."""
    joined = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in joined.items()}, directory / "model.safetensors")

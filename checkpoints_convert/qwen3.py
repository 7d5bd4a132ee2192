"""Qwen3, dense, 0.6B to 32B."""

from __future__ import annotations

from functools import partial
from typing import Any

from checkpoints_convert.mapping import Attention, BackboneSettings, ConversionError, Entry, Gated, Vocabulary


def settings(config: dict[str, Any]) -> BackboneSettings:
    """The backbone that a Qwen3 config.json describes. Raises ConversionError naming what it cannot map."""
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 1e6)}
    refused = {
        "attention_bias": config.get("attention_bias", False),
        "use_sliding_window": config.get("use_sliding_window", False),
        "rope_scaling": config.get("rope_scaling"),
        "rope_parameters.rope_type": rope.get("rope_type", "default") != "default" and rope["rope_type"],
        "hidden_act": config.get("hidden_act", "silu") != "silu" and config["hidden_act"],
    }
    for name, value in refused.items():
        if value:
            raise ConversionError(f"config.json: {name}={value!r} is not supported for Qwen3")
    return BackboneSettings(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=config["num_attention_heads"],
        num_query_groups=config["num_key_value_heads"],
        kv_channels=config["head_dim"],
        vocab_size=config["vocab_size"],
        rms_norm_eps=config["rms_norm_eps"],
        rotary_base=int(rope["rope_theta"]),
        tied=config.get("tie_word_embeddings", False),
        qk_layernorm=True,
    )


def entries(config: dict[str, Any]) -> list[Entry]:
    """The map of a Qwen3 model, in the order of Hugging Face's layers."""
    shape = settings(config)
    vocabulary = partial(
        Vocabulary, shard_axis=0, vocab_size=shape.vocab_size, padded_vocab_size=shape.padded_vocab_size
    )
    embedding = vocabulary("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), tied_output=shape.tied)
    made: list[Entry] = [embedding]
    for layer in range(shape.num_layers):
        made += _layer(shape, f"model.layers.{layer}", f"decoder.layers.{2 * layer}", f"decoder.layers.{2 * layer + 1}")
    made.append(Entry("decoder.final_norm.weight", ("model.norm.weight",)))
    if not shape.tied:
        made.append(vocabulary("output_layer.weight", ("lm_head.weight",)))
    return made


def _layer(shape: BackboneSettings, hf: str, attention: str, mlp: str) -> list[Entry]:
    projections = tuple(f"{hf}.self_attn.{part}_proj.weight" for part in "qkv")
    return [
        Entry(f"{attention}.input_layernorm.weight", (f"{hf}.input_layernorm.weight",)),
        Attention(
            f"{attention}.self_attention.linear_qkv.weight",
            projections,
            shard_axis=0,
            num_query_groups=shape.num_query_groups,
            kv_channels=shape.kv_channels,
        ),
        Entry(f"{attention}.self_attention.q_layernorm.weight", (f"{hf}.self_attn.q_norm.weight",)),
        Entry(f"{attention}.self_attention.k_layernorm.weight", (f"{hf}.self_attn.k_norm.weight",)),
        Entry(f"{attention}.self_attention.linear_proj.weight", (f"{hf}.self_attn.o_proj.weight",), shard_axis=1),
        Entry(f"{mlp}.pre_mlp_layernorm.weight", (f"{hf}.post_attention_layernorm.weight",)),
        Gated(
            f"{mlp}.mlp.linear_fc1.weight",
            (f"{hf}.mlp.gate_proj.weight", f"{hf}.mlp.up_proj.weight"),
            shard_axis=0,
        ),
        Entry(f"{mlp}.mlp.linear_fc2.weight", (f"{hf}.mlp.down_proj.weight",), shard_axis=1),
    ]

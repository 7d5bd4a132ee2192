"""What pre-norm decoders with gated MLPs share: the shape read from config.json, and the entries of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from checkpoints_convert.errors import ConversionError
from checkpoints_convert.mapping import Attention, BackboneSettings, Entry, Gated, Vocabulary
from checkpoints_convert.rope import read_rope


def read_settings(
    config: dict[str, Any], *, only: Mapping[str, Any], rope_types: Sequence[str], qk_layernorm: bool
) -> BackboneSettings:
    """The backbone that a config.json describes.

    `only` are settings that have one value that can be mapped, absent counting as that value. Raises ConversionError
    listing every other.
    """
    wrong = [f"{name}={config[name]!r}" for name, value in only.items() if config.get(name, value) != value]
    if wrong:
        raise ConversionError(f"config.json: {', '.join(wrong)}: not supported for {config['model_type']}")
    heads = config["num_attention_heads"]
    return BackboneSettings(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=config.get("num_key_value_heads") or heads,
        kv_channels=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        rms_norm_eps=config["rms_norm_eps"],
        rope=read_rope(config, rope_types),
        tied=config.get("tie_word_embeddings", False),
        qk_layernorm=qk_layernorm,
    )


def entries(shape: BackboneSettings) -> list[Entry]:
    """The map of a model, in the order of Hugging Face's layers."""
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
    head_norms = [
        Entry(f"{attention}.self_attention.{part}_layernorm.weight", (f"{hf}.self_attn.{part}_norm.weight",))
        for part in "qk"
        if shape.qk_layernorm
    ]
    return [
        Entry(f"{attention}.input_layernorm.weight", (f"{hf}.input_layernorm.weight",)),
        Attention(
            f"{attention}.self_attention.linear_qkv.weight",
            projections,
            shard_axis=0,
            num_query_groups=shape.num_query_groups,
            kv_channels=shape.kv_channels,
        ),
        *head_norms,
        Entry(f"{attention}.self_attention.linear_proj.weight", (f"{hf}.self_attn.o_proj.weight",), shard_axis=1),
        Entry(f"{mlp}.pre_mlp_layernorm.weight", (f"{hf}.post_attention_layernorm.weight",)),
        Gated(
            f"{mlp}.mlp.linear_fc1.weight",
            (f"{hf}.mlp.gate_proj.weight", f"{hf}.mlp.up_proj.weight"),
            shard_axis=0,
        ),
        Entry(f"{mlp}.mlp.linear_fc2.weight", (f"{hf}.mlp.down_proj.weight",), shard_axis=1),
    ]

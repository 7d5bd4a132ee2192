"""Decoder-only transformers with gated MLPs: what a family declares, the shape read from config.json, the map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from checkpoints_convert.errors import ConversionError
from checkpoints_convert.mapping import (
    OUTPUT_BIAS,
    OUTPUT_LAYER,
    Attention,
    BackboneSettings,
    Entry,
    Gated,
    LayerAttention,
    QkNorm,
    Vocabulary,
)
from checkpoints_convert.rope import Rope, read_rope

_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size", "rms_norm_eps")
_ONLY = {"hidden_act": "silu", "quantization_config": None}
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a model family declares; everything else about it is read from a model's config.json.

    `name` begins its architectures' names; `critic` ends the one that a critic is exported as. `only` are settings
    that have one value that can be mapped, absent counting as that value. `biases` are the settings, of
    `attention_bias` and `mlp_bias`, that it may turn on. With `windows`, `layer_types` says which layers see
    `sliding_window` tokens, and RoPE is scaled in the others alone.
    """

    name: str
    critic: Literal["ForTokenClassification", "ForSequenceClassification"]
    rope_types: tuple[str, ...]
    rope_base: float
    only: Mapping[str, Any] = field(default_factory=dict)
    biases: tuple[str, ...] = ()
    qk_norm: QkNorm = "none"
    norm_after: bool = False
    windows: bool = False

    def settings(self, config: dict[str, Any]) -> BackboneSettings:
        """The backbone that a config.json describes. Raises ConversionError listing all that cannot be mapped."""
        problems = list(self._problems(config))
        if problems:
            raise ConversionError("\n".join(problems))
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
            tied=config.get("tie_word_embeddings", False),
            attention=self._attention(config),
            qk_norm=self.qk_norm,
            norm_after=self.norm_after,
            attention_bias=bool(config.get("attention_bias")),
            mlp_bias=bool(config.get("mlp_bias")),
        )

    def _problems(self, config: dict[str, Any]) -> Iterator[str]:
        missing = [name for name in _SIZES if name not in config]
        if missing:
            yield f"config.json: {', '.join(missing)}: missing"
        biases = {name: False for name in ("attention_bias", "mlp_bias") if name not in self.biases}
        for name, value in {**_ONLY, **biases, **self.only}.items():
            if config.get(name, value) != value:
                yield f"config.json: {name}={config[name]!r} is not supported for {self.name}; only {value!r} is"
        kinds = set(config.get("layer_types") or [_FULL]) - ({_FULL, _SLIDING} if self.windows else {_FULL})
        if kinds:
            yield f"config.json: layer_types: {', '.join(sorted(kinds))} is not supported for {self.name}"
        try:
            self._attention({"num_hidden_layers": 1, **config})
        except ConversionError as error:
            yield str(error)

    def _attention(self, config: dict[str, Any]) -> tuple[LayerAttention, ...]:
        layers = config["num_hidden_layers"]
        plain = {"rope_theta": config.get("rope_theta", self.rope_base)}
        new, old = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
        if not self.windows:
            rope = read_rope({**plain, **new, **old}, self.rope_types)
            return (LayerAttention(None, rope),) * layers
        full = LayerAttention(None, read_rope({**plain, **new.get(_FULL, {}), **old}, self.rope_types))
        sliding = LayerAttention(config.get("sliding_window"), self._sliding({**plain, **new.get(_SLIDING, {})}))
        kinds = config.get("layer_types") or [_FULL if layer % 4 == 3 else _SLIDING for layer in range(layers)]
        return tuple(sliding if kind == _SLIDING else full for kind in kinds)

    def _sliding(self, given: dict[str, Any]) -> Rope:
        return read_rope(given, ["default"])


def backbone(shape: BackboneSettings) -> list[Entry]:
    """The map of all that policy and critic share, in the order of Hugging Face's layers."""
    made: list[Entry] = [_vocabulary(shape, "embedding.word_embeddings.weight", "model.embed_tokens", shape.tied)]
    for layer in range(shape.num_layers):
        hf = f"model.layers.{layer}"
        made += _attention_layer(shape, hf, f"decoder.layers.{2 * layer}")
        made += _mlp_layer(shape, hf, f"decoder.layers.{2 * layer + 1}")
    made.append(Entry("decoder.final_norm.weight", ("model.norm.weight",), (shape.hidden_size,)))
    return made


def policy(shape: BackboneSettings) -> list[Entry]:
    """The map of a language model."""
    return backbone(shape) + ([] if shape.tied else [_vocabulary(shape, OUTPUT_LAYER, "lm_head")])


def critic(shape: BackboneSettings, head: str, bias: bool) -> list[Entry]:
    """The map of a critic: the backbone and a value head, which Hugging Face calls `head`."""
    made = [*backbone(shape), Entry(OUTPUT_LAYER, (f"{head}.weight",), (1, shape.hidden_size))]
    return made + ([Entry(OUTPUT_BIAS, (f"{head}.bias",), (1,))] if bias else [])


def _vocabulary(shape: BackboneSettings, megatron: str, hf: str, tied_output: bool = False) -> Entry:
    size = (shape.padded_vocab_size, shape.hidden_size)
    return Vocabulary(megatron, (f"{hf}.weight",), size, 0, tied_output, vocab_size=shape.vocab_size)


def _attention_layer(shape: BackboneSettings, hf: str, megatron: str) -> Iterator[Entry]:
    hidden, channels = shape.hidden_size, shape.kv_channels
    queries, keys = shape.num_attention_heads * channels, shape.num_query_groups * channels
    if not shape.norm_after:
        yield Entry(f"{megatron}.input_layernorm.weight", (f"{hf}.input_layernorm.weight",), (hidden,))
    grouped = partial(Attention, num_query_groups=shape.num_query_groups, kv_channels=channels)
    for kind, size in _weight_and_bias(shape.attention_bias, (queries + 2 * keys, hidden)):
        names = tuple(f"{hf}.self_attn.{part}_proj.{kind}" for part in "qkv")
        yield grouped(f"{megatron}.self_attention.linear_qkv.{kind}", names, size, 0)
    if shape.qk_norm != "none":
        together = shape.qk_norm == "all_heads"
        for part, width in (("q", queries), ("k", keys)):
            name = f"{megatron}.self_attention.{part}_layernorm.weight"
            size = (width if together else channels,)
            yield Entry(name, (f"{hf}.self_attn.{part}_norm.weight",), size, 0 if together else None)
    projection = f"{megatron}.self_attention.linear_proj"
    for kind, size in _weight_and_bias(shape.attention_bias, (hidden, queries)):
        yield Entry(f"{projection}.{kind}", (f"{hf}.self_attn.o_proj.{kind}",), size, 1 if kind == "weight" else None)
    if shape.norm_after:
        name = f"{hf}.post_attention_layernorm.weight"
        yield Entry(f"{projection}.post_layernorm.weight", (name,), (hidden,))


def _mlp_layer(shape: BackboneSettings, hf: str, megatron: str) -> Iterator[Entry]:
    hidden, channels = shape.hidden_size, shape.ffn_hidden_size
    if not shape.norm_after:
        name = f"{hf}.post_attention_layernorm.weight"
        yield Entry(f"{megatron}.pre_mlp_layernorm.weight", (name,), (hidden,))
    for kind, size in _weight_and_bias(shape.mlp_bias, (2 * channels, hidden)):
        names = (f"{hf}.mlp.gate_proj.{kind}", f"{hf}.mlp.up_proj.{kind}")
        yield Gated(f"{megatron}.mlp.linear_fc1.{kind}", names, size, 0)
    for kind, size in _weight_and_bias(shape.mlp_bias, (hidden, channels)):
        axis = 1 if kind == "weight" else None
        yield Entry(f"{megatron}.mlp.linear_fc2.{kind}", (f"{hf}.mlp.down_proj.{kind}",), size, axis)
    if shape.norm_after:
        name = f"{hf}.post_feedforward_layernorm.weight"
        yield Entry(f"{megatron}.mlp.linear_fc2.post_layernorm.weight", (name,), (hidden,))


def _weight_and_bias(bias: bool, size: tuple[int, int]) -> list[tuple[str, tuple[int, ...]]]:
    return [("weight", size), ("bias", size[:1])] if bias else [("weight", size)]

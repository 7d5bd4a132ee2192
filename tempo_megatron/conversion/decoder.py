"""Decoder-only transformers with gated MLPs: what a family declares, the shape read from config.json, the map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.mapping import (
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
from tempo_megatron.conversion.rope import is_positive, read_rope

_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
_ONLY = {"hidden_act": "silu", "quantization_config": None, "per_layer_config": None}
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a model family declares; everything else about it is read from a model's config.json.

    `name` begins its architectures' names; `critic` ends the one that a critic is exported as. `only` are settings
    that have one value that can be mapped. `biases` are the settings, of `attention_bias` and `mlp_bias`, that it may
    turn on. With `windows`, `layer_types` says which layers see `sliding_window` tokens, and RoPE is scaled in the
    others alone.

    Its methods read complete settings: an absent key means something else in each family, and `hf_config` fills it in.
    """

    name: str
    critic: Literal["ForTokenClassification", "ForSequenceClassification"]
    rope_types: tuple[str, ...]
    only: Mapping[str, Any] = field(default_factory=dict)
    biases: tuple[str, ...] = ()
    qk_norm: QkNorm = "none"
    norm_after: bool = False
    windows: bool = False

    def settings(self, config: Mapping[str, Any]) -> BackboneSettings:
        """The backbone of complete settings. Raises ConversionError listing all that cannot be mapped."""
        problems = self.problems(config)
        if problems:
            raise ConversionError("\n".join(f"config.json: {key}: {problem}" for key, problem in problems.items()))
        heads = config["num_attention_heads"]
        return BackboneSettings(
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            ffn_hidden_size=config["intermediate_size"],
            num_attention_heads=heads,
            num_query_groups=config["num_key_value_heads"],
            kv_channels=config.get("head_dim", config["hidden_size"] // heads),
            vocab_size=config["vocab_size"],
            rms_norm_eps=config["rms_norm_eps"],
            tied=config["tie_word_embeddings"],
            attention=self._attention(config),
            qk_norm=self.qk_norm,
            norm_after=self.norm_after,
            attention_bias=config.get("attention_bias", False),
            mlp_bias=config.get("mlp_bias", False),
        )

    def problems(self, config: Mapping[str, Any]) -> dict[str, str]:
        """What cannot be mapped, by the key that says so. A key that is absent is not judged."""
        problems = dict(self._values(config))
        sizes = {name: config[name] for name in _SIZES if name in config and name not in problems}
        problems.update(_relations(sizes))
        if config.get("layer_types") is not None and "num_hidden_layers" in sizes:
            problems.update(self._layer_types(config["layer_types"], sizes["num_hidden_layers"]))
        layered = not self.windows or ("layer_types" in config and "layer_types" not in problems)
        if config.get("rope_parameters") and layered:
            problems.update(self._ropes(config))
        return problems

    def _values(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What is wrong with single settings."""
        for name in _SIZES:
            value = config.get(name, 1)
            if type(value) is not int or value < 1:
                yield name, f"{value!r} is no whole number from 1"
        epsilon = config.get("rms_norm_eps", 1e-6)
        if not is_positive(epsilon):
            yield "rms_norm_eps", f"{epsilon!r} is no number above 0"
        biases = {name: False for name in ("attention_bias", "mlp_bias") if name not in self.biases}
        for name, value in {**_ONLY, **biases, **self.only}.items():
            if config.get(name, value) != value:
                yield name, f"{config[name]!r} is not supported for {self.name}; only {value!r} is"

    def _layer_types(self, kinds: Any, layers: int) -> Iterator[tuple[str, str]]:
        supported = [_FULL, _SLIDING] if self.windows else [_FULL]
        if not isinstance(kinds, list) or len(kinds) != layers:
            count = f"has {len(kinds)} entries" if isinstance(kinds, list) else "is no list"
            yield "layer_types", f"{count}; num_hidden_layers is {layers}"
            return
        others = sorted({str(kind) for kind in kinds if kind not in supported})
        if others:
            yield "layer_types", f"{', '.join(others)} is not supported for {self.name}"

    def _ropes(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What is wrong with each kind of layer that the model has: its RoPE, and its window."""
        ropes = config["rope_parameters"]
        for kind in dict.fromkeys(config["layer_types"]) if self.windows else [None]:
            key = f"rope_parameters.{kind}" if kind else "rope_parameters"
            try:
                read_rope(ropes[kind] if kind else ropes, self._rope_types(kind))
            except ConversionError as error:
                yield key, str(error)
            window = config.get("sliding_window")
            if kind == _SLIDING and (type(window) is not int or window < 1):
                yield "sliding_window", f"{window!r} is no whole number from 1, and layer_types has {_SLIDING}"

    def _attention(self, config: Mapping[str, Any]) -> tuple[LayerAttention, ...]:
        ropes = config["rope_parameters"]
        if not self.windows:
            return (LayerAttention(None, read_rope(ropes, self.rope_types)),) * config["num_hidden_layers"]
        windows = {_FULL: None, _SLIDING: config["sliding_window"]}
        kinds = {
            kind: LayerAttention(windows[kind], read_rope(ropes[kind], self._rope_types(kind)))
            for kind in dict.fromkeys(config["layer_types"])
        }
        return tuple(kinds[kind] for kind in config["layer_types"])

    def _rope_types(self, kind: str | None) -> tuple[str, ...]:
        """The RoPE types of a kind of layer; None where a model has one kind."""
        return ("default",) if kind == _SLIDING else self.rope_types


def _relations(sizes: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """What does not divide."""
    heads, groups, hidden = (sizes.get(name) for name in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
    if heads and groups and heads % groups:
        yield "num_key_value_heads", f"{groups} does not divide num_attention_heads={heads}"
    channels = sizes.get("head_dim")
    if channels is None and heads and hidden:
        if hidden % heads:
            yield "hidden_size", f"{hidden} is no multiple of num_attention_heads={heads}"
            return
        channels = hidden // heads
    if channels and channels % 2:
        yield "head_dim", f"{channels} is odd; RoPE rotates pairs of channels"


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

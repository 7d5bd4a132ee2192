"""Decoder-only transformers with gated MLPs: what a family declares, the settings it reads, and the list of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.experts import expert_problems, read_experts
from tempo_megatron.conversion.mapping import (
    OUTPUT_BIAS,
    OUTPUT_LAYER,
    BackboneSettings,
    ExpertSettings,
    ExpertSlot,
    GatedMlpMapping,
    LayerAttention,
    ParameterMapping,
    QkNorm,
    QkvMapping,
    VocabularyMapping,
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
_FIXED_SETTINGS = {"hidden_act": "silu", "quantization_config": None, "per_layer_config": None}
"""Settings for which the maps support one value, in every family."""
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a model family declares; everything else comes from a model's config.json.

    The methods expect a complete config: what an absent key means differs between families, and `hf_config` fills it
    in.
    """

    name: str
    """The prefix of the family's architectures: `Qwen3` for `Qwen3ForCausalLM`."""
    critic_ending: Literal["ForTokenClassification", "ForSequenceClassification"]
    """The ending of the class that a critic is exported as."""
    rope_types: tuple[str, ...]
    """The RoPE types that a config may name; `rope.py` implements them."""
    fixed_settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings for which this family's map supports one value."""
    optional_biases: tuple[str, ...] = ()
    """Which of `attention_bias` and `mlp_bias` a config may turn on."""
    qk_norm: QkNorm = "none"
    """How queries and keys are normalized."""
    norm_after: bool = False
    """Whether norms follow attention and MLP instead of preceding them."""
    sliding_windows: bool = False
    """Whether `layer_types` selects layers that see `sliding_window` tokens. RoPE is scaled in the others only."""
    expert_width: str | None = None
    """The setting that holds the width of one expert; None for a family without experts."""
    mixes_dense_layers: bool = False
    """Whether `mlp_only_layers` and `decoder_sparse_step` select layers that have one MLP instead of experts."""

    def settings(self, config: Mapping[str, Any]) -> BackboneSettings:
        """Return the backbone of a complete config. Raises ConversionError listing every unsupported setting."""
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
            attention=self._layer_attentions(config),
            qk_norm=self.qk_norm,
            norm_after=self.norm_after,
            attention_bias=config.get("attention_bias", False),
            mlp_bias=config.get("mlp_bias", False),
            experts=self._experts(config),
        )

    def problems(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Return what is unsupported, by the key of the config. An absent key is no problem."""
        problems = dict(self._value_problems(config))
        if self.expert_width:
            problems.update(expert_problems(config, self.expert_width, dense_layers=self.mixes_dense_layers))
        sizes = {name: config[name] for name in _SIZES if name in config and name not in problems}
        problems.update(_divisibility_problems(sizes))
        if config.get("layer_types") is not None and "num_hidden_layers" in sizes:
            problems.update(self._layer_type_problems(config["layer_types"], sizes["num_hidden_layers"]))
        layer_types_usable = not self.sliding_windows or ("layer_types" in config and "layer_types" not in problems)
        if config.get("rope_parameters") and layer_types_usable:
            problems.update(self._rope_problems(config))
        return problems

    def _value_problems(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield the problems that one setting has by itself."""
        for name in _SIZES:
            value = config.get(name, 1)
            if type(value) is not int or value < 1:
                yield name, f"{value!r} is no whole number from 1"
        epsilon = config.get("rms_norm_eps", 1e-6)
        if not is_positive(epsilon):
            yield "rms_norm_eps", f"{epsilon!r} is no number above 0"
        biases = {name: False for name in ("attention_bias", "mlp_bias") if name not in self.optional_biases}
        for name, value in {**_FIXED_SETTINGS, **biases, **self.fixed_settings}.items():
            if config.get(name, value) != value:
                yield name, f"{config[name]!r} is not supported for {self.name}; only {value!r} is"

    def _layer_type_problems(self, layer_types: Any, num_layers: int) -> Iterator[tuple[str, str]]:
        supported = [_FULL, _SLIDING] if self.sliding_windows else [_FULL]
        if not isinstance(layer_types, list) or len(layer_types) != num_layers:
            reason = f"has {len(layer_types)} entries" if isinstance(layer_types, list) else "is no list"
            yield "layer_types", f"{reason}; num_hidden_layers is {num_layers}"
            return
        unsupported = sorted({str(layer_type) for layer_type in layer_types if layer_type not in supported})
        if unsupported:
            yield "layer_types", f"{', '.join(unsupported)} is not supported for {self.name}"

    def _rope_problems(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield the problems of RoPE and of the window, for each layer type of the model."""
        ropes = config["rope_parameters"]
        for layer_type in dict.fromkeys(config["layer_types"]) if self.sliding_windows else [None]:
            key = f"rope_parameters.{layer_type}" if layer_type else "rope_parameters"
            try:
                read_rope(ropes[layer_type] if layer_type else ropes, self._rope_types(layer_type))
            except ConversionError as error:
                yield key, str(error)
            window = config.get("sliding_window")
            if layer_type == _SLIDING and (type(window) is not int or window < 1):
                yield "sliding_window", f"{window!r} is no whole number from 1, and layer_types has {_SLIDING}"

    def _layer_attentions(self, config: Mapping[str, Any]) -> tuple[LayerAttention, ...]:
        ropes = config["rope_parameters"]
        if not self.sliding_windows:
            return (LayerAttention(None, read_rope(ropes, self.rope_types)),) * config["num_hidden_layers"]
        windows = {_FULL: None, _SLIDING: config["sliding_window"]}
        attentions = {
            layer_type: LayerAttention(windows[layer_type], read_rope(ropes[layer_type], self._rope_types(layer_type)))
            for layer_type in dict.fromkeys(config["layer_types"])
        }
        return tuple(attentions[layer_type] for layer_type in config["layer_types"])

    def _experts(self, config: Mapping[str, Any]) -> ExpertSettings | None:
        if self.expert_width is None:
            return None
        return read_experts(config, self.expert_width, dense_layers=self.mixes_dense_layers)

    def _rope_types(self, layer_type: str | None) -> tuple[str, ...]:
        """Return the RoPE types of a layer type; `layer_type` is None where all layers are alike."""
        return ("default",) if layer_type == _SLIDING else self.rope_types


def _divisibility_problems(sizes: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield the sizes that do not divide as the model needs."""
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


def backbone_mappings(settings: BackboneSettings) -> list[ParameterMapping]:
    """Return the mappings that policy and critic share, in the order of Hugging Face's layers."""
    embedding = _vocabulary(settings, "embedding.word_embeddings.weight", "model.embed_tokens", settings.tied)
    mappings: list[ParameterMapping] = [embedding]
    for layer in range(settings.num_layers):
        hf = f"model.layers.{layer}"
        mappings += _attention_layer(settings, hf, f"decoder.layers.{2 * layer}")
        if settings.experts and settings.sparse_layers[layer]:
            mappings += _expert_layer(settings, settings.experts, hf, 2 * layer + 1)
        else:
            mappings += _mlp_layer(settings, hf, 2 * layer + 1)
    mappings.append(ParameterMapping("decoder.final_norm.weight", ("model.norm.weight",), (settings.hidden_size,)))
    return mappings


def policy_mappings(settings: BackboneSettings) -> list[ParameterMapping]:
    """Return the mappings of a language model."""
    return backbone_mappings(settings) + ([] if settings.tied else [_vocabulary(settings, OUTPUT_LAYER, "lm_head")])


def critic_mappings(settings: BackboneSettings, head: str, bias: bool) -> list[ParameterMapping]:
    """Return the mappings of a critic: the backbone and a value head, whose Hugging Face name is `head`."""
    value_head = [ParameterMapping(OUTPUT_LAYER, (f"{head}.weight",), (1, settings.hidden_size))]
    if bias:
        value_head.append(ParameterMapping(OUTPUT_BIAS, (f"{head}.bias",), (1,)))
    return backbone_mappings(settings) + value_head


def _vocabulary(settings: BackboneSettings, megatron: str, hf: str, tied_output: bool = False) -> ParameterMapping:
    size = (settings.padded_vocab_size, settings.hidden_size)
    return VocabularyMapping(megatron, (f"{hf}.weight",), size, 0, tied_output, vocab_size=settings.vocab_size)


def _attention_layer(settings: BackboneSettings, hf: str, megatron: str) -> Iterator[ParameterMapping]:
    hidden, channels = settings.hidden_size, settings.kv_channels
    queries, keys = settings.num_attention_heads * channels, settings.num_query_groups * channels
    if not settings.norm_after:
        yield ParameterMapping(f"{megatron}.input_layernorm.weight", (f"{hf}.input_layernorm.weight",), (hidden,))
    qkv_mapping = partial(QkvMapping, num_query_groups=settings.num_query_groups, kv_channels=channels)
    for parameter, size in _weight_and_bias(settings.attention_bias, (queries + 2 * keys, hidden)):
        names = tuple(f"{hf}.self_attn.{part}_proj.{parameter}" for part in "qkv")
        yield qkv_mapping(f"{megatron}.self_attention.linear_qkv.{parameter}", names, size, 0)
    if settings.qk_norm != "none":
        over_all_heads = settings.qk_norm == "all_heads"
        for part, width in (("q", queries), ("k", keys)):
            name = f"{megatron}.self_attention.{part}_layernorm.weight"
            size = (width if over_all_heads else channels,)
            yield ParameterMapping(name, (f"{hf}.self_attn.{part}_norm.weight",), size, 0 if over_all_heads else None)
    projection = f"{megatron}.self_attention.linear_proj"
    for parameter, size in _weight_and_bias(settings.attention_bias, (hidden, queries)):
        axis = 1 if parameter == "weight" else None
        yield ParameterMapping(f"{projection}.{parameter}", (f"{hf}.self_attn.o_proj.{parameter}",), size, axis)
    if settings.norm_after:
        name = f"{hf}.post_attention_layernorm.weight"
        yield ParameterMapping(f"{projection}.post_layernorm.weight", (name,), (hidden,))


def _mlp_layer(settings: BackboneSettings, hf: str, number: int) -> Iterator[ParameterMapping]:
    hidden, channels, megatron = settings.hidden_size, settings.ffn_hidden_size, f"decoder.layers.{number}"
    if not settings.norm_after:
        name = f"{hf}.post_attention_layernorm.weight"
        yield ParameterMapping(f"{megatron}.pre_mlp_layernorm.weight", (name,), (hidden,))
    for parameter, size in _weight_and_bias(settings.mlp_bias, (2 * channels, hidden)):
        names = (f"{hf}.mlp.gate_proj.{parameter}", f"{hf}.mlp.up_proj.{parameter}")
        yield GatedMlpMapping(f"{megatron}.mlp.linear_fc1.{parameter}", names, size, 0)
    for parameter, size in _weight_and_bias(settings.mlp_bias, (hidden, channels)):
        axis = 1 if parameter == "weight" else None
        yield ParameterMapping(
            f"{megatron}.mlp.linear_fc2.{parameter}", (f"{hf}.mlp.down_proj.{parameter}",), size, axis
        )
    if settings.norm_after:
        name = f"{hf}.post_feedforward_layernorm.weight"
        yield ParameterMapping(f"{megatron}.mlp.linear_fc2.post_layernorm.weight", (name,), (hidden,))


def _expert_layer(
    settings: BackboneSettings, experts: ExpertSettings, hf: str, number: int
) -> Iterator[ParameterMapping]:
    """Yield norm, router and the projections of each expert. Tensor parallelism splits no expert."""
    hidden, width, megatron = settings.hidden_size, experts.ffn_hidden_size, f"decoder.layers.{number}"
    norm = f"{hf}.post_attention_layernorm.weight"
    yield ParameterMapping(f"{megatron}.pre_mlp_layernorm.weight", (norm,), (hidden,))
    router = (experts.num_experts, hidden)
    yield ParameterMapping(f"{megatron}.mlp.router.weight", (f"{hf}.mlp.gate.weight",), router)
    for expert in range(experts.num_experts):
        source, target = f"{hf}.mlp.experts.{expert}", f"{megatron}.mlp.experts.{expert}"
        first, second = (
            ExpertSlot(f"{megatron}.mlp.experts.experts.{part}.weight", expert, experts.num_experts)
            for part in ("linear_fc1", "linear_fc2")
        )
        gate_and_up = (f"{source}.gate_proj.weight", f"{source}.up_proj.weight")
        yield GatedMlpMapping(f"{target}.linear_fc1.weight", gate_and_up, (2 * width, hidden), slot=first)
        down = (f"{source}.down_proj.weight",)
        yield ParameterMapping(f"{target}.linear_fc2.weight", down, (hidden, width), slot=second)


def _weight_and_bias(bias: bool, size: tuple[int, int]) -> list[tuple[str, tuple[int, ...]]]:
    return [("weight", size), ("bias", size[:1])] if bias else [("weight", size)]

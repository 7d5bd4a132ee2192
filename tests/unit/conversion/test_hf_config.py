"""A config.json has the meaning that transformers' own config class gives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from tempo_megatron.conversion import decoder, hf_config
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.mapping import BackboneSettings
from tests.models import ABSENT, LLAMA_3_ROPE, OLMO_3, PLAIN_ROPE, YARN_ROPE, described, split_experts

OTHER_ROPE = {"rope_type": "default", "rope_theta": 20000.0}
LLAMA_3_SCALING = {key: value for key, value in LLAMA_3_ROPE.items() if key != "rope_theta"} | {"factor": 4.0}
YARN_SCALING = {key: value for key, value in YARN_ROPE.items() if key not in ("rope_theta", "attention_factor")}


def assert_as_in_transformers(config: dict[str, Any]) -> BackboneSettings:
    """Assert that tensors, windows, frequencies and softmax scales are those of transformers' model of the config."""
    settings = hf_config.backbone_settings(config)
    expected = getattr(transformers, f"{config['architectures'][0].removesuffix('ForCausalLM')}Config")(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(expected)
    shapes = {name: tuple(tensor.shape) for name, tensor in split_experts(model.state_dict()).items()}
    if expected.tie_word_embeddings:
        shapes.pop("lm_head.weight")
    mappings = decoder.policy_mappings(settings)
    assert {name: shape for m in mappings for name, shape in zip(m.hf_names, m.hf_shapes(), strict=True)} == shapes
    rotary = type(model.model.rotary_emb)(expected)
    for layer, attention in zip(model.model.layers, settings.attention, strict=True):
        assert attention.window == getattr(layer.self_attn, "sliding_window", None)
        kind = f"{layer.self_attn.attention_type}_" if settings.norm_after and hasattr(rotary, "layer_types") else ""
        frequencies, scale = getattr(rotary, f"{kind}inv_freq"), getattr(rotary, f"{kind}attention_scaling")
        computed = attention.rope.inverse_frequencies(settings.kv_channels)
        torch.testing.assert_close(computed, frequencies, rtol=1e-6, atol=0)
        assert attention.rope.attention_scale == pytest.approx(scale**2)
    for layer, is_sparse in zip(model.model.layers, settings.sparse_layers, strict=True):
        assert hasattr(layer.mlp, "experts") == is_sparse
        if settings.experts and is_sparse:
            router = (settings.experts.experts_per_token, settings.experts.weights_sum_to_one)
            assert router == (layer.mlp.gate.top_k, layer.mlp.gate.norm_topk_prob)
    assert settings.rms_norm_eps == expected.rms_norm_eps
    return settings


@pytest.mark.parametrize("name", ["qwen3", "llama", "llama-3", "llama-biases", "olmo-2", "olmo-3"])
@pytest.mark.parametrize(
    "key",
    [
        "attention_bias",
        "hidden_size",
        "intermediate_size",
        "layer_types",
        "max_position_embeddings",
        "mlp_bias",
        "num_attention_heads",
        "num_hidden_layers",
        "rms_norm_eps",
        "rope_parameters",
        "sliding_window",
        "tie_word_embeddings",
        "vocab_size",
    ],
)
def test_a_key_that_is_absent_means_what_transformers_means(name: str, key: str) -> None:
    """Protects configs that omit their family's defaults. OLMo 3 without `sliding_window` has a window of 4,096; an
    earlier version gave it none."""
    changes = {key: ABSENT} | ({"layer_types": ABSENT} if key == "num_hidden_layers" else {})
    assert_as_in_transformers(described(name, **changes))


@pytest.mark.parametrize("name", ["qwen3-moe", "qwen3-moe-step", "olmoe"])
@pytest.mark.parametrize(
    "change",
    [
        {"num_experts": ABSENT, "num_local_experts": ABSENT},
        {"num_experts": ABSENT, "num_local_experts": 5},
        {"num_experts": 5, "num_local_experts": ABSENT},
        {"num_experts": 5, "num_local_experts": 5},
        {"num_experts_per_tok": ABSENT, "num_experts": 9, "num_local_experts": 9},
        {"moe_intermediate_size": ABSENT},
        {"intermediate_size": ABSENT},
        {"norm_topk_prob": ABSENT},
        {"decoder_sparse_step": ABSENT},
        {"decoder_sparse_step": 3, "mlp_only_layers": ABSENT},
        {"mlp_only_layers": None},
        {"mlp_only_layers": [0, 3, 7]},
    ],
    ids=lambda change: ", ".join(f"{key} {'absent' if value is ABSENT else value}" for key, value in change.items()),
)
def test_settings_of_experts_mean_what_transformers_means(name: str, change: dict[str, Any]) -> None:
    """Protects both spellings of the number of experts, defaults that differ between families, and which layers are
    dense. OLMoE has experts in every layer, whatever such a key says."""
    assert_as_in_transformers(described(name, **change))


def test_absent_sizes_of_attention_differ_from_family_to_family() -> None:
    """Protects models without `head_dim` and `num_key_value_heads`: Qwen3 has 128 and 32 then, others derive them."""
    assert assert_as_in_transformers(described("qwen3", head_dim=ABSENT)).kv_channels == 128
    qwen3 = described("qwen3", num_attention_heads=64, num_key_value_heads=ABSENT, head_dim=4)
    assert assert_as_in_transformers(qwen3).num_query_groups == 32
    qwen3["num_key_value_heads"] = None
    assert assert_as_in_transformers(qwen3).num_query_groups == 64
    llama = assert_as_in_transformers(described("llama", head_dim=ABSENT, num_key_value_heads=ABSENT))
    assert (llama.kv_channels, llama.num_query_groups) == (16, 4)
    assert assert_as_in_transformers(described("olmo-3", num_key_value_heads=None)).num_query_groups == 4
    windows = assert_as_in_transformers(described("olmo-3", sliding_window=ABSENT)).attention
    assert [layer.window for layer in windows] == [4096, 4096, 4096, None]


@pytest.mark.parametrize(
    ("name", "ropes"),
    [
        ("qwen3", {"rope_parameters": ABSENT, "rope_theta": 1e6}),
        ("qwen3", {"rope_parameters": None, "rope_scaling": None, "rope_theta": 1e6}),
        ("qwen3", {"rope_parameters": {}, "rope_theta": 1e6}),
        ("qwen3", {"rope_parameters": OTHER_ROPE, "rope_theta": 1e6}),
        ("llama-3", {"rope_parameters": OTHER_ROPE, "rope_scaling": LLAMA_3_SCALING}),
        ("llama-3", {"rope_parameters": OTHER_ROPE, "rope_scaling": LLAMA_3_SCALING, "rope_theta": 30000.0}),
        ("llama-3", {"rope_parameters": LLAMA_3_ROPE, "rope_scaling": {"type": "default"}}),
        ("llama-3", {"rope_parameters": ABSENT, "rope_scaling": {"type": "llama3"} | LLAMA_3_SCALING}),
        ("olmo-3", {"rope_parameters": ABSENT}),
        ("olmo-3", {"rope_parameters": ABSENT, "rope_theta": 30000.0, "rope_scaling": YARN_SCALING}),
        ("olmo-3", {"rope_scaling": {"rope_type": "yarn", "factor": 3.0}}),
        ("olmo-3", {"rope_parameters": {"full_attention": YARN_ROPE, "sliding_attention": None}}),
        ("olmo-3", {"rope_parameters": {"full_attention": YARN_ROPE}}),
        ("olmo-3", {"rope_parameters": {"full_attention": None, "sliding_attention": OTHER_ROPE}}),
        ("olmo-3", {"rope_parameters": OTHER_ROPE}),
        ("olmo-3", {"rope_parameters": {"full_attention": YARN_ROPE | {"beta_fast": None, "attention_factor": None}}}),
    ],
)
def test_every_form_of_rope_settings_has_the_precedence_that_transformers_gives_it(
    name: str, ropes: dict[str, Any]
) -> None:
    """Protects models with an old and a new spelling side by side. A version that merged them had logits off by 3.4."""
    assert_as_in_transformers(described(name, **ropes))


@pytest.mark.parametrize(
    ("name", "change", "key"),
    [
        ("olmo-3", {"layer_types": ["full_attention"]}, "layer_types"),
        ("olmo-3", {"layer_types": "full_attention"}, "layer_types"),
        ("olmo-3", {"layer_types": [["full_attention"]] * 4}, "layer_types"),
        ("olmo-3", {"sliding_window": None}, "sliding_window"),
        ("olmo-3", {"rope_parameters": {"full_attention": "yarn"}}, "rope_parameters"),
        ("olmo-3", {"rope_parameters": {"full_attention": YARN_ROPE | {"factor": "8"}}}, "rope_parameters"),
        ("olmo-2", {"head_dim": None}, "head_dim"),
        ("qwen3", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("qwen3", {"head_dim": 31}, "head_dim"),
        ("qwen3", {"rope_parameters": "default"}, "rope_parameters"),
        ("qwen3", {"rope_parameters": {"full_attention": PLAIN_ROPE}}, "rope_parameters"),
        ("llama", {"vocab_size": 101.0}, "vocab_size"),
        ("llama", {"vocab_size": None}, "vocab_size"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads"),
        ("llama", {"max_position_embeddings": "long"}, "max_position_embeddings"),
        ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ("llama", {"tie_word_embeddings": None}, "tie_word_embeddings"),
        ("llama", {"rope_parameters": ABSENT, "rope_theta": "1e6"}, "rope_parameters"),
        ("llama", {"rope_parameters": ABSENT, "rope_scaling": "llama3"}, "rope_scaling"),
        ("llama", {"per_layer_config": {"1": {"attention_dropout": 0.5}}}, "per_layer_config"),
        ("llama", {"model_type": "qwen3"}, "model_type"),
        ("llama", {"model_type": ABSENT}, "model_type"),
        ("llama", {"num_labels": "two"}, "transformers"),
        ("llama", {"architectures": "LlamaForCausalLM"}, "architectures"),
        ("llama", {"architectures": [3]}, "architectures"),
    ],
)
def test_a_value_that_no_model_can_have_is_one_line(name: str, change: dict[str, Any], key: str) -> None:
    """Protects users from tracebacks: types, nulls, divisibility and lengths of lists are checked at start."""
    with pytest.raises(ConversionError) as caught:
        hf_config.backbone_settings(described(name, **change))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"config.json: {key}")


@pytest.mark.parametrize(
    ("name", "change", "keys"),
    [
        ("llama", {"hidden_size": 96.0, "head_dim": ABSENT, "num_attention_heads": 32}, {"hidden_size"}),
        ("llama", {"num_attention_heads": "4", "head_dim": None, "hidden_size": 96}, {"num_attention_heads"}),
        ("olmo-3", {"num_hidden_layers": "4", "layer_types": ABSENT}, {"num_hidden_layers"}),
        ("llama", {"hidden_size": 66, "head_dim": None, "num_key_value_heads": None}, {"hidden_size"}),
        ("olmo-2", {"layer_types": None, "attention_bias": True}, {"attention_bias"}),
    ],
)
def test_what_follows_from_a_wrong_value_is_no_problem_of_its_own(
    name: str, change: dict[str, Any], keys: set[str]
) -> None:
    """One cause is one line: a size that is derived from a wrong one is not reported."""
    with pytest.raises(ConversionError) as caught:
        hf_config.backbone_settings(described(name, **change))
    assert {line.split(": ")[1] for line in str(caught.value).splitlines()} == keys


def test_a_refusal_of_ropes_hides_nothing_else() -> None:
    """Protects users' time where transformers' class raises before the other settings are checked."""
    config = described("olmo-3", rope_parameters=OLMO_3["rope_parameters"] | {"full_attention": {"rope_type": "yarn"}})
    with pytest.raises(ConversionError) as caught:
        hf_config.backbone_settings(config | {"attention_bias": True})
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == ["rope_parameters", "attention_bias"]


def test_a_config_is_not_changed_by_being_read() -> None:
    """Protects the config.json that is exported: transformers' class modifies the dictionary that it receives."""
    config = described("olmo-3", rope_scaling={"rope_type": "yarn", "factor": 3.0})
    before = repr(config)
    hf_config.backbone_settings(config)
    assert repr(config) == before

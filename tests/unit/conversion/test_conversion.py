"""The maps between Hugging Face and Megatron are exact, invertible, and in Megatron's layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tempo_megatron.conversion import decoder, hf_config
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.families import family_of
from tempo_megatron.conversion.mapping import GatedMlpMapping, QkvMapping, VocabularyMapping
from tempo_megatron.conversion.rope import Rope
from tests.models import ABSENT, ALL_CONFIGS, LLAMA_3_ROPE, config_of, described, split_experts

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize("name", ALL_CONFIGS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_tensor_of_a_model_survives_the_round_trip_bit_for_bit(name: str, ranks: int) -> None:
    """Protects exports: no tensor is missing or changed, and every shape is predicted, under any TP."""
    config = config_of(name)
    model = AutoModelForCausalLM.from_config(config)
    tensors = {name: torch.randn_like(tensor) for name, tensor in split_experts(model.state_dict()).items()}
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    round_trip = {}
    for mapping in decoder.policy_mappings(hf_config.backbone_settings(described(name))):
        full = mapping.to_megatron(*(tensors[name] for name in mapping.hf_names))
        assert full.shape == mapping.shape
        assert mapping.hf_shapes() == [tuple(tensors[name].shape) for name in mapping.hf_names]
        joined = mapping.unshard([mapping.shard(full, rank, ranks) for rank in range(ranks)])
        round_trip.update(zip(mapping.hf_names, mapping.to_hf(joined), strict=True))
    assert round_trip.keys() == tensors.keys()
    assert all(torch.equal(round_trip[name], tensors[name]) for name in tensors)


def test_llama_3_frequencies_are_those_of_transformers() -> None:
    """Protects long contexts: the frequencies here cover all three bands of Llama 3's scaling."""
    config = config_of("llama-3", head_dim=64)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    (rope,) = hf_config.backbone_settings(described("llama-3", head_dim=64)).ropes
    torch.testing.assert_close(rope.inverse_frequencies(64), expected, rtol=1e-6, atol=0)
    share = rope.inverse_frequencies(64) / Rope(base=rope.base).inverse_frequencies(64)
    assert share[0] == 1 and share[-1] == pytest.approx(1 / 8) and ((share > 0.13) & (share < 0.99)).any()


@pytest.mark.parametrize("attention_factor", [None, 1.2])
def test_yarn_scales_the_full_attention_layers_of_olmo_3_alone(attention_factor: float | None) -> None:
    """Protects long contexts of OLMo 3: transformers' frequencies and softmax scale, sliding layers unscaled."""
    yarn = YARN | {"rope_theta": 500000.0} | ({"attention_factor": attention_factor} if attention_factor else {})
    plain = {"rope_type": "default", "rope_theta": 500000.0}
    config = config_of("olmo-3", rope_parameters={"full_attention": yarn, "sliding_attention": plain})
    expected, scale = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"), layer_type="full_attention")
    layers = hf_config.backbone_settings(described("olmo-3", rope_parameters=config.rope_parameters)).attention
    assert [layer.window for layer in layers] == [24, 24, 24, None]
    torch.testing.assert_close(layers[3].rope.inverse_frequencies(32), expected, rtol=1e-6, atol=0)
    assert layers[3].rope.attention_scale == pytest.approx(scale**2)
    ramp = expected / layers[0].rope.inverse_frequencies(32)
    assert ramp[0] == 1 and ramp[-1] == pytest.approx(1 / 4) and ((ramp > 0.3) & (ramp < 0.9)).any()
    assert layers[0].rope == Rope(base=500000.0) and layers[0].rope.attention_scale == 1


def test_olmo_3_reads_the_old_spelling_of_its_config_too() -> None:
    """Protects published models: `rope_theta` and `rope_scaling` at the top, no `layer_types`."""
    rope = described("olmo-3")["rope_parameters"]["full_attention"]
    old = described(
        "olmo-3", rope_parameters=ABSENT, layer_types=ABSENT, rope_theta=rope.pop("rope_theta"), rope_scaling=rope
    )
    assert hf_config.backbone_settings(old) == hf_config.backbone_settings(described("olmo-3"))


def test_attention_rows_stand_query_group_by_query_group() -> None:
    """Protects the layout that SelfAttention splits: a group's queries, then its key, then its value."""
    query, key, value = (torch.arange(rows)[:, None] + base for rows, base in ((8, 0), (4, 100), (4, 200)))
    mapping = QkvMapping("qkv", ("q", "k", "v"), (16, 1), 0, num_query_groups=2, kv_channels=2)
    qkv = mapping.to_megatron(query, key, value)
    assert qkv[:, 0].tolist() == [0, 1, 2, 3, 100, 101, 200, 201, 4, 5, 6, 7, 102, 103, 202, 203]


def test_every_rank_holds_its_gate_rows_then_its_up_rows() -> None:
    """Protects the gated MLP under tensor parallelism: a rank multiplies gate and up rows of the same channels."""
    mapping = GatedMlpMapping("fc1", ("gate", "up"), (8, 1), 0)
    fc1 = mapping.to_megatron(torch.arange(4)[:, None], torch.arange(4)[:, None] + 10)
    assert [mapping.shard(fc1, rank, 2)[:, 0].tolist() for rank in (0, 1)] == [[0, 1, 10, 11], [2, 3, 12, 13]]


def test_pipeline_stages_have_every_layer_once_and_the_first_of_them_most() -> None:
    """The last stage has the output layer as well, so that it gets no surplus layer."""
    settings = hf_config.backbone_settings(described("qwen3", num_hidden_layers=7, layer_types=ABSENT))
    for role in ("policy", "critic"):
        assert settings.chunk_layers(1, role) == [range(7)]
        assert settings.chunk_layers(3, role) == [range(3), range(3, 5), range(5, 7)]
        assert settings.chunk_layers(7, role) == [range(layer, layer + 1) for layer in range(7)]
    assert settings.stage_chunks(2, 2, "policy") == [[range(2), range(4, 6)], [range(2, 4), range(6, 7)]]


@pytest.mark.parametrize(
    ("cost", "lengths"), [(0.1, (4, 4, 4)), (1.5, (5, 4, 3)), (2.5, (5, 5, 2)), (5.0, (6, 5, 1)), (90.0, (6, 5, 1))]
)
def test_the_last_stage_has_fewer_layers_by_what_its_output_layer_costs(
    cost: float, lengths: tuple[int, int, int]
) -> None:
    """An output layer that costs as much as `cost` layers, in three stages of twelve layers: no other cut has a faster
    slowest stage. Protects from a last stage that all others wait for. A critic's output layer costs next to nothing.
    """
    settings = hf_config.backbone_settings(described("qwen3", num_hidden_layers=12, layer_types=ABSENT))
    layer = (settings.attention_weights + settings.mlp_weights) / 12
    settings = replace(settings, vocab_size=round(cost * layer / settings.hidden_size))
    cost = settings.output_weights("policy") / layer
    assert tuple(map(len, settings.chunk_layers(3, "policy"))) == lengths
    cuts = [(first, second, 12 - first - second) for first in range(1, 11) for second in range(1, 12 - first)]
    slowest = min(max(first, second, last + cost) for first, second, last in cuts)
    assert max(*lengths[:2], lengths[2] + cost) == pytest.approx(slowest)
    assert tuple(map(len, settings.chunk_layers(3, "critic"))) == (4, 4, 4)


def test_tensor_parallelism_splits_no_expert() -> None:
    """Protects checkpoints: a map that cut an expert's gate and up rows would not fit the one tensor of all experts."""
    mappings = decoder.policy_mappings(hf_config.backbone_settings(described("qwen3-moe")))
    experts = [mapping for mapping in mappings if mapping.slot]
    assert len(experts) == 3 * 6 * 2
    for mapping in experts:
        tensor = torch.randn(mapping.shape)
        assert torch.equal(mapping.shard(tensor, 1, 2), tensor) and torch.equal(mapping.unshard([tensor] * 2), tensor)
        assert mapping.stored_shape == (6, *mapping.shape)


def test_a_model_whose_layers_are_all_dense_has_no_experts() -> None:
    """Protects models of an architecture with experts that use none: they are dense models and train as such."""
    settings = hf_config.backbone_settings(described("qwen3-moe", mlp_only_layers=[0, 1, 2, 3]))
    assert settings == hf_config.backbone_settings(described("qwen3-moe", decoder_sparse_step=5))
    assert settings.experts is None and settings.ffn_hidden_size == 96


def test_the_vocabulary_is_padded_to_a_size_that_no_layout_changes() -> None:
    """Protects resharding: padding must not depend on tensor parallelism."""
    mapping = VocabularyMapping("embedding", ("embed",), (128, 2), 0, vocab_size=101)
    assert mapping.to_megatron(torch.ones(101, 2)).sum(1).tolist() == [2.0] * 101 + [0.0] * 27


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qwen3", {"mlp_bias": True}, "mlp_bias"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 4}, "layer_types: sliding_attention"),
        ("qwen3", {"rope_parameters": YARN}, "rope_type=.yarn."),
        ("qwen3", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama-3", {"rope_parameters": LLAMA_3_ROPE | {"short_factor": [1.0]}}, "short_factor"),
        ("llama-3", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ("olmo-2", {"attention_bias": True}, "attention_bias"),
        ("olmo-3", {"rope_parameters": {"full_attention": YARN | {"mscale": 2.0}}}, "mscale"),
        ("olmo-3", {"rope_parameters": {"sliding_attention": YARN}}, "rope_type=.yarn."),
        ("qwen3-moe", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen3-moe", {"num_experts": 8}, "num_local_experts: 6 differs from num_experts=8"),
        ("qwen3-moe", {"num_experts_per_tok": 7}, "num_experts_per_tok: 7 is more than num_experts=6"),
        ("qwen3-moe", {"num_experts_per_tok": 1}, "num_experts_per_tok: 1 is not supported with norm_topk_prob"),
        ("qwen3-moe", {"num_local_experts": 0}, "num_experts: 0"),
        ("qwen3-moe", {"decoder_sparse_step": 0}, "decoder_sparse_step: 0"),
        ("qwen3-moe", {"mlp_only_layers": "1"}, "mlp_only_layers"),
        ("qwen3-moe", {"moe_intermediate_size": 0}, "moe_intermediate_size: 0"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv: 8.0"),
        ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob: True"),
        ("olmoe", {"rms_norm_eps": 1e-6}, "rms_norm_eps: 1e-06"),
        ("olmoe", {"attention_bias": True}, "attention_bias: True"),
    ],
)
def test_an_unsupported_setting_is_named(name: str, change: dict[str, Any], message: str) -> None:
    """Protects users from a model that converts and computes something else."""
    hf_config.backbone_settings(described(name))
    with pytest.raises(ConversionError, match=message):
        hf_config.backbone_settings(described(name, **change))


def test_all_that_is_wrong_with_a_config_is_listed_at_once() -> None:
    """Protects users' time: one attempt shows every problem."""
    config = described("olmo-2", attention_bias=True, hidden_act="gelu", rms_norm_eps="1e-5", num_attention_heads=5)
    config |= {"vocab_size": None, "rope_scaling": "yarn", "model_type": "llama"}
    with pytest.raises(ConversionError) as caught:
        hf_config.backbone_settings(config)
    lines = str(caught.value).splitlines()
    keys = {"attention_bias", "hidden_act", "rms_norm_eps", "hidden_size", "num_key_value_heads", "vocab_size"}
    assert {line.split(": ")[1] for line in lines} == keys | {"rope_scaling", "model_type"}
    assert len(lines) == 8


def test_an_unknown_architecture_is_named() -> None:
    """Protects users from a conversion with the map of another architecture."""
    with pytest.raises(ConversionError, match="GPT2LMHeadModel"):
        family_of({"architectures": ["GPT2LMHeadModel"]})

"""The maps between Hugging Face and Megatron: exact, invertible, and in Megatron's layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from checkpoints_convert import llama, qwen3
from checkpoints_convert.errors import ConversionError
from checkpoints_convert.families import family
from checkpoints_convert.mapping import Attention, Gated, Vocabulary
from checkpoints_convert.rope import Rope
from tests.models import LLAMA_3_ROPE, SHAPE


def tiny(**changes: object) -> Qwen3Config:
    return Qwen3Config(**{**SHAPE, **changes}, architectures=["Qwen3ForCausalLM"])


def tiny_llama(**changes: object) -> LlamaConfig:
    return LlamaConfig(**{**SHAPE, **changes}, architectures=["LlamaForCausalLM"])


@pytest.mark.parametrize("make", [tiny, tiny_llama])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_tensor_of_a_model_survives_the_round_trip_bit_for_bit(
    make: Callable[..., PretrainedConfig], tied: bool, ranks: int
) -> None:
    """Protects exports: no tensor forgotten, none changed, whatever tensor parallelism cut it into."""
    config = make(tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config)
    tensors = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    if tied:
        tensors.pop("lm_head.weight")
    back = {}
    for entry in family(config.to_dict()).entries(config.to_dict()):
        whole = entry.to_megatron(*(tensors[name] for name in entry.hf_names))
        again = entry.unshard([entry.shard(whole, rank, ranks) for rank in range(ranks)])
        back.update(zip(entry.hf_names, entry.to_hf(again), strict=True))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_llama_3_frequencies_are_those_of_transformers() -> None:
    """Protects long contexts: each of the three bands of Llama 3's scaling is met by some frequency here."""
    config = tiny_llama(head_dim=64, rope_parameters=LLAMA_3_ROPE)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    rope = llama.settings(config.to_dict()).rope
    torch.testing.assert_close(rope.inverse_frequencies(64), expected, rtol=1e-6, atol=0)
    plain = Rope(rope.base).inverse_frequencies(64)
    share = rope.inverse_frequencies(64) / plain
    assert share[0] == 1 and share[-1] == pytest.approx(1 / 8) and ((share > 0.13) & (share < 0.99)).any()


def test_attention_rows_stand_query_group_by_query_group() -> None:
    """Protects the layout that SelfAttention splits: a group's queries, then its key, then its value."""
    query, key, value = (torch.arange(rows)[:, None] + base for rows, base in ((8, 0), (4, 100), (4, 200)))
    whole = Attention("qkv", ("q", "k", "v"), 0, num_query_groups=2, kv_channels=2).to_megatron(query, key, value)
    assert whole[:, 0].tolist() == [0, 1, 2, 3, 100, 101, 200, 201, 4, 5, 6, 7, 102, 103, 202, 203]


def test_every_rank_holds_its_gate_rows_then_its_up_rows() -> None:
    """Protects the gated MLP under tensor parallelism: a rank multiplies gate and up rows of the same channels."""
    entry = Gated("fc1", ("gate", "up"), 0)
    whole = entry.to_megatron(torch.arange(4)[:, None], torch.arange(4)[:, None] + 10)
    assert [entry.shard(whole, rank, 2)[:, 0].tolist() for rank in (0, 1)] == [[0, 1, 10, 11], [2, 3, 12, 13]]


def test_the_vocabulary_is_padded_to_a_size_that_no_layout_changes() -> None:
    """Protects resharding: padding must not depend on tensor parallelism."""
    entry = Vocabulary("embedding", ("embed",), 0, vocab_size=101, padded_vocab_size=128)
    assert entry.to_megatron(torch.ones(101, 2)).sum(1).tolist() == [2.0] * 101 + [0.0] * 27


@pytest.mark.parametrize(
    "change", [{"attention_bias": True}, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, {"hidden_act": "gelu"}]
)
def test_an_unsupported_setting_is_named(change: dict[str, object]) -> None:
    """Protects users from a model that converts and computes something else."""
    with pytest.raises(ConversionError, match=next(iter(change)).split("_")[0]):
        qwen3.settings(tiny().to_dict() | change)


def test_an_unknown_architecture_is_named() -> None:
    """Protects users from a wrong map."""
    with pytest.raises(ConversionError, match="GPT2LMHeadModel"):
        family({"architectures": ["GPT2LMHeadModel"]})

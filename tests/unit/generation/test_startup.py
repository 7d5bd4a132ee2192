"""What vLLM's engine is started with."""

from __future__ import annotations

import pytest

from tempo_megatron.config import GenerationConfig
from tempo_megatron.generation.startup import fixed_kv_cache_bytes, register_olmo2


@pytest.mark.parametrize(
    ("gib", "on_gpu", "expected"), [(0.0, True, None), (0.0, False, 2**30), (0.25, True, 2**28), (0.25, False, 2**28)]
)
def test_a_gpu_is_measured_only_where_no_size_is_set(gib: float, on_gpu: bool, expected: int | None) -> None:
    """An engine that shares a GPU and measured it would count the others' memory as its own."""
    assert fixed_kv_cache_bytes(GenerationConfig(kv_cache_gib=gib), on_gpu) == expected


def test_no_other_python_is_started_for_olmo2(monkeypatch: pytest.MonkeyPatch) -> None:
    """It took 10 s on each rank. The class is the one that vLLM itself takes, which a later vLLM may change."""
    from vllm.model_executor.models import registry

    models = registry.ModelRegistry.models
    own = models["Olmo2ForCausalLM"]
    monkeypatch.setitem(models, "Olmo2ForCausalLM", own)  # restores it
    monkeypatch.setattr(registry, "_run_in_subprocess", lambda _: pytest.fail("another Python was started"))
    register_olmo2()
    assert models["Olmo2ForCausalLM"].load_model_cls() is own.load_model_cls()
    assert models["Olmo2ForCausalLM"].inspect_model_cls().is_text_generation_model

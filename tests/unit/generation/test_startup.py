"""What vLLM's engine is started with."""

from __future__ import annotations

import pytest

from tempo_megatron.config import GenerationConfig
from tempo_megatron.generation.startup import fixed_kv_cache_bytes


@pytest.mark.parametrize(
    ("gib", "on_gpu", "expected"), [(0.0, True, None), (0.0, False, 2**30), (0.25, True, 2**28), (0.25, False, 2**28)]
)
def test_a_gpu_is_measured_only_where_no_size_is_set(gib: float, on_gpu: bool, expected: int | None) -> None:
    """An engine that shares a GPU and measured it would count the others' memory as its own."""
    assert fixed_kv_cache_bytes(GenerationConfig(kv_cache_gib=gib), on_gpu) == expected

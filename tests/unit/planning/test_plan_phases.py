"""Memory of the generator and of a sync, as planned: against vLLM's rules, the trainer's buckets, and measured runs."""

from __future__ import annotations

import pytest

from tempo_megatron.config import load_config
from tempo_megatron.megatron import weights
from tempo_megatron.planning import phases, shapes
from tempo_megatron.planning.memory import GIB
from tempo_megatron.planning.phases import PlannedRun, total_bytes
from tests.unit.planning.test_planning import TWO_H200, recipe_run


def test_a_kv_cache_of_a_set_size_is_planned_as_such() -> None:
    """Runs that share a GPU set it. vLLM then does not fill its share of the GPU."""
    default, fixed = (recipe_run("qwen3_8b_math", f"generation.kv_cache_gib={gib}") for gib in (0, 2.5))
    assert fixed.engine.kv_cache_bytes == 2.5 * GIB < default.engine.kv_cache_bytes
    assert total_bytes(default.engine.parts()) - total_bytes(fixed.engine.parts()) > GIB


def test_a_sync_is_planned_with_buckets_as_large_as_its_own() -> None:
    """The planner may not import the packages that it plans. A sync has three buckets and the shards of one, which are
    half a bucket over two tensor ranks."""
    assert phases.SYNC_BUCKET_BYTES == 3.5 * weights.BUCKET_BYTES


@pytest.mark.parametrize(
    ("shape", "overrides", "measured"),
    [
        (
            "qwen3-8b",
            "method=grpo parallel.tensor_model_parallel_size=2 generation.tensor_parallel_size=1",
            (114.6, 114.7),
        ),
        ("qwen3-1.7b", "", (114.9,)),
        ("qwen3-1.7b", "model.fp8=tensorwise generation.precision=fp8", (115.1,)),
    ],
)
def test_a_generating_gpu_holds_what_vllm_does_not_count(
    shape: str, overrides: str, measured: tuple[float, ...]
) -> None:
    """In GiB, of iterations after the first one on two H200s (docs/results/2026-11-26-gpu.md). Protects a GPU whose
    share for vLLM is large from what training adds after vLLM has counted."""
    config = load_config(None, [*overrides.split(), "generation.gpu_memory_utilization=0.8"])
    run = PlannedRun(shapes.backbone_shape(shapes.shape_config(shape, None, None)), config, TWO_H200)
    planned = total_bytes(run.phase_memory()["generate"]) / GIB
    for peak in measured:
        assert planned == pytest.approx(peak, rel=0.004)


def test_an_engine_with_a_set_cache_counts_nothing_of_the_process() -> None:
    """vLLM then does not measure at its start, so all that a process takes is beside its weights, work and cache."""
    run = recipe_run("qwen3_8b_math", "generation.kv_cache_gib=2.5")
    beside = run.phase_memory()["generate"]["contexts"]
    assert beside == run.phase_memory()["sync"]["contexts"]
    assert beside > recipe_run("qwen3_8b_math").phase_memory()["generate"]["contexts"]

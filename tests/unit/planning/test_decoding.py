"""Decoding time: live sequences by hand, steps as measured, and the generator's size that follows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from benchmarking.lengths import Lengths

from tempo_megatron.config import load_config
from tempo_megatron.planning import decoding, shapes
from tempo_megatron.planning.decoding import Decoding
from tempo_megatron.planning.layout_search import rank_generator_sizes
from tempo_megatron.planning.phases import PlannedRun
from tempo_megatron.planning.workload import Workload
from tests.unit.planning.test_planning import RESULTS, TWO_H200

RECORDED_LENGTHS = tuple(sorted(map(Lengths.parse("mean:1060:4096").draw, range(512))))


def rollout_run(shape: str, *overrides: str) -> PlannedRun:
    """Return a GRPO run of 32 prompts with 8 responses each on two H200s."""
    settings = "method=grpo loop.labeled_prompts=32 loop.samples_per_prompt=8 generation.gpu_memory_utilization=0.8 "
    settings += "generation.max_response_tokens=4096 data.max_prompt_tokens=128 generation.tensor_parallel_size=1 "
    settings += "policy.micro_batch_tokens=8448 critic.micro_batch_tokens=8448"
    config = load_config(None, [*settings.split(), *overrides])
    return PlannedRun(shapes.backbone_shape(shapes.shape_config(shape, None, None)), config, TWO_H200)


@pytest.mark.parametrize(("requests", "slots"), [(10.0, 10.0), (100.0, 16.0), (24.5, 8.0)])
def test_every_token_is_generated_once(requests: float, slots: float) -> None:
    """Live sequences over all intervals are the lengths of all responses, whose lengths are 16, 32 and 64 intervals."""
    live_by_age = decoding._live_by_age((64, 128, 256), requests, slots)
    assert live_by_age.sum() == pytest.approx(requests * (16 + 32 + 64) / 3)
    live = live_by_age.sum(axis=1)
    assert live.max() == pytest.approx(slots) and np.all(np.diff(live) < 1e-9)
    if requests == slots:
        shares = [live[interval] / slots for interval in (0, 15, 16, 31, 32, 63)]
        assert shares == pytest.approx([1, 1, 2 / 3, 2 / 3, 1 / 3, 1 / 3]) and len(live) == 64
    assert len(live) >= requests * (16 + 32 + 64) / 3 / slots


def test_responses_of_one_length_take_its_steps() -> None:
    """The device bounds all steps of an 8B shape, so that a step at the mean context is the mean step."""
    run, workload = rollout_run("qwen3-8b"), Workload((640,), prompt=128)
    plan = Decoding(run, workload)
    assert plan.time(64).seconds == pytest.approx(640 * plan.step_seconds(32, 128 + 320), rel=0.01)
    run.config.generation.max_num_seqs = 32
    assert plan.time(128).seconds == pytest.approx(2 * 640 * plan.step_seconds(32, 128 + 320), rel=0.01)
    assert plan.time(128).tail_seconds == 0.0 and plan.time(32).tail_seconds == plan.time(32).seconds


@pytest.mark.parametrize(("shape", "tolerance"), [("qwen3-1.7b", 0.18), ("qwen3-8b", 0.08)])
def test_a_step_takes_about_what_was_measured(shape: str, tolerance: float) -> None:
    """On an H200 with 1 to 128 live sequences that are about 2,400 tokens long."""
    sections = json.loads((RESULTS / "2026-11-29-gpu" / f"tail-{shape}.json").read_text())["sections"]
    plan = Decoding(rollout_run(shape), Workload((4096,), prompt=128))
    assert len(sections["tail"]) == 6
    for name, figures in sections["tail"].items():
        planned = plan.step_seconds(int(name.split()[0]), 2400) * 1e3
        assert planned == pytest.approx(figures["ms a step"], rel=tolerance), name


@pytest.mark.parametrize(("shape", "best"), [("qwen3-1.7b", [1, 2]), ("qwen3-8b", [2, 1])])
def test_the_generators_size_is_chosen_by_its_tail(shape: str, best: list[int]) -> None:
    """Measured on two H200s with these lengths: 8B takes 28.9 s as two replicas and 25.5 as one, 1.7B 15.8 and 16.4 to
    17.7. What is gained at 8B is gained while few sequences are live."""
    training = ["parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"]
    choices = rank_generator_sizes(rollout_run(shape, *training), Workload(RECORDED_LENGTHS, prompt=128))
    assert [choice.tensor_size for choice in choices] == best
    times = {choice.tensor_size: choice.time for choice in choices}
    if shape == "qwen3-8b":
        assert times[1].seconds == pytest.approx(28.9, rel=0.1) and times[2].seconds == pytest.approx(25.5, rel=0.1)
        assert times[1].tail_seconds - times[2].tail_seconds > times[1].seconds - times[2].seconds
    else:
        assert times[1].seconds == pytest.approx(15.8, rel=0.1)

"""What a run's report shows of the plan, and the disk space of token samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.planning import host
from tempo_megatron.planning.layout import Machine
from tempo_megatron.planning.memory import GIB
from tempo_megatron.planning.phases import total_bytes
from tempo_megatron.planning.prediction import predict
from tempo_megatron.planning.schedule import Schedule
from tempo_megatron.planning.workload import Workload
from tempo_megatron.training.phases.scoring import to_batch
from tempo_megatron.training.phases.token_samples import SampledQuestion, TokenScores, token_records
from tests.unit.planning.test_planning import recipe_run


def test_token_samples_take_what_the_setting_allows() -> None:
    """By hand: 4 evaluations of three sets, 5 questions and 2 responses of 100 tokens and a prompt of 50 each."""
    run = recipe_run(
        "qwen3_14b_math",
        "loop.iterations=30",
        "evaluation.every=10",
        "generation.max_response_tokens=100",
        "data.max_prompt_tokens=50",
        "logging.token_samples=5",
    )
    assert host.token_sample_bytes(run) == 4 * 3 * 5 * 2 * (100 * 80 + 50 * 4)
    longest = recipe_run("qwen3_14b_math", "generation.max_response_tokens=1000000")
    longer = recipe_run("qwen3_14b_math", "generation.max_response_tokens=2000000")
    assert host.token_sample_bytes(longest) == host.token_sample_bytes(longer) > 0
    assert host.token_sample_bytes(recipe_run("qwen3_14b_math", "logging.token_samples=0")) == 0


def test_a_written_token_sample_takes_no_more_than_the_plan_counts() -> None:
    """A record whose numbers have as many digits as any, and words of ten letters."""
    words, tokens = [" something", "\n\n", ' "x"'], 999
    prompt = Prompt("q", tuple(range(50)), "source", "exact")
    rollout = Rollout(prompt, 0, tuple(range(tokens)), (-1.0,) * tokens, "stop")
    batch = to_batch([rollout])
    numbers = torch.full(batch.tokens.shape, -1.2345e-10)
    scores = TokenScores(batch, numbers, numbers, numbers, numbers)

    def decode(ids: Sequence[int]) -> str:
        return "".join(words[token % len(words)] for token in ids)

    question = SampledQuestion("unlabeled", [rollout], [1.0])
    (record,) = token_records([question], scores, decode, compares_log_probs=True)
    written = len((json.dumps(record, ensure_ascii=False) + "\n").encode())
    settings = ("generation.max_response_tokens=999", "data.max_prompt_tokens=50", "logging.token_samples=1")
    run = recipe_run("qwen3_14b_math", *settings, "loop.iterations=1", "evaluation.every=0")
    records = 2 * 3 * 2  # two evaluations of three sets, two responses each
    assert 0.5 < records * written / host.token_sample_bytes(run) <= 1


def test_a_run_has_the_prediction_of_its_own_machine() -> None:
    """That of `tempo plan` for the same nodes, whose GPUs CUDA reports with fewer GiB than their GB."""
    run = recipe_run("qwen3_14b_math", machine=Machine(4, 8, 80.0, 1536.0))
    plan = predict(run.config, gpus=32, gpu_gib=run.machine.usable_gib, host_gib=1536.0, questions=300)
    assert plan is not None
    longest = run.config.generation.max_response_tokens
    assert plan["seconds"] == Schedule(run, Workload.uniform(-(-longest // 2), longest)).phase_seconds()
    assert plan["device_gib"]["m_step"] == pytest.approx(total_bytes(run.phase_memory()["m_step"]) / GIB)
    assert plan["response_tokens"] == pytest.approx(longest / 2, rel=0.01)


def test_what_cannot_be_planned_has_no_prediction() -> None:
    """A run starts all the same."""
    config = recipe_run("qwen3_14b_math").config
    config.model.hf_path = "models/unknown"
    machine: dict[str, Any] = {"gpu_gib": 79.1, "host_gib": 1536.0, "questions": 300}
    assert predict(config, gpus=32, **machine) is None
    assert predict(recipe_run("qwen3_14b_math").config, gpus=5, **machine) is None

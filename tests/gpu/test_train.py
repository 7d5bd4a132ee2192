"""A run on two GPUs, stopped and resumed under another layout; skipped without them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import write_recipe
from tests.end_to_end.test_train import train_by_command

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

GPUS = ("model.precision=bf16", "generation.enforce_eager=true", "generation.gpu_memory_utilization=0.2")
LAYOUTS = {
    "TP2": ("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"),
    "PP2": ("parallel.tensor_model_parallel_size=1", "parallel.pipeline_model_parallel_size=2"),
}


@pytest.mark.parametrize("fp8", ["none", "tensorwise"])
def test_a_run_resumes_under_another_layout_with_the_generator_in_step(
    fp8: str, demo_model: Path, tmp_path: Path
) -> None:
    """Policy and critic rest and wake, the generator sleeps and pulls its weights, each of them compared after every
    sync; two iterations at TP2 go on for two more at PP2, where log-probs of trainer and generator still agree."""
    recipe = write_recipe(tmp_path, demo_model)
    train_by_command(recipe, *GPUS, *LAYOUTS["TP2"], f"model.fp8={fp8}", "loop.iterations=2")
    run = train_by_command(recipe, *GPUS, *LAYOUTS["PP2"], f"model.fp8={fp8}", "loop.iterations=4")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in lines if row["stage"] == "train" and row["iteration"]]
    differences = [row["generation/exp_log_prob_difference_mean"] for row in rows]
    deviations = [row["policy/first_ratio_deviation"] for row in rows]
    offloaded = [row["memory/offloaded_gib"] for row in rows]
    print(f"{fp8}: mean of exp|difference| of log-probs {differences}")
    print(f"{fp8}: first ratios are off 1 by {deviations}; GiB moved {offloaded}")
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    assert min(offloaded) > 0
    assert max(differences) < (1.05 if fp8 == "none" else 1.5)
    assert max(deviations) < 1e-6  # nothing but fp32's last place, which PP2 moves: the old log-probs are the new ones

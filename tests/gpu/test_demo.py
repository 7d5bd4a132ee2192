"""The demo's recipe on two GPUs, cut short; skipped without them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import ROOT
from tests.end_to_end.test_train import metrics, train_by_command

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

SHORT = ("stages.critic_start.iterations=3", "loop.iterations=3", "evaluation.every=3", "checkpoint.every=3")


def test_the_demo_learns_to_spell_and_its_export_loads(demo_model: Path, tmp_path: Path) -> None:
    """The whole warm start teaches the policy to spell some words backward, as samples of the synced generator show.
    Then every part of an iteration works, and first ratios are exactly 1."""
    run = train_by_command(
        ROOT / "recipes" / "demo.yaml",
        f"run_dir={tmp_path / 'run'}",
        f"model.hf_path={demo_model}",
        "parallel.tensor_model_parallel_size=2",
        "model.precision=bf16",
        "generation.enforce_eager=true",
        "generation.gpu_memory_utilization=0.3",
        *SHORT,
    )
    rows = [row for row in metrics(run) if row["stage"] == "train"]
    accuracy = {row["iteration"]: row["evaluation/unlabeled/avg@8"] for row in rows if row["iteration"] in (0, 3)}
    differences = [row["generation/exp_log_prob_difference_mean"] for row in rows if row["iteration"]]
    deviations = [row["policy/first_ratio_deviation"] for row in rows if row["iteration"]]
    print(f"avg@8 {accuracy}, mean of exp|difference| of log-probs {differences}, first ratios off 1 by {deviations}")
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert min(accuracy.values()) > 0.1
    assert max(differences) < 1.05
    assert max(deviations) == 0
    AutoModelForCausalLM.from_pretrained(run / "hf")

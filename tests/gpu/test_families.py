"""Every family through Transformer Engine on one GPU; skipped without one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import write_recipe
from tests.end_to_end.test_train import metrics, train_by_command
from tests.models import ALL_CONFIGS, CONFIGS, EXPERT_CONFIGS, write_model
from tests.parallel.launcher import run_ranks
from tests.parallel.test_logits import WORKER, transformers_logits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 2.5e-2), ("fp32", 1e-5)])
def test_logits_are_near_those_of_transformers(
    precision: str, bound: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest error as a share of the largest logit, against transformers on the CPU in fp32 with the same weights.
    Transformer Engine multiplies fp32 in TF32 unless the driver is told not to. Models with experts are compared in
    fp32 alone: rounding to bf16 sends some tokens to other experts."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    names = ALL_CONFIGS if precision == "fp32" else CONFIGS
    for name in names:
        write_model(name, tmp_path / "models" / name)
    run_ranks(WORKER, 1, tmp_path / "models", tmp_path / "out.pt", 1, 1, precision)
    outputs, shares = torch.load(tmp_path / "out.pt"), {}
    for name in names:
        expected = transformers_logits(tmp_path / "models" / name, upcast=precision == "bf16")
        errors = [(outputs[name][row, : len(truth)] - truth).abs().max() for row, truth in enumerate(expected)]
        shares[name] = float(max(errors) / max(truth.abs().max() for truth in expected))
    print(f"{precision}: " + ", ".join(f"{name} {share:.2e}" for name, share in shares.items()))
    assert max(shares.values()) < bound


@pytest.mark.parametrize("name", ["olmo-3", "olmo-2", "llama-3", "qwen3-moe", "olmoe"])
def test_a_family_trains_and_generates_with_the_weights_that_were_trained(
    name: str, demo_model: Path, tmp_path: Path
) -> None:
    """Two iterations in bf16, every tensor in vLLM checked after every sync; the checkpoint's export is the run's.
    Models with experts replay the generator's routes."""
    hf_path = tmp_path / "model"
    write_model(name, hf_path, dtype=torch.bfloat16)
    for file in demo_model.glob("tokenizer*"):
        shutil.copy(file, hf_path)
    one_gpu = ("processes_per_node=1", "tensor_model_parallel_size=1")
    run = train_by_command(
        write_recipe(tmp_path, hf_path),
        *(f"parallel.{setting}" for setting in one_gpu),
        "model.precision=bf16",
        "generation.enforce_eager=true",
        "generation.gpu_memory_utilization=0.2",
        "loop.iterations=2",
        f"policy.router_replay={'generator' if name in EXPERT_CONFIGS else 'none'}",
    )
    rows = [row for row in metrics(run) if row["stage"] == "train" and row["iteration"]]
    differences = [row["generation/log_prob_difference_mean"] for row in rows]
    print(f"{name}: mean difference of log-probs {differences}")
    assert len(rows) == 2 and max(differences) < (0.1 if name in EXPERT_CONFIGS else 0.05)

"""TEMPO on a model with experts, on the real generator, with router replay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tempo_megatron.config import load_config
from tempo_megatron.data.sources import read_rows
from tests.end_to_end.test_methods import WORKER, questions
from tests.end_to_end.test_train import exported, metrics, same_weights, training_log
from tests.metrics_page import undocumented
from tests.models import write_model
from tests.parallel.launcher import run_ranks

ITERATIONS = 3


@pytest.fixture
def mixture(tmp_path: Path, demo_model: Path) -> Path:
    write_model("qwen3-moe", tmp_path / "mixture")
    for file in demo_model.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "mixture")
    return tmp_path / "mixture"


@pytest.mark.parametrize("ranks", [1, 2])
def test_tempo_learns_with_experts_and_sees_no_hidden_answer(
    ranks: int, recipe: Path, mixture: Path, tmp_path: Path
) -> None:
    """Three iterations with replayed routes and a load-balancing loss: log-probs of generator and trainer agree in
    fp32, weights are checked after every sync, and every expert and router has learned. On disk, the rollouts that
    train the policy have routes, and no others. Another run has permuted hidden answers and reads the rollouts: weights
    and training log are the same bit for bit. Two ranks share the experts, and are two replicas of the generator."""
    loop = load_config(recipe).loop
    rollouts_of_a_step = loop.unlabeled_prompts * loop.samples_per_prompt
    words = {
        name: [row.question[-4:] for row in read_rows(getattr(load_config(recipe).data, name), labeled=False)]
        for name in ("labeled", "unlabeled", "warm_start")
    }
    shared = (
        f"model.hf_path={mixture}",
        f"parallel.processes_per_node={ranks}",
        "parallel.tensor_model_parallel_size=1",
        f"parallel.expert_model_parallel_size={ranks}",
        f"data.labeled={questions(tmp_path / 'labeled.jsonl', words['labeled'])}",
        f"data.warm_start={questions(tmp_path / 'learned.jsonl', words['warm_start'])}",
        "stages.warm_start.steps=10",
        f"loop.iterations={ITERATIONS}",
        "policy.router_replay=generator",
        "policy.kl_coefficient=0.1",
        "policy.aux_loss_coefficient=0.01",
        "critic.aux_loss_coefficient=0.01",
        "grading.workers=1",
        "evaluation.every=3",
        "evaluation.samples=2",
        "evaluation.k=2",
        "checkpoint.every=3",
    )
    runs = (tmp_path / "whole", tmp_path / "permuted")
    plan = []
    for shift, run in enumerate(runs):
        (tmp_path / f"hidden-{shift}").mkdir()
        hidden = questions(tmp_path / f"hidden-{shift}" / "unlabeled.jsonl", words["unlabeled"], shift)
        rollouts = f"generation.replay={runs[0] / 'rollouts'}" if shift else "generation.keep_rollouts=true"
        plan.append([*shared, f"run_dir={run}", f"data.unlabeled={hidden}", rollouts])
    run_ranks(WORKER, ranks, recipe, json.dumps(plan), timeout=500)

    rows = [row for row in metrics(runs[0]) if row["stage"] == "train" and row["iteration"]]
    assert len(rows) == ITERATIONS
    assert all(row["generation/log_prob_difference_mean"] < 1e-5 for row in rows)
    assert all(row["policy/first_ratio_deviation"] < 1e-5 for row in rows)
    assert all(row["policy/kl_to_reference"] > 0 for row in rows)
    assert all(0.9 < row[f"{model}/aux_loss"] < 3 for row in rows for model in ("policy", "critic"))
    assert undocumented(key for row in rows for key in row) == []
    assert same_weights(*runs)
    assert training_log(runs[0]) == training_log(runs[1])
    assert metrics(runs[0]) != metrics(runs[1])  # evaluation knows the answers
    _assert_experts_learned(mixture, runs[0])
    assert _routed_responses(runs[0] / "rollouts") == [rollouts_of_a_step] * ITERATIONS


def _routed_responses(rollouts: Path) -> list[int]:
    """Returns the number of responses with routes in each file that has any."""
    numbers = []
    for path in sorted(rollouts.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if "routed" in file.keys():  # noqa: SIM118
                numbers.append(int((file.get_tensor("routed") > 0).sum()))
    return numbers


def _assert_experts_learned(start: Path, run: Path) -> None:
    learned = exported(run)
    with safe_open(start / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if ".mlp.experts." in name or ".mlp.gate." in name]  # noqa: SIM118
        assert names and not any(torch.equal(file.get_tensor(name), learned[name]) for name in names)

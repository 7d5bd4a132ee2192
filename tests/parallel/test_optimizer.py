"""The real optimizer of two data-parallel ranks: what decays, what a frozen critic holds, what is not learned from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import write_recipe
from tests.models import write_model
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("optimizer_worker.py")


@pytest.fixture(scope="module")
def report(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("optimizer")
    biased, out = directory / "biased", directory / "found.pt"
    write_model("llama-biases", biased)
    recipe = write_recipe(directory, demo_model)
    run_ranks(WORKER, 2, biased, recipe, out)
    result: dict[str, Any] = torch.load(out)
    return result


def test_weight_decay_leaves_norms_and_biases_alone(report: dict[str, Any]) -> None:
    """A step without a gradient takes lr x decay, a tenth, off every matrix, the value head's too, and off nothing
    else."""
    assert {dimensions for dimensions, _, _ in report["decayed"].values()} == {1, 2}
    for name, (dimensions, least, most) in report["decayed"].items():
        expected_share = 1.0 if dimensions == 1 else 0.9
        assert (least, most) == (pytest.approx(expected_share), pytest.approx(expected_share)), name
    assert {"output_layer.weight", "output_layer.bias", "decoder.final_norm.weight"} <= report["decayed"].keys()


def test_a_frozen_critic_holds_no_optimizer(report: dict[str, Any]) -> None:
    """Neither memory nor checkpoints hold one once the critic start is over, after a resume in that stage or behind it,
    and from the beginning where the critic never learns."""
    frozen = report["frozen"]
    for name in ("frozen", "resumed in the stage", "resumed", "never"):
        critic = frozen[name]
        assert (critic["learns"], critic["optimizer"], critic["device"], critic["host"]) == (False, False, 0, 0), name
    assert frozen["frozen"]["saved"] == {"interim-critic_start-000001": True}
    assert frozen["resumed"]["saved"] == {"iteration-000000": False}
    assert frozen["never"]["saved"] == {"iteration-000001": False} and frozen["never"]["scorer"]


def test_a_frozen_critic_judges_as_before_when_it_resumes(report: dict[str, Any]) -> None:
    """A checkpoint holds all of it: its weights."""
    assert report["frozen"]["differ"] == set()


def test_a_nan_among_the_critics_values_is_left_out_kept_and_counted(report: dict[str, Any]) -> None:
    """Figures cover the other rollouts, and the other mini-batches are learned from, with whitened advantages too."""
    metrics = report["spoilt"]["metrics"]
    assert metrics["critic/non_finite_values"] == metrics["critic/skipped_updates"] == 1.0
    assert metrics["policy/non_finite_rewards"] == metrics["policy/skipped_updates"] == 1.0
    assert all(map(math.isfinite, metrics.values()))
    assert metrics["critic/gradient_norm"] > 0 and metrics["policy/gradient_norm"] > 0
    assert report["spoilt"]["kept"] == ["critic-1.safetensors", "policy-1.safetensors"]

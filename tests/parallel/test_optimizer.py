"""The optimizer on two data-parallel ranks: weight decay, a frozen critic, and values that are not finite."""

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
    biased, out = directory / "biased", directory / "report.pt"
    write_model("llama-biases", biased)
    recipe = write_recipe(directory, demo_model)
    run_ranks(WORKER, 2, biased, recipe, out)
    loaded: dict[str, Any] = torch.load(out)
    return loaded


def test_weight_decay_leaves_norms_and_biases_alone(report: dict[str, Any]) -> None:
    """A step without a gradient reduces every matrix by lr x decay, a tenth, the value head's included. Other
    parameters stay."""
    assert {dimensions for dimensions, _, _ in report["decayed"].values()} == {1, 2}
    for name, (dimensions, least, most) in report["decayed"].items():
        expected = 1.0 if dimensions == 1 else 0.9
        assert (least, most) == (pytest.approx(expected), pytest.approx(expected)), name
    assert {"output_layer.weight", "output_layer.bias", "decoder.final_norm.weight"} <= report["decayed"].keys()


def test_a_frozen_critic_holds_no_optimizer(report: dict[str, Any]) -> None:
    """There is none in memory or in checkpoints: after the critic start, after a resume in it or after it, and for a
    critic that never learns."""
    frozen = report["frozen"]
    for name in ("frozen", "resumed in the stage", "resumed", "never"):
        state = frozen[name]
        assert (state["learns"], state["optimizer"], state["device"], state["host"]) == (False, False, 0, 0), name
    assert frozen["frozen"]["saved"] == {"interim-critic_start-000001": True}
    assert frozen["resumed"]["saved"] == {"iteration-000000": False}
    assert frozen["never"]["saved"] == {"iteration-000001": False} and frozen["never"]["scorer"]


def test_a_frozen_critic_judges_as_before_when_it_resumes(report: dict[str, Any]) -> None:
    """Its weights are its whole state."""
    assert report["frozen"]["differ"] == set()


def test_a_nan_among_the_critics_values_skips_an_update_that_is_saved_and_counted(report: dict[str, Any]) -> None:
    """Metrics are those of the other rollouts. The other mini-batches learn, from whitened advantages too."""
    metrics = report["with_nan_value"]["metrics"]
    assert metrics["critic/non_finite_values"] == metrics["critic/skipped_updates"] == 1.0
    assert metrics["policy/non_finite_rewards"] == metrics["policy/skipped_updates"] == 1.0
    assert all(map(math.isfinite, metrics.values()))
    assert metrics["critic/gradient_norm"] > 0 and metrics["policy/gradient_norm"] > 0
    assert report["with_nan_value"]["kept"] == ["critic-1.safetensors", "policy-1.safetensors"]

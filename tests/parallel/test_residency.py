"""Models are offloaded between phases: nothing of them stays on the device, and nothing that they learn changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import write_recipe
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("residency_worker.py")
SETTINGS = {
    "parallel.tensor_model_parallel_size": 1,
    "policy.kl_coefficient": 0.1,
    "stages.warm_start.steps": 1,
    "evaluation.every": 0,
}


@pytest.fixture(scope="module")
def report(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of two data-parallel ranks: policy, critic and reference, two iterations, a checkpoint and a resume between."""
    directory = tmp_path_factory.mktemp("residency")
    recipe, out = write_recipe(directory, demo_model), directory / "report.pt"
    run_ranks(WORKER, 2, recipe, out, *(f"{key}={value}" for key, value in SETTINGS.items()))
    loaded: dict[str, Any] = torch.load(out)
    return loaded


def test_offloading_changes_no_result(report: dict[str, Any]) -> None:
    """Weights, optimizer states and metrics equal those of a run without offloading, bit for bit."""
    assert report["same_state"]
    assert report["metrics_differ"] == []


def test_models_leave_the_device_to_the_generator(report: dict[str, Any]) -> None:
    """During generation no storage of a model has a byte on the device. During a weight sync the policy's weights alone
    are there. Without offloading all of them are, which shows that the measurement works."""
    assert min(report["kept_bytes"]) > 0
    assert len(report["offloaded_bytes"]) == len(report["kept_bytes"]) == 2
    assert report["offloaded_bytes"] == [0, 0]
    assert report["sync_bytes"] == [0, 0]


def test_models_are_offloaded_after_a_save(report: dict[str, Any]) -> None:
    """A save onloads one model after the other, not all at once."""
    all_kinds = ["gradients", "optimizer", "weights"]
    assert report["offloaded_after_save"] == {"policy": all_kinds, "critic": all_kinds, "reference": all_kinds}


def test_weights_that_were_only_read_are_not_copied_back(report: dict[str, Any]) -> None:
    """They are copied from host to device alone, since the host's copy is still equal."""
    copied, size = report["read_only_bytes"]
    assert copied == size > 0


def test_too_little_host_memory_is_one_error_that_names_need_and_setting(report: dict[str, Any]) -> None:
    """The error comes before any copy."""
    for part in ("policy's weights", "policy's optimizer", "memory.host_gib"):
        assert part in report["refusal"]

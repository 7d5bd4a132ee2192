"""Models that leave the device between phases: nothing of them stays there, and nothing that they learn changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import write_recipe
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("turns_worker.py")
SETTINGS = {
    "parallel.tensor_model_parallel_size": 1,
    "policy.kl_coefficient": 0.1,
    "stages.warm_start.steps": 1,
    "evaluation.every": 0,
}


@pytest.fixture(scope="module")
def comparison(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of two data-parallel ranks with policy, critic and reference: two iterations, with a checkpoint and a
    resume between them."""
    directory = tmp_path_factory.mktemp("turns")
    recipe, out = write_recipe(directory, demo_model), directory / "found.pt"
    run_ranks(WORKER, 2, recipe, out, *(f"{key}={value}" for key, value in SETTINGS.items()))
    result: dict[str, Any] = torch.load(out)
    return result


def test_resting_changes_nothing_that_is_learned(comparison: dict[str, Any]) -> None:
    """Weights, optimizer states and metrics are those of a run whose models never rest, bit for bit."""
    assert comparison["same_state"]
    assert comparison["metrics_differ"] == []


def test_models_leave_the_device_to_the_generator(comparison: dict[str, Any]) -> None:
    """While the generator works, no storage of any model has a byte on the device. While weights are synced, only the
    policy's weights are there. Without offloading all of them are there, which shows that the measurement sees them."""
    assert min(comparison["stayed_bytes"]) > 0
    assert len(comparison["rested_bytes"]) == len(comparison["stayed_bytes"]) == 2
    assert comparison["rested_bytes"] == [0, 0]
    assert comparison["sync_bytes"] == [0, 0]


def test_saving_leaves_models_at_rest(comparison: dict[str, Any]) -> None:
    """A checkpoint loads one model after the other onto the device, not all at once."""
    kinds = ["gradients", "optimizer", "weights"]
    assert comparison["resting_after_save"] == {"policy": kinds, "critic": kinds, "reference": kinds}


def test_weights_that_were_only_read_are_not_copied_back(comparison: dict[str, Any]) -> None:
    """Weights are copied to the device only: the copy on the host is still equal."""
    copied, size = comparison["read_only_bytes"]
    assert copied == size > 0


def test_too_little_host_memory_is_one_error_that_names_need_and_setting(comparison: dict[str, Any]) -> None:
    """The error comes before anything is copied."""
    for part in ("policy's weights", "policy's optimizer", "memory.host_gib"):
        assert part in comparison["refusal"]

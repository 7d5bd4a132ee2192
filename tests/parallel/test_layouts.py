"""Parallel layouts against one process, all starting from one Hugging Face directory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from checkpoints_convert.__main__ import main
from tempo_megatron.algorithms.experience import STATISTICS
from tests.conftest import write_recipe
from tests.models import write_model
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("layout_worker.py")
SMALL_STEPS = ("policy.optimizer.learning_rate=1e-6", "critic.optimizer.learning_rate=1e-6")
CORRECTION = tuple(
    f"policy.rollout_correction.{setting}"
    for setting in ("weight=geometric_mean", "cap=1.1", "reject=token", "reject_below=0.6", "reject_above=1.7")
)
ONE_STEP = (*SMALL_STEPS, *CORRECTION, "policy.mini_batches=1", "critic.mini_batches=1")
LEARNED = ("critic/loss", "critic/gradient_norm", "policy/gradient_norm", "policy/reward", "policy/entropy")
CORRECTED = (
    "policy/rejected_tokens",
    "policy/rejected_sequences",
    "policy/importance_weight_mean",
    "policy/token_ratio_max",
    "policy/geometric_mean_ratio_max",
)
"""Metrics of runs with a correction."""
Runs = dict[str, tuple[int, Sequence[str]]]
"""name -> iterations and settings"""


def layout(tensor: int, pipeline: int, context: int = 1) -> tuple[str, ...]:
    """Settings; what ranks are left share the data."""
    return (
        f"parallel.tensor_model_parallel_size={tensor}",
        f"parallel.pipeline_model_parallel_size={pipeline}",
        f"parallel.context_parallel_size={context}",
    )


TWO_RANKS = {
    "DP2": layout(1, 1),
    "CP2": layout(1, 1, 2),
    "TP2 with SP": (*layout(2, 1), "parallel.sequence_parallel=true"),
}


def trained(recipe: Path, ranks: int, runs: Runs) -> dict[str, Any]:
    """What the worker computed in each run; a run lives in the recipe's directory under its name."""
    plan, out = recipe.with_suffix(".json"), recipe.with_suffix(".pt")
    runs_of_plan = {name: {"iterations": n, "overrides": overrides} for name, (n, overrides) in runs.items()}
    plan.write_text(json.dumps(runs_of_plan))
    run_ranks(WORKER, ranks, recipe, plan, out)
    result: dict[str, Any] = torch.load(out)
    return result


def assert_close(actual: dict[str, Any], expected: dict[str, Any], relative: float) -> None:
    assert len(actual["metrics"]) == len(actual["after"]) > 0
    for actual_values, expected_values in zip(actual["metrics"], expected["metrics"], strict=True):
        assert actual_values.keys() & set(CORRECTED) == expected_values.keys() & set(CORRECTED)
        for name in (*LEARNED, *expected_values.keys() & set(CORRECTED)):
            assert actual_values[name] == pytest.approx(expected_values[name], rel=relative), name
    close = {"rtol": 0, "atol": 1e-5}
    actual_values, expected_values = actual["after"][-1], expected["after"][-1]
    torch.testing.assert_close(actual_values["values"], expected_values["values"], **close)
    assert actual_values["scores"].keys() == {"log_probs", *STATISTICS}
    for name, column in actual_values["scores"].items():
        torch.testing.assert_close(column, expected_values["scores"][name], **close)


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def one_process(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process: an iteration of one mini-batch, and three whole iterations."""
    recipe = write_recipe(tmp_path_factory.mktemp("alone"), demo_model)
    return trained(
        recipe, 1, {"one step": (1, [*ONE_STEP, *layout(1, 1)]), "three": (3, [*SMALL_STEPS, *layout(1, 1)])}
    )


@pytest.fixture(scope="module")
def two_ranks(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An iteration of one mini-batch under every layout of two ranks, and two whole ones with real steps."""
    recipe = write_recipe(tmp_path_factory.mktemp("two"), demo_model)
    one_step: Runs = {name: (1, [*ONE_STEP, *place]) for name, place in TWO_RANKS.items()}
    return trained(recipe, 2, {**one_step, "real steps": (2, layout(2, 1))})


@pytest.fixture(scope="module")
def olmo(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OLMo 3 with tied embeddings."""
    directory = tmp_path_factory.mktemp("olmo") / "model"
    write_model("olmo-3", directory, tie_word_embeddings=True)
    for file in demo_model.glob("tokenizer*"):
        shutil.copy(file, directory)
    return directory


@pytest.fixture(scope="module")
def four_ranks(demo_model: Path, olmo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """TP2 x PP2: what one process does, and another model saved before its first step; where the runs are."""
    recipe = write_recipe(tmp_path_factory.mktemp("four"), demo_model)
    runs = trained(
        recipe,
        4,
        {
            "one step": (1, [*ONE_STEP, *layout(2, 2)]),
            "three": (3, [*SMALL_STEPS, *layout(2, 2)]),
            "olmo": (0, [f"model.hf_path={olmo}", *layout(2, 2)]),
        },
    )
    return runs, recipe.parent


@pytest.mark.parametrize("name", ["TP2 x PP2", *TWO_RANKS])
def test_every_layout_learns_what_one_process_learns(
    name: str, demo_model: Path, one_process: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """After one step: losses, gradient norms and figures of the correction within 1e-5 relative, values and log-probs
    within 1e-5 absolute. What each layout exports before it is the model that all started from, bit for bit."""
    if name in TWO_RANKS:
        several_ranks = request.getfixturevalue("two_ranks")[name]
    else:
        several_ranks = request.getfixturevalue("four_ranks")[0]["one step"]
    assert_close(several_ranks, one_process["one step"], 1e-5)
    (metrics,) = one_process["one step"]["metrics"]
    assert 0 < metrics["policy/rejected_tokens"] < 1 and metrics["policy/token_ratio_max"] > 1.7
    assert_same(several_ranks["at_start"], load_file(demo_model / "model.safetensors"))


def test_three_iterations_stay_together(four_ranks: tuple[dict[str, Any], Path], one_process: dict[str, Any]) -> None:
    """Differences of rounding do not grow over several mini-batches and iterations: 1e-5 relative."""
    assert_close(four_ranks[0]["three"], one_process["three"], 1e-5)


def test_a_checkpoint_goes_on_under_any_layout(
    recipe: Path, four_ranks: tuple[dict[str, Any], Path], one_process: dict[str, Any]
) -> None:
    """Saved by TP2 x PP2, optimizers and all: TP2, DP2 and the offline converter read the same weights, bit for bit,
    and the next iteration is that of one process which was never interrupted."""
    saved = four_ranks[0]["three"]["after"][0]["weights"]
    run = four_ranks[1] / "three"
    (newest,) = (run / "checkpoints").iterdir()
    assert main(["to-hf", "--checkpoint", str(newest), "--out", str(recipe.parent / "hf")]) == 0
    assert_same(load_file(recipe.parent / "hf" / "model.safetensors"), saved)
    places = {"TP2": layout(2, 1), "DP2": layout(1, 1)}
    for name in places:
        shutil.copytree(run, recipe.parent / name)
    resumed = trained(recipe, 2, {name: (1, [*SMALL_STEPS, *place]) for name, place in places.items()})
    expected = {name: rows[1:2] for name, rows in one_process["three"].items() if name != "at_start"}
    for resumed_run in resumed.values():
        assert_same(resumed_run["at_start"], saved)
        assert_close(resumed_run, expected, 1e-5)


def test_the_first_mini_batch_of_an_update_has_ratios_of_1(two_ranks: dict[str, Any]) -> None:
    """Old log-probs come from the same forward, micro-batches and precision as the update: the ratios are exactly 1."""
    rows = two_ranks["real steps"]["metrics"]
    assert [metrics["policy/first_ratio_deviation"] for metrics in rows] == [0.0, 0.0]
    assert rows[0]["policy/ratio_max"] > rows[0]["policy/ratio_min"]


def test_a_training_checkpoint_of_any_layout_is_exported_from_itself_alone(
    four_ranks: tuple[dict[str, Any], Path], olmo: Path, tmp_path: Path
) -> None:
    """OLMo 3 with tied embeddings, saved by a TP2 x PP2 run before its first step, its source gone: tensors, config and
    tokenizer come back bit for bit; the critic is one that transformers loads, with the policy's backbone."""
    expected = load_file(olmo / "model.safetensors")
    files = {file.name: file.read_bytes() for file in olmo.iterdir() if file.suffix == ".json"}
    shutil.rmtree(olmo)
    (newest,) = (four_ranks[1] / "olmo" / "checkpoints").iterdir()
    for role in ("policy", "critic"):
        arguments = ["to-hf", "--checkpoint", str(newest), "--out", str(tmp_path / role), "--role", role]
        assert main(arguments) == 0
    assert_same(load_file(tmp_path / "policy" / "model.safetensors"), expected)
    assert {name: (tmp_path / "policy" / name).read_bytes() for name in files} == files
    critic = load_file(tmp_path / "critic" / "model.safetensors")
    assert critic.pop("score.weight").shape == (1, expected["model.norm.weight"].numel())
    assert_same(critic, expected)
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic", output_loading_info=True)
    assert not any(info.values())

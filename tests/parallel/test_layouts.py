"""Parallel layouts against one process, all starting from one Hugging Face directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from checkpoints_convert.__main__ import main
from tempo_megatron.config import load
from tests.conftest import write_recipe
from tests.models import write_model
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("layout_worker.py")
LAYOUTS = {
    "TP2 x PP2": (2, 2, 1),
    "DP2": (1, 1, 2),
    "CP2": (1, 1, 2),
    "TP2 with SP": (2, 1, 1),
}
EXTRA = {"TP2 with SP": ("parallel.sequence_parallel=true",), "CP2": ("parallel.context_parallel_size=2",)}
SMALL_STEPS = ("policy.optimizer.learning_rate=1e-6", "critic.optimizer.learning_rate=1e-6")
ONE_STEP = (*SMALL_STEPS, "policy.mini_batches=1", "critic.mini_batches=1")
LEARNED = ("critic/loss", "critic/gradient_norm", "policy/gradient_norm", "policy/reward", "policy/entropy")


def trained(
    recipe: Path, layout: tuple[int, int, int], iterations: int, *overrides: str, keep: bool = False
) -> dict[str, Any]:
    """What the worker wrote. Unless told to `keep` the run directory it starts from the model, not a checkpoint."""
    tensor, pipeline, data = layout
    if not keep:
        shutil.rmtree(load(recipe).run_dir, ignore_errors=True)
    out = recipe.with_suffix(".pt")
    overrides = (
        f"parallel.tensor_model_parallel_size={tensor}",
        f"parallel.pipeline_model_parallel_size={pipeline}",
        *overrides,
    )
    run_ranks(WORKER, tensor * pipeline * data, recipe, out, iterations, *overrides)
    result: dict[str, Any] = torch.load(out)
    return result


def assert_close(found: dict[str, Any], expected: dict[str, Any], relative: float) -> None:
    for mine, theirs in zip(found["metrics"], expected["metrics"], strict=True):
        for name in LEARNED:
            assert mine[name] == pytest.approx(theirs[name], rel=relative), name
    for name in ("values", "log_probs"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def alone(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """One process after one iteration of one mini-batch, and after two and three whole iterations."""
    recipe = write_recipe(tmp_path_factory.mktemp("alone"), demo_model)
    return {
        1: trained(recipe, (1, 1, 1), 1, *ONE_STEP),
        2: trained(recipe, (1, 1, 1), 2, *SMALL_STEPS),
        3: trained(recipe, (1, 1, 1), 3, *SMALL_STEPS),
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_learns_what_one_process_learns(
    name: str, recipe: Path, demo_model: Path, alone: dict[int, dict[str, Any]]
) -> None:
    """After one step: losses and gradient norms within 1e-5 relative, values and log-probs within 1e-5 absolute. What
    each layout exports before it is the model that all started from, bit for bit."""
    together = trained(recipe, LAYOUTS[name], 1, *ONE_STEP, *EXTRA.get(name, ()))
    assert_close(together, alone[1], 1e-5)
    assert_same(together["at_start"], load_file(demo_model / "model.safetensors"))


def test_three_iterations_stay_together(recipe: Path, alone: dict[int, dict[str, Any]]) -> None:
    """Differences of rounding do not grow over several mini-batches and iterations: 1e-5 relative."""
    assert_close(trained(recipe, (2, 2, 1), 3, *SMALL_STEPS), alone[3], 1e-5)


def test_a_checkpoint_goes_on_under_any_layout(recipe: Path, alone: dict[int, dict[str, Any]]) -> None:
    """Saved by TP2 x PP2, optimizers and all: one process, TP2 and the offline converter read the same weights, bit for
    bit, and the next iteration is that of one process which was never interrupted."""
    saved = trained(recipe, (2, 2, 1), 1, *SMALL_STEPS)
    checkpoint = Path(load(recipe).run_dir) / "checkpoints"
    (newest,) = checkpoint.iterdir()
    assert main(["to-hf", "--checkpoint", str(newest), "--out", str(recipe.parent / "hf")]) == 0
    assert_same(load_file(recipe.parent / "hf" / "model.safetensors"), saved["weights"])
    shutil.copytree(checkpoint, recipe.parent / "saved")
    for layout in ((1, 1, 1), (2, 1, 1)):
        shutil.rmtree(checkpoint)
        shutil.copytree(recipe.parent / "saved", checkpoint)
        resumed = trained(recipe, layout, 1, *SMALL_STEPS, keep=True)
        assert_same(resumed["at_start"], saved["weights"])
        assert_close(resumed, {**alone[2], "metrics": alone[2]["metrics"][1:]}, 1e-5)


def test_the_first_mini_batch_of_an_update_has_ratios_of_1(recipe: Path) -> None:
    """Old log-probs come from the same forward, micro-batches and precision as the update: the ratios are exactly 1."""
    result = trained(recipe, (2, 1, 1), 2)
    assert [metrics["policy/first_ratio_deviation"] for metrics in result["metrics"]] == [0.0, 0.0]
    moved = result["metrics"][0]
    assert moved["policy/ratio_max"] > moved["policy/ratio_min"]


def test_a_training_checkpoint_of_any_layout_is_exported_from_itself_alone(
    recipe: Path, demo_model: Path, tmp_path: Path
) -> None:
    """OLMo 3 with tied embeddings, saved by a TP2 x PP2 run before its first step, its source gone: tensors, config and
    tokenizer come back bit for bit; the critic is one that transformers loads, with the policy's backbone."""
    hf_path = tmp_path / "model"
    write_model("olmo-3", hf_path, tie_word_embeddings=True)
    for file in demo_model.glob("tokenizer*"):
        shutil.copy(file, hf_path)
    trained(recipe, (2, 2, 1), 0, f"model.hf_path={hf_path}")
    expected = load_file(hf_path / "model.safetensors")
    files = {file.name: file.read_bytes() for file in hf_path.iterdir() if file.suffix == ".json"}
    shutil.rmtree(hf_path)
    (newest,) = (Path(load(recipe).run_dir) / "checkpoints").iterdir()
    for role in ("policy", "critic"):
        given = ["to-hf", "--checkpoint", str(newest), "--out", str(tmp_path / role), "--role", role]
        assert main(given) == 0
    assert_same(load_file(tmp_path / "policy" / "model.safetensors"), expected)
    assert {name: (tmp_path / "policy" / name).read_bytes() for name in files} == files
    critic = load_file(tmp_path / "critic" / "model.safetensors")
    assert critic.pop("score.weight").shape == (1, expected["model.norm.weight"].numel())
    assert_same(critic, expected)
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic", output_loading_info=True)
    assert not any(info.values())

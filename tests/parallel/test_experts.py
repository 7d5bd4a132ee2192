"""Expert parallelism against transformers and against one process: gradients, training, checkpoints, export."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from checkpoints_convert.__main__ import main
from tests.conftest import write_recipe
from tests.models import write_model
from tests.parallel.test_family_gradients import PACKED, Gradients, compute, distances, transformers_gradients
from tests.parallel.test_layouts import ONE_STEP, SMALL_STEPS, assert_close, assert_same, layout, trained

EP2 = "parallel.expert_model_parallel_size=2"
ALONE = layout(1, 1)
SP = "parallel.sequence_parallel=true"
GRADIENT_LAYOUTS: dict[str, tuple[int, str, tuple[str, ...]]] = {
    "EP2": (2, "qwen3-moe", (EP2,)),
    "EP2, experts recomputed": (2, "qwen3-moe", (EP2, "model.recompute=mlp")),
    "EP2, all recomputed": (2, "olmoe", (EP2, "model.recompute=full")),
    "TP2": (2, "olmoe", (*layout(2, 1), SP)),
    "TP2 x EP2": (2, "qwen3-moe", (*layout(2, 1), SP, EP2)),
    "CP2 x EP2": (2, "olmoe", (*layout(1, 1, 2), EP2)),
    "PP2 x EP2": (4, "qwen3-moe", (*layout(1, 2), EP2)),
    "TP2 x DP2 x EP2": (4, "olmoe", (*layout(2, 1), SP, EP2)),
}
"""Name -> ranks, model, settings. Two pipeline stages have two layers and one; the last has two ranks with the same
experts."""


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> tuple[Gradients, Gradients]:
    """What each layout computes, and what transformers computes of each model."""
    models = tmp_path_factory.mktemp("models")
    names = sorted({name for _, name, _ in GRADIENT_LAYOUTS.values()})
    for name in names:
        write_model(name, models / name, max_position_embeddings=2048, num_hidden_layers=3)
    results: Gradients = {}
    for ranks in (2, 4):
        cases = {
            case: (name, (PACKED, *settings))
            for case, (case_ranks, name, settings) in GRADIENT_LAYOUTS.items()
            if case_ranks == ranks
        }
        results |= compute(models, ranks, cases, "fp32")
    roles = ("policy", "critic")
    return results, {name: {role: transformers_gradients(models / name, role) for role in roles} for name in names}


@pytest.mark.parametrize("name", GRADIENT_LAYOUTS)
def test_losses_norms_and_gradients_are_those_of_transformers(
    name: str, gradients: tuple[Gradients, Gradients]
) -> None:
    """In fp32, packed: losses, the norm that the optimizer clips by, and the gradient of every expert and router, for
    policy and critic. Protects from gradients that are summed over the wrong ranks, or counted twice in the norm."""
    actual, expected = gradients
    shares = distances(actual[name], expected[GRADIENT_LAYOUTS[name][1]])
    assert max(shares.values()) < 1e-5, shares


@pytest.fixture(scope="module")
def mixture(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose first two of four layers are dense, so that the first of two pipeline stages has no experts."""
    directory = tmp_path_factory.mktemp("mixture") / "model"
    write_model("qwen3-moe", directory, mlp_only_layers=[0, 1])
    for file in demo_model.glob("tokenizer*"):
        shutil.copy(file, directory)
    return directory


def resumed(source: Path, recipe: Path, name: str) -> None:
    """Give a run of the recipe the directory of another run, so that it resumes from its checkpoint."""
    shutil.copytree(source, recipe.parent / name)


@pytest.fixture(scope="module")
def runs(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Runs of one, two and four ranks, each saved after its first iteration, and others that resume from these; and the
    directory of the run that EP2 saved."""
    recipes = {ranks: write_recipe(tmp_path_factory.mktemp(f"ranks{ranks}"), mixture) for ranks in (1, 2, 4)}
    alone = trained(recipes[1], 1, {"one step": (1, [*ONE_STEP, *ALONE]), "two": (2, [*SMALL_STEPS, *ALONE])})
    resumed(recipes[1].parent / "two", recipes[2], "from one")
    two = trained(
        recipes[2],
        2,
        {
            "EP2": (1, [*ONE_STEP, *ALONE, EP2, "memory.offload_on_cpu=true"]),
            "TP2 x EP2": (1, [*ONE_STEP, *layout(2, 1), SP, EP2]),
            "saved": (1, [*SMALL_STEPS, *ALONE, EP2]),
            "from one": (1, [*SMALL_STEPS, *ALONE, EP2]),
        },
    )
    saved = recipes[2].parent / "saved"
    for recipe in (recipes[1], recipes[4]):
        resumed(saved, recipe, "from EP2")
    four = trained(
        recipes[4],
        4,
        {
            "PP2 x EP2": (1, [*ONE_STEP, *layout(1, 2), EP2]),
            "DP4 x EP2": (1, [*ONE_STEP, *ALONE, EP2]),
            "from EP2": (1, [*SMALL_STEPS, *layout(1, 2), EP2]),
        },
    )
    again = trained(recipes[1], 1, {"from EP2": (1, [*SMALL_STEPS, *ALONE])})
    results = {f"1 {name}": run for name, run in (alone | again).items()}
    return results | {f"2 {name}": run for name, run in two.items()} | {f"4 {n}": run for n, run in four.items()}, saved


@pytest.mark.parametrize("name", ["2 EP2", "2 TP2 x EP2", "4 PP2 x EP2", "4 DP4 x EP2"])
def test_every_layout_learns_what_one_process_learns(
    name: str, runs: tuple[dict[str, Any], Path], mixture: Path
) -> None:
    """A critic's and a policy's step: losses, gradient norms, values and log-probs, and which experts were used. At EP2
    idle models move to host memory as well. What each layout exports before its step is the model that all started
    from, bit for bit."""
    results, _ = runs
    assert_close(results[name], results["1 one step"], 1e-5)
    assert_same(results[name]["at_start"], load_file(mixture / "model.safetensors"))
    (metrics,), (expected,) = results[name]["metrics"], results["1 one step"]["metrics"]
    for model in ("policy", "critic"):
        busiest, idlest = (f"{model}/expert_share_{extreme}" for extreme in ("max", "min"))
        assert 0 <= expected[idlest] < 1 / 3 < expected[busiest] <= 1
        for figure in (busiest, idlest):  # Padding for sequence parallelism counts.
            assert metrics[figure] == pytest.approx(expected[figure], abs=0.01), figure


@pytest.mark.parametrize("name", ["2 from one", "1 from EP2", "4 from EP2"])
def test_a_checkpoint_goes_on_under_another_expert_parallelism(name: str, runs: tuple[dict[str, Any], Path]) -> None:
    """Weights and optimizers saved by one process go on at EP2, and those saved at EP2 in one process and at PP2 x EP2:
    the next iteration is that of a run which was never interrupted."""
    results, _ = runs
    source = results["1 two" if name == "2 from one" else "2 saved"]
    expected = {part: rows[1:2] for part, rows in results["1 two"].items() if part != "at_start"}
    assert_same(results[name]["at_start"], source["after"][0]["weights"])
    assert_close(results[name], expected, 1e-5)


def test_a_checkpoint_of_ep2_is_exported_by_the_offline_converter(
    runs: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """It writes each expert of both ranks under its own name, bit for bit."""
    results, saved = runs
    (newest,) = (saved / "checkpoints").iterdir()
    assert main(["to-hf", "--checkpoint", str(newest), "--out", str(tmp_path / "hf")]) == 0
    assert_same(load_file(tmp_path / "hf" / "model.safetensors"), results["2 saved"]["after"][0]["weights"])


def test_verify_under_expert_parallelism_names_one_changed_element_of_one_expert(
    mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], warm_torchrun: None
) -> None:
    """Two ranks load three experts a layer each. Both they and the offline reader name the changed tensor alone."""
    convert = ["to-megatron", "--hf", str(mixture), "--out", str(tmp_path / "checkpoint")]
    assert main(convert) == 0
    tensors = load_file(mixture / "model.safetensors")
    name = "model.layers.3.mlp.experts.4.down_proj.weight"
    tensors[name][5, 7] += 1e-3
    shutil.copytree(mixture, tmp_path / "changed")
    save_file(tensors, tmp_path / "changed" / "model.safetensors", {"format": "pt"})
    options = ["--checkpoint", str(tmp_path / "checkpoint"), "--expert-parallel", "2"]
    assert main(["verify", "--hf", str(tmp_path / "changed"), *options]) == 1
    *lines, summary = [line for line in capsys.readouterr().out.splitlines() if "differ" in line]
    assert [line.startswith(f"{name}: 1 of {40 * 64} elements differ") for line in lines] == [True, True]
    assert summary == "2 differences"

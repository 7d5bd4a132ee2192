"""Virtual pipeline stages against transformers and against one process: gradients, training, checkpoints, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from checkpoints_convert.__main__ import main
from tempo_megatron.config import Config
from tempo_megatron.conversion.critics import fresh_value_head
from tests.conftest import write_recipe
from tests.models import write_model
from tests.parallel import test_router_replay
from tests.parallel.launcher import run_ranks
from tests.parallel.test_experts import mixture as mixture
from tests.parallel.test_experts import resumed
from tests.parallel.test_family_gradients import PACKED, Gradients, compute, distances, transformers_gradients
from tests.parallel.test_layouts import ONE_STEP, SMALL_STEPS, assert_close, assert_same, layout, trained

PP2_VPP2 = (*layout(1, 2), "parallel.virtual_pipeline_model_parallel_size=2")
PP2_VPP3 = (*layout(1, 2), "parallel.virtual_pipeline_model_parallel_size=3")
SMALL = "policy.micro_batch_tokens=800"
"""Two micro-batches of the worker's rows; the interleaved schedule needs a multiple of two."""
ALONE = layout(1, 1)
GRADIENT_LAYOUTS: dict[str, tuple[int, str, tuple[str, ...]]] = {
    "dense": (2, "qwen3", (SMALL, *PP2_VPP2)),
    "dense, rows alone": (2, "qwen3", ("policy.micro_batch_tokens=1", *PP2_VPP3)),
    "other cuts for policy and critic, tied": (2, "qwen3-tied", (PACKED, *PP2_VPP2)),
    "norms over heads of TP ranks": (4, "olmo-3", (SMALL, *PP2_VPP2, *layout(2, 2)[:1])),
    "experts": (2, "qwen3-moe", (SMALL, *PP2_VPP2, "model.recompute=mlp")),
    "experts replay": (2, "qwen3-moe", (SMALL, *PP2_VPP2, "model.recompute=full", test_router_replay.REPLAY)),
    "CP2": (4, "qwen3", (SMALL, *PP2_VPP2, *layout(1, 2, 2)[2:])),
    "EP2 x DP2": (4, "qwen3-moe", (SMALL, *PP2_VPP2, "parallel.expert_model_parallel_size=2")),
}
"""Name -> ranks, model, settings. The four chunks of seven layers have 2, 2, 2 and 1 of them; the six have 2, 1, ...
One micro-batch would do for the packed case."""
UNLIKE_CUTS = {"num_hidden_layers": 8, "vocab_size": 4000}
"""A model whose policy has chunks of 3, 2, 2 and 1 layers, because its output layer costs much. Its critic has 2 in
each."""


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> tuple[Gradients, Gradients]:
    """What each layout computes, and what transformers computes in its place."""
    models = tmp_path_factory.mktemp("models")
    shape = {"max_position_embeddings": 2048, "num_hidden_layers": 7}
    for name in ("qwen3", "olmo-3", "qwen3-moe"):
        write_model(name, models / name, **shape)
    write_model("qwen3-tied", models / "qwen3-tied", **shape | UNLIKE_CUTS)
    results: Gradients = {}
    for ranks in (2, 4):
        cases = {
            case: (name, settings)
            for case, (case_ranks, name, settings) in GRADIENT_LAYOUTS.items()
            if case_ranks == ranks
        }
        results |= compute(models, ranks, cases, "fp32")
    expected = {
        name: {role: transformers_gradients(models / name, role) for role in ("policy", "critic")}
        for name in ("qwen3", "qwen3-tied", "olmo-3", "qwen3-moe")
    }
    replayed = {"policy": test_router_replay.transformers_gradients(models / "qwen3-moe")}
    references = {case: expected[name] for case, (_, name, _) in GRADIENT_LAYOUTS.items()}
    return results, references | {"experts replay": replayed}


@pytest.mark.parametrize("name", GRADIENT_LAYOUTS)
def test_losses_norms_and_gradients_are_those_of_transformers(
    name: str, gradients: tuple[Gradients, Gradients]
) -> None:
    """In fp32: losses, the norm that the optimizer clips by, and the gradient of every tensor, for policy and critic.
    Protects from tensors that pass between the wrong chunks, from gradients of chunks that no rank reduces, and from
    experts of another micro-batch or chunk in a backward pass that recomputes."""
    actual, expected = gradients
    shares = distances(actual[name], expected[name])
    assert max(shares.values()) < 1e-5, shares


@pytest.mark.parametrize(
    ("settings", "layers"), [(PP2_VPP2, [([3, 2], [2, 2]), ([2, 1], [2, 2])]), (layout(1, 2), [([7], [4]), ([1], [4])])]
)
def test_a_backbone_moves_between_unlike_cuts(
    settings: tuple[str, ...], layers: list[tuple[list[int], list[int]]], tmp_path: Path
) -> None:
    """A policy's weights reach a critic whose stages have other layers, bit for bit, and the critic keeps its value
    head. Protects the critic of a run with a warm start. `layers` are those of each rank's chunks."""
    write_model("qwen3-tied", tmp_path / "model", **UNLIKE_CUTS)
    run_ranks(Path(__file__).with_name("backbone_worker.py"), 2, tmp_path / "model", tmp_path / "out.pt", *settings)
    copied = torch.load(tmp_path / "out.pt")
    assert copied["layers"] == layers
    head = copied["critic"].pop("score.weight")
    assert torch.equal(head, fresh_value_head(head.shape[1], Config().seed))
    assert_same(copied["critic"], load_file(tmp_path / "model" / "model.safetensors"))


@pytest.fixture(scope="module")
def runs(
    demo_model: Path, mixture: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Runs of one process; runs of PP2 x VPP2, one of which goes on from another layout; and the directory of
    the run that PP2 x VPP2 saved. Two layers of the model with experts are dense."""
    alone, two, four, again = (
        write_recipe(tmp_path_factory.mktemp(name), mixture) for name in ("alone", "two", "four", "again")
    )
    dense = f"model.hf_path={demo_model}"
    one_process = trained(
        alone,
        1,
        {
            "dense": (1, [*ONE_STEP, *ALONE, dense]),
            "experts": (1, [*ONE_STEP, *ALONE]),
            "two": (2, [*SMALL_STEPS, *ALONE]),
        },
    )
    resumed(alone.parent / "two", two, "from one")
    chunked = trained(
        two,
        2,
        {
            "dense": (1, [*ONE_STEP, *PP2_VPP2, dense, "memory.offload_on_cpu=true"]),
            "experts": (1, [*ONE_STEP, *PP2_VPP2]),
            "saved": (1, [*SMALL_STEPS, *PP2_VPP2]),
            "from one": (1, [*SMALL_STEPS, *PP2_VPP2]),
        },
    )
    saved = two.parent / "saved"
    resumed(saved, again, "from PP2 x VPP2")
    chunked |= trained(four, 4, {"DP2": (1, [*SMALL_STEPS, *PP2_VPP2])})
    return one_process, chunked | trained(again, 1, {"from PP2 x VPP2": (1, [*SMALL_STEPS, *ALONE])}), saved


@pytest.mark.parametrize("name", ["dense", "experts"])
def test_an_iteration_is_that_of_one_process(
    name: str, runs: tuple[dict[str, Any], dict[str, Any], Path], demo_model: Path, mixture: Path
) -> None:
    """An iteration of TEMPO: losses, gradient norms, values and log-probs. Idle models of the dense run move to host
    memory. What is exported before the first step is the model that both started from, bit for bit."""
    one_process, chunked, _ = runs
    assert_close(chunked[name], one_process[name], 1e-5)
    source = {"dense": demo_model, "experts": mixture}[name]
    assert_same(chunked[name]["at_start"], load_file(source / "model.safetensors"))


def test_steps_of_several_data_parallel_ranks_are_those_of_one_process(
    runs: tuple[dict[str, Any], dict[str, Any], Path],
) -> None:
    """Several optimizer steps in an iteration, with two data-parallel ranks. Protects from chunks whose updated weights
    are not gathered before their next pass."""
    one_process, chunked, _ = runs
    expected = {part: rows[:1] for part, rows in one_process["two"].items() if part != "at_start"}
    assert_close(chunked["DP2"], expected, 1e-5)


@pytest.mark.parametrize("name", ["from one", "from PP2 x VPP2"])
def test_a_checkpoint_goes_on_with_other_chunks(name: str, runs: tuple[dict[str, Any], dict[str, Any], Path]) -> None:
    """Weights and optimizers saved by one process go on in chunks, and those saved in chunks in one process: the next
    iteration is that of a run which was never interrupted."""
    one_process, chunked, _ = runs
    source = one_process["two"] if name == "from one" else chunked["saved"]
    expected = {part: rows[1:2] for part, rows in one_process["two"].items() if part != "at_start"}
    assert_same(chunked[name]["at_start"], source["after"][0]["weights"])
    assert_close(chunked[name], expected, 1e-5)


def test_a_checkpoint_in_chunks_is_exported_by_the_offline_converter(
    runs: tuple[dict[str, Any], dict[str, Any], Path], tmp_path: Path
) -> None:
    """It writes every layer of every chunk under its own name, bit for bit."""
    _, chunked, saved = runs
    (newest,) = (saved / "checkpoints").iterdir()
    assert main(["to-hf", "--checkpoint", str(newest), "--out", str(tmp_path / "hf")]) == 0
    assert_same(load_file(tmp_path / "hf" / "model.safetensors"), chunked["saved"]["after"][0]["weights"])

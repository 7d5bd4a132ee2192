"""What a model with experts needs, or does not support, is said at start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from checkpoints_convert.__main__ import main as convert_main
from tempo_megatron.cli import main
from tempo_megatron.config import load_config
from tempo_megatron.validation.recipe import recipe_problems
from tests.models import write_model

EP = "parallel.expert_model_parallel_size"
TP = "parallel.tensor_model_parallel_size"
ALONE = (f"{TP}=1", "parallel.processes_per_node=1")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Path:
    """A model with six experts, two for each token."""
    directory = tmp_path_factory.mktemp("mixture") / "model"
    write_model("qwen3-moe", directory)
    for file in demo_model.glob("tokenizer*"):
        shutil.copy(file, directory)
    return directory


def problems_of(recipe: Path, model: Path, *overrides: str) -> str:
    return "\n".join(recipe_problems(load_config(recipe, [f"model.hf_path={model}", *overrides])))


def test_a_model_with_experts_is_accepted(mixture: Path, recipe: Path) -> None:
    """In one process, with its experts over two ranks of data, and over two of tensor and sequence parallelism."""
    for layout in (ALONE, (f"{TP}=1", f"{EP}=2"), (f"{EP}=2", "parallel.sequence_parallel=true")):
        assert problems_of(recipe, mixture, *layout) == ""


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ((f"{EP}=4", "parallel.processes_per_node=4"), f"{EP}: 4 does not divide the model's 6 experts"),
        ((f"{EP}=3", f"{TP}=1"), f"{EP}: 2 processes cannot be cut into PP x EP = 3"),
        ((f"{EP}=2", *ALONE), f"{EP}: 1 processes cannot be cut into PP x EP = 2"),
        ((f"{TP}=2",), "parallel.sequence_parallel: a model with experts needs it"),
        ((*ALONE, "model.fp8=delayed"), "model.fp8: delayed is not supported for a model with experts"),
        ((*ALONE, "model.fp8=tensorwise"), "needs multiples of 16; the model's channels of an expert is 40"),
        ((*ALONE, "generation.precision=fp8"), "generation.precision: fp8 is not supported for a model with experts"),
        ((*ALONE, "numerics=exact"), "supports no experts"),
    ],
)
def test_what_experts_do_not_support_is_refused_by_name(
    overrides: tuple[str, ...], problem: str, mixture: Path, recipe: Path
) -> None:
    """Protects from an assertion of megatron-core once all models are loaded, and from settings without effect."""
    assert problem in problems_of(recipe, mixture, *overrides)


@pytest.mark.parametrize("recipe_name", ["tensorwise", "blockwise"])
def test_experts_multiply_in_fp8_where_the_shape_and_the_machine_allow_it(
    recipe_name: str, mixture: Path, recipe: Path
) -> None:
    """Experts themselves are no reason to refuse. This model's shape and a machine without a GPU are."""
    assert "not supported" not in problems_of(recipe, mixture, *ALONE, f"model.fp8={recipe_name}")


@pytest.mark.parametrize(("dense_layers", "is_named"), [([1], True), ([], False)])
def test_fp8_asks_for_mlps_only_where_a_model_has_them(
    dense_layers: list[int], is_named: bool, demo_model: Path, recipe: Path, tmp_path: Path
) -> None:
    """A model with experts in every layer names channels of an MLP in its config and has no MLP."""
    model = tmp_path / "model"
    write_model("qwen3-moe", model, mlp_only_layers=dense_layers, intermediate_size=40)
    for file in demo_model.glob("tokenizer*"):
        shutil.copy(file, model)
    problems = problems_of(recipe, model, *ALONE, "model.fp8=tensorwise")
    assert "channels of an expert is 40" in problems
    assert ("MLP channels a rank is 40" in problems) == is_named


def test_a_dense_model_has_no_experts_to_share(demo_model: Path, recipe: Path) -> None:
    """The setting would change nothing but the number of process groups."""
    assert f"{EP}: 2, but the model has no experts" in problems_of(recipe, demo_model, f"{EP}=2")


def test_the_plan_refuses_the_same(mixture: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`tempo plan` accepts the layout that `tempo train` accepts, and names what both refuse."""
    plan = ["plan", str(recipe), f"model.hf_path={mixture}", "--gpus-per-node", "2", "model.precision=bf16"]
    assert main([*plan, f"{TP}=1", f"{EP}=2"]) == 0
    assert "| policy | experts | 0.1 |" in capsys.readouterr().out
    assert main([*plan, f"{EP}=5", "model.fp8=delayed"]) == 2
    messages = capsys.readouterr().err
    for part in (f"{EP}: 5 does not divide", "cannot be cut into PP x EP = 5", "model.fp8: ", "sequence_parallel: "):
        assert part in messages


def test_an_evaluation_is_refused_where_no_replica_can_share_an_expert(
    mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model itself is accepted. Protects from an error of the engine after its start."""
    monkeypatch.setenv("TEMPO_CHECKED", "1")
    monkeypatch.setattr("tempo_megatron.evaluation.command.torchrun.launch_ranks", lambda *_: 7)
    (tmp_path / "words.jsonl").write_text(json.dumps({"prompt": "abc", "answer": "a"}) + "\n")
    limits = ["--max-response-tokens", "8", "data.max_prompt_tokens=16"]
    options = ["--data", str(tmp_path / "words.jsonl"), "--out", str(tmp_path / "out"), "--precision", "fp32", *limits]
    assert main(["eval", "--model", str(mixture), *options]) == 7
    copies_kv_heads = ["--processes", "4", "--tensor-parallel", "4"]  # vLLM gives each of two KV heads to two ranks.
    assert main(["eval", "--model", str(mixture), *options, *copies_kv_heads]) == 7
    assert main(["eval", "--model", str(mixture), *options, "--processes", "8", "--tensor-parallel", "16"]) == 2
    assert "16 does not divide the model's 4 attention heads, 40 channels of an expert" in capsys.readouterr().err


def test_verify_refuses_a_layout_that_does_not_divide_the_experts(
    mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reason is one line, before any rank starts."""
    checkpoint = str(tmp_path / "checkpoint")
    assert convert_main(["to-megatron", "--hf", str(mixture), "--out", checkpoint]) == 0
    assert convert_main(["verify", "--hf", str(mixture), "--checkpoint", checkpoint, "--expert-parallel", "4"]) == 2
    assert "expert_model_parallel_size: 4 does not divide the model's 6 experts" in capsys.readouterr().err

"""`tempo plan` prints plans and tables, and names what is wrong in its input."""

from __future__ import annotations

import pytest

from tempo_megatron.cli import main
from tempo_megatron.planning import phases
from tests.unit.planning.test_planning import ROOT


@pytest.mark.parametrize("option", ["--nodes", "--gpus-per-node"])
def test_a_plan_needs_at_least_one_node_and_gpu(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / "recipes" / "qwen3_14b_math.yaml"), option, "0"]) == 2
    assert f"{option}: at least 1, got 0" in capsys.readouterr().err


def test_the_command_prints_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / "recipes" / "qwen3_14b_math.yaml"), "--nodes", "2", "loop.iterations=10"]) == 0
    printed = capsys.readouterr()
    assert "| TP2 (the recipe's own) | " in printed.out.partition("Sizes of the generator")[2]
    assert "2 x 8 GPUs of 80 GB, TP4 DP4" in printed.out and "GPU-hours" in printed.out and not printed.err
    for phase in phases.PHASE_STATE:
        assert f"| {phase} |" in printed.out


def test_the_command_refuses_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    """The command still prints the memory of each phase."""
    assert main(["plan", str(ROOT / "recipes" / "qwen3_14b_math.yaml"), "--gpu-memory", "40"]) == 2
    printed = capsys.readouterr()
    assert "this cannot run" in printed.err and "m_step: " in printed.err and "e_step: " in printed.err
    assert "| m_step |" in printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.hf_path=models/unknown"], "--model names a known shape"),
        (["--nodes", "one"], "--nodes: numbers"),
        (["--uniform-share", "2"], "--uniform-share: from 0 to 1, got 2"),
        (["method=grpo", "policy.learns_from=unlabeled"], "policy.learns_from: unlabeled, but method grpo needs"),
        (["loop.iteratons=3"], "did you mean"),
        (["parallel.tensor_model_parallel_size=0", "model.hf_path=models/unknown"], "at least 1, got 0"),
        (["parallel.tensor_model_parallel_size=0", "model.hf_path=models/unknown"], "--model names a known shape"),
        (["--nodes", "3", "parallel.pipeline_model_parallel_size=5"], "24 GPUs cannot be cut"),
    ],
)
def test_wrong_input_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / "recipes" / "qwen3_14b_math.yaml"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_table_has_a_row_for_each_number_of_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", str(ROOT / "recipes" / "qwen3_8b_math.yaml"), "--nodes", "1,2,4"]
    assert main(arguments) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1].strip() for row in rows] == ["1", "2", "4"]
    assert [row[2].strip() for row in rows] == ["TP2 DP4", "TP2 DP8", "TP2 DP16"]

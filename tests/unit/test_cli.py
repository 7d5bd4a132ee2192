"""The command line: help, usage errors and their exit code, overrides among the options, text for pipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tempo_megatron import cli
from tempo_megatron.evaluation import command
from tempo_megatron.planning import command as planning_command


def test_help_imports_no_heavy_package() -> None:
    """The start of torch and vLLM takes seconds, that of SciPy one."""
    program = (
        "import sys; from tempo_megatron import cli; code = cli.main(['--help']);"
        "sys.exit(code or sum(name in sys.modules for name in ('torch', 'vllm', 'scipy', 'omegaconf', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL).returncode == 0


def test_help_lists_the_commands_by_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    order = ["─ Train", "train", "replay", "launch", "─ Look and prepare", "settings", "plan", "doctor", "data"]
    order += ["─ Results", "eval", "export", "report"]
    positions = [shown.index(f"{name} ") for name in order]
    assert positions == sorted(positions)


def test_a_reader_that_closes_the_pipe_is_no_error() -> None:
    """`tempo settings | head` ends without a traceback."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tempo_megatron.cli", "settings"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "recipe.yaml", "--gpu-memry", "80"], "--gpu-memory"),
        (["trian"], "Did you mean 'train'?"),
        (["data", "chekc"], "Did you mean 'check'?"),
        (["train"], "RECIPE"),
        (["launch", "recipe.yaml", "--executor", "ray"], "'local'"),
        (["launch", "recipe.yaml"], "--executor"),
        (["plan", "recipe.yaml", "--gpus-per-node", "eight"], "--gpus-per-node"),
        (["replay", "run"], "key=value"),
    ],
)
def test_a_usage_error_has_exit_code_2_and_names_the_remedy(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out


def test_overrides_may_stand_among_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, list[str], int]] = []

    def plan(recipe: str, overrides: list[str], options: planning_command.PlanOptions, **_: object) -> int:
        calls.append((recipe, overrides, options.questions))
        return 0

    monkeypatch.setattr(planning_command, "plan_recipe", plan)
    assert cli.main(["plan", "seed=1.yaml", "a.b=1", "--questions", "5", "c=-2", "parts/fp8.yaml"]) == 0
    assert calls == [("seed=1.yaml", ["a.b=1", "c=-2", "parts/fp8.yaml"], 5)]


def test_list_options_take_several_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of `tempo eval` with settings in between. An option that is given again replaces its earlier values."""
    requests = []
    monkeypatch.setattr(command, "evaluate_model", lambda request, arguments: requests.append((request, arguments)))
    line = "eval --k 2 --data a.jsonl seed=3 b.jsonl --model m/n --k 1 8 --processes 2 --top-p 0.5"
    assert cli.main(line.split()) == 0
    request, arguments_of_ranks = requests[0]
    assert request.data == ("a.jsonl", "b.jsonl") and request.model == Path("m/n")
    assert request.protocol.k == (1, 8) and request.protocol.top_p == 0.5 and request.protocol.samples is None
    assert request.overrides == ("seed=3", "parallel.processes_per_node=2")
    assert request.directory.parts[:2] == ("runs", "eval") and arguments_of_ranks == line.split()


def test_a_list_option_needs_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "--data", "--model", "m"]) == 2
    assert "'--data' requires an argument" in capsys.readouterr().err


def test_settings_are_plain_lines_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts look for `key = default`."""
    assert cli.main(["settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "loop.iterations = 100" in lines and "policy.loss = gspo" in lines


def test_settings_are_filtered_by_key_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    """Each text is in the key or in the meaning, whatever its case. A text that nothing contains is an error."""
    assert cli.main(["settings", "RATE", "critic."]) == 0
    lines = capsys.readouterr().out.splitlines()
    keys = [line.split(" = ")[0] for line in lines if not line.startswith(" ")]
    assert "critic.optimizer.learning_rate" in keys and "policy.optimizer.learning_rate" not in keys
    settings = list(zip(lines[::2], lines[1::2], strict=True))
    assert all("critic." in line and "rate" in (line + meaning).lower() for line, meaning in settings)
    assert cli.main(["settings", "Nucleus"]) == 0
    assert "generation.top_p = 1.0" in capsys.readouterr().out.splitlines()
    assert cli.main(["settings", "rate", "nothing-like-it"]) == 2
    printed = capsys.readouterr()
    assert not printed.out and "contains 'rate' and 'nothing-like-it'" in printed.err


def test_tables_are_drawn_at_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert cli.main(["settings"]) == 0
    assert cli.main(["data", "list"]) == 0
    shown = capsys.readouterr().out
    assert "loop: " in shown and "loop.iterations" in shown and "───" in shown and "aime-2024" in shown

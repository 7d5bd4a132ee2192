"""Which checkpoint is a run's result, and how its export takes an earlier one's place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tempo_megatron import cli
from tempo_megatron.config import Config
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.training import export
from tempo_megatron.training.export import export_run, selected_checkpoint, summary
from tempo_megatron.training.phases.select_checkpoint import Selection
from tempo_megatron.training.state import RunState


def write_state(run: Path, iteration: int, best: int | None, name: str = "") -> RunState:
    selection = Selection(best=best, reason=None if best is None else f"why {best}")
    state = RunState(iteration=iteration, selection=selection, initial_evaluation={}, seconds=1.0)
    saved = run / "checkpoints" / (name or f"iteration-{iteration:06d}")
    saved.mkdir(parents=True)
    (saved / "state.json").write_text(json.dumps(state.to_json()))
    return state


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory, and a converter that writes the checkpoint's name."""

    def to_hf(checkpoint: Path, out: Path, role: str) -> None:
        if not checkpoint.exists():
            raise ConversionError(f"{checkpoint}: damaged")
        out.mkdir()
        (out / "model").write_text(f"{role} of {checkpoint.name}")

    monkeypatch.setattr(export, "to_hf", to_hf)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("best", "iteration", "reason"), [(None, 9, "the last one"), (4, 4, "why 4"), (0, 0, "why 0"), (9, 9, "why 9")]
)
def test_the_best_checkpoint_is_exported_where_one_was_chosen_and_else_the_last(
    best: int | None, iteration: int, reason: str, run: Path
) -> None:
    """By what the newest checkpoint says, whatever `loop.iterations` or the link `best` were; the summary says the
    same. What an interruption left, and foreign names, are no result."""
    write_state(run, 0, 0)
    write_state(run, 4, 0)
    state = write_state(run, 9, best)
    write_state(run, 10, 0, "interim-iteration-000010")
    write_state(run, 11, 0, "iteration-000011.bak")
    result = selected_checkpoint(run)
    assert (result.iteration, result.checkpoint.name) == (iteration, f"iteration-{iteration:06d}")
    assert result.reason.startswith(reason)
    assert (export_run(run) / "model").read_text() == f"policy of iteration-{iteration:06d}"
    written_summary = summary(Config(run_dir=str(run), export=False), state)
    assert (written_summary["chosen_iteration"], written_summary["best_iteration"], written_summary["hf_export"]) == (
        iteration,
        best,
        None,
    )


def test_an_export_replaces_an_earlier_one_and_is_noted_in_the_summary(run: Path) -> None:
    """As after `tempo launch`, whose training exports nothing: other figures stay."""
    write_state(run, 2, None)
    (run / "summary.json").write_text(json.dumps({"iterations": 2, "hf_export": None}))
    (run / "hf").mkdir()
    (run / "hf" / "older").touch()
    assert cli.main(["export", str(run)]) == 0
    assert [path.name for path in (run / "hf").iterdir()] == ["model"]
    written_summary = json.loads((run / "summary.json").read_text())
    assert (written_summary["iterations"], written_summary["chosen_iteration"], written_summary["hf_export"]) == (
        2,
        2,
        str(run / "hf"),
    )
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "hf", "summary.json"]


def test_a_failed_export_leaves_the_earlier_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 2, nothing half-written. A directory without a checkpoint is no run to export."""
    assert cli.main(["export", str(run)]) == 2
    assert "no checkpoint of an iteration here" in capsys.readouterr().err
    write_state(run, 2, 1)
    (run / "hf").mkdir()
    assert cli.main(["export", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "iteration-000001: damaged" in line and "an earlier export stays" in line
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "hf"]


def test_a_damaged_state_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy that was cut short, and a state of another version."""
    write_state(run, 3, None)
    for text in ('{"iteration": 3, "cho', '{"iteration": 3}'):
        (run / "checkpoints" / "iteration-000003" / "state.json").write_text(text)
        assert cli.main(["export", str(run)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "iteration-000003: state.json is damaged, or of another version" in line

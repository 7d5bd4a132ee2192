"""`tempo launch` before anything is queued."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from tempo_megatron import cli
from tempo_megatron.launch.experiment import tasks


def test_bad_input_is_refused_at_once(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a job would find hours later in the queue, all of it in one message."""
    given = ["launch", str(recipe), "--executor", "local", "--nodes", "2", "model.hf_path=/nowhere"]
    assert cli.main(given) == 2
    said = capsys.readouterr().err
    assert "model.hf_path: /nowhere is no directory" in said and "--nodes" in said


def test_the_sbatch_text_is_printed(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--dry-run shows every job as it would be submitted, and leaves nothing behind."""
    pytest.importorskip("nemo_run", reason="the extra `launch` is not installed")
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path / "nemo"))
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # NeMo-Run reads it, and pytest does not let it
    options = ["--executor", "slurm", "--nodes", "4", "--account", "acct", "--partition", "gpu", "--time", "2:00:00"]
    assert cli.main(["launch", str(recipe), *options, "--container", "image.sqsh", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert [f"#SBATCH --job-name=tempo-{name}" in said for name in ("convert", "train", "export", "evaluate")] == [
        True
    ] * 4
    assert said.count("#SBATCH --nodes=4") == 1 and said.count("#SBATCH --nodes=1") == 3
    for line in ("--account=acct", "--partition=gpu", "--time=2:00:00", "--kill-on-invalid-dep=yes"):
        assert said.count(f"#SBATCH {line}") == 4
    assert "--container-image image.sqsh" in said and "exec python -m tempo_megatron.cli train" in said
    assert not list((tmp_path / "nemo").rglob("*.sh"))


def test_a_recipe_with_a_start_of_its_own_converts_nothing(recipe: Path) -> None:
    """The best checkpoint is exported where one is chosen; evaluation reads the export."""
    chosen = ["policy.checkpoint=start", "checkpoint.choose=true", "run_dir=runs/x"]
    train, export, evaluate = tasks(str(recipe), chosen, "python")
    assert (train.name, export.name, evaluate.name) == ("train", "export", "evaluate")
    assert train.all_nodes and not export.all_nodes and not evaluate.all_nodes
    assert "run_dir=runs/x export=false" in train.script and "runs/x/start" not in train.script
    assert "--checkpoint runs/x/checkpoints/best --out runs/x/.exporting" in export.script
    assert "--model runs/x/hf" in evaluate.script

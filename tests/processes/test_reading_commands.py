"""Data that cannot be read ends every command with the same line."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tempo_megatron import cli
from tempo_megatron.config import load_config, to_yaml
from tests.unit.data.test_reading import GOOD

LATIN = GOOD + b'{"prompt": "caf\xe9", "answer": "1"}\n'


def test_every_command_that_reads_data_names_file_and_row(
    recipe: Path, demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command exits with code 2, prints one line and writes nothing."""
    bad, good, out = tmp_path / "bad.jsonl", tmp_path / "good.jsonl", tmp_path / "out"
    bad.write_bytes(LATIN)
    good.write_bytes(GOOD)
    run_dir = tmp_path / "run_dir"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(to_yaml(load_config(recipe, [f"data.labeled=[{{path: {bad}}}]"])))
    commands = [
        ["replay", str(run_dir), f"run_dir={tmp_path / 'run'}"],
        ["train", str(recipe), f"data.unlabeled=[{{path: {bad}}}]"],
        ["train", str(recipe), f"data.unlabeled=[{{path: {bad}}}]", "model.hf_path=/nowhere"],
        ["eval", "--model", str(demo_model), "--data", str(bad), "--out", str(out), "--precision", "fp32"],
        ["eval", "--model", str(tmp_path), "--data", str(bad), "--out", str(out), "--precision", "fp32"],
        ["data", "check", "--labeled", str(good), "--held-out", str(bad), "--clean", str(out)],
        ["data", "prepare", "aime-2024", "--from", str(bad), "--out", str(out)],
    ]
    if find_spec("nemo_run"):
        commands.append(["launch", str(recipe), "--executor", "local", f"data.held_out=[{{path: {bad}}}]"])
    for command in commands:
        assert cli.main(command) == 2, command
        message = capsys.readouterr().err
        assert message.count(f"{bad}, line 2: not UTF-8: save the file as UTF-8") == 1 and "Traceback" not in message
        assert not out.exists() and not (tmp_path / "run").exists()

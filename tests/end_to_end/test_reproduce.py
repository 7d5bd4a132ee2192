"""tools/reproduce.py from the warm start to tables and figures, on the real stack, with a run that is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import reproduce
import yaml
from comparison import runs
from comparison.studies import STUDIES, TEMPO, Study
from make_miniature import RECIPES

from tests.end_to_end.test_train import metrics
from tests.warm.start import warm_python

LIMIT = 300
SMALL = ("evaluation.samples=2", "evaluation.final_samples=2", "evaluation.k=2", "loop.labeled_prompts=8")
START = ("stages.warm_start.steps=2", "stages.critic_start.iterations=0", "loop.iterations=1", "checkpoint.every=1")
LOOP = ("loop.unlabeled_prompts=8", "loop.iterations=2", "checkpoint.every=1", "generation.kv_cache_gib=0.05")
QUESTIONS = {
    name: {"seed": seed, "size": size, "lengths": {3: 1}}
    for seed, (name, size) in enumerate(
        {"labeled": 64, "unlabeled": 4, "held_out": 3, "familiar": 3, "warm_start": 300}.items()
    )
}


def killed_after_an_iteration(command: list[str], run: Path, **settings: Any) -> subprocess.CompletedProcess[bytes]:
    """Start the command, and kill all of its processes once the run has a checkpoint of iteration 1."""
    process = subprocess.Popen(command, **settings)
    end = time.monotonic() + LIMIT
    checkpoint = run / "checkpoints" / "iteration-000001"
    while not checkpoint.is_dir() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    setting = f"run_dir={run}"  # in the command lines of the launcher and of each rank
    members = [member for member in psutil.process_iter(["cmdline"]) if setting in (member.info["cmdline"] or ())]
    for member in members:
        member.kill()
    psutil.wait_procs([member for member in members if member.pid != process.pid], timeout=10)
    return subprocess.CompletedProcess(command, process.wait())


def test_a_study_resumes_a_killed_run_and_ends_with_tables_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_torchrun: None
) -> None:
    """The start is trained once. The killed run goes on from its checkpoint, and each iteration is logged once."""
    recipes, directory = tmp_path / "recipes", tmp_path / "study"
    shutil.copytree(RECIPES, recipes)
    (recipes / "questions.yaml").write_text(yaml.safe_dump(QUESTIONS))
    monkeypatch.setitem(STUDIES, "methods", Study("Does it resume?", TEMPO))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = ["reproduce.py", str(directory), "--seeds", "5", "--recipes", str(recipes)]
    arguments += ["--start", *SMALL, *START, "--loop", *SMALL, *LOOP]
    tempo, start, train = directory / "tempo-5", directory / "start-5", subprocess.run
    warm = warm_python()

    def run(command: list[str], **settings: Any) -> subprocess.CompletedProcess[bytes]:
        command = [*warm, *command[1:]]  # command[0] is Python
        if f"run_dir={tempo}" in command and not (tempo / "checkpoints").exists():
            return killed_after_an_iteration(command, tempo, **settings)
        return train(command, **settings)

    monkeypatch.setattr(runs.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", arguments)
    assert reproduce.main() == reproduce.FAILED
    assert not (tempo / "summary.json").exists() and not (directory / "methods.md").exists()
    trained = os.stat(start / "summary.json").st_mtime_ns
    monkeypatch.setattr(sys, "argv", [*arguments, "--resume"])
    assert reproduce.main() == 0
    assert os.stat(start / "summary.json").st_mtime_ns == trained
    assert [row["iteration"] for row in metrics(tempo) if row["stage"] == "train"] == [0, 1, 2]
    initial, *_, final = sorted((tempo / "samples").glob("iteration-*.jsonl"))
    starts_end = sorted((start / "samples").glob("iteration-*.jsonl"))[-1]
    assert initial.read_text() == starts_end.read_text() != final.read_text()
    results = json.loads((directory / "methods.json").read_text())
    assert results["tempo"].keys() == {"unlabeled", "held_out", "familiar"}
    assert len(results["tempo"]["unlabeled"]["avg@2"]["gain"]["seeds"]) == 1
    assert len(list((directory / "figures" / "methods").glob("*.png"))) == 4

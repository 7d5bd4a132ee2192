"""The commands of the sbatch scripts, with shell scripts in the place of Slurm's programs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tempo_megatron import planning
from tempo_megatron.config import load
from tests.conftest import ROOT

SCRIPTS = {"tempo_14b.sh": "qwen3_14b", "tempo_8b.sh": "qwen3_8b", "tempo_olmo3_7b.sh": "olmo3_7b"}


def commands(script: str, directory: Path, *settings: str, **environment: str) -> list[str]:
    """The lines that a job's `srun` is called with."""
    summary = 'for word; do [[ $word != run_dir=* ]] || touch "${word#run_dir=}/summary.json"; done'
    srun = f'echo "$@" >> {directory}/called; {summary}'
    for name, text in {"srun": srun, "squeue": "echo", "scontrol": "echo node1"}.items():
        program = directory / name
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "tempo", "SLURM_NTASKS": "8"}
    job |= {"SLURM_JOB_NODELIST": "node1", "SLURM_NNODES": "1", "TEMPO_OUTPUT": str(directory / "runs")}
    subprocess.run(
        ["bash", ROOT / "slurm" / script, *settings],
        env={**os.environ, **job, **environment, "PATH": f"{directory}:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
        timeout=30,
    )
    return (directory / "called").read_text().splitlines()


@pytest.mark.parametrize(("script", "recipes"), SCRIPTS.items())
def test_both_runs_of_a_model(script: str, recipes: str, tmp_path: Path) -> None:
    """TEMPO starts from the best checkpoint of the run before it, with the model, data and settings that were given."""
    first, second = commands(script, tmp_path, "loop.iterations=3", TEMPO_MODEL="/models/m", TEMPO_DATA="/data")
    best = f"{tmp_path}/runs/rlvr/checkpoints/best"
    assert f"train recipes/{recipes}_math_rlvr.yaml run_dir={tmp_path}/runs/rlvr model.hf_path=/models/m" in first
    assert f"train recipes/{recipes}_math.yaml run_dir={tmp_path}/runs/tempo model.hf_path=/models/m" in second
    assert f"policy.checkpoint={best} critic.checkpoint={best} loop.iterations=3" in second
    assert "--container" not in first
    assert all((tmp_path / "runs" / name / "FINISHED").is_file() for name in ("rlvr", "tempo"))


@pytest.mark.parametrize(("script", "recipes"), SCRIPTS.items())
def test_a_script_asks_for_what_its_recipes_need(script: str, recipes: str) -> None:
    """One node by default, a task and a GPU a rank, and by `tempo plan` everything fits."""
    asked = {
        key.removeprefix("#SBATCH --"): value
        for line in (ROOT / "slurm" / script).read_text().splitlines()
        for key, found, value in [line.partition("=")]
        if found
    }
    for name in (f"{recipes}_math_rlvr", f"{recipes}_math"):
        config = load(ROOT / "recipes" / f"{name}.yaml")
        assert asked["ntasks-per-node"] == asked["gpus-per-node"] == str(config.parallel.processes_per_node)
        assert planning.check(config, nodes=int(asked["nodes"]), gpus_per_node=int(asked["gpus-per-node"])) == []


def test_a_container_sees_what_a_run_reads_and_writes(tmp_path: Path) -> None:
    """pyxis's options, which plain Slurm refuses, are there with an image alone; paths are the same inside."""
    given = {"TEMPO_CONTAINER": "image.sqsh", "TEMPO_MODEL": "/models/m", "TEMPO_DATA": "/data"}
    first, _ = commands("tempo_14b.sh", tmp_path, **given)
    assert f"--container-image=image.sqsh --container-workdir={ROOT} --container-mounts={ROOT}:{ROOT}," in first
    assert f",/models/m:/models/m,/data:/data,{tmp_path}/runs:{tmp_path}/runs " in first


def test_recipes_read_the_directory_of_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """TEMPO_DATA of the scripts reaches every source."""
    monkeypatch.setenv("TEMPO_DATA", "/elsewhere")
    for recipe in ("qwen3_14b_math", "qwen3_14b_general"):
        data = load(ROOT / "recipes" / f"{recipe}.yaml").data
        assert all(
            source.path.startswith("/elsewhere/") for source in [*data.labelled, *data.unlabelled, *data.held_out]
        )

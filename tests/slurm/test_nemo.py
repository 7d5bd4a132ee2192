"""A recipe's four tasks as a NeMo-Run experiment on the two-node cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tempo_megatron.launch.experiment import tasks
from tests.conftest import ROOT
from tests.slurm.cluster import LIMIT, Cluster
from tests.warm.start import warm_shell

RECIPE = str(ROOT / "recipes" / "qwen3_14b_math.yaml")


@pytest.fixture(scope="module")
def nemo(cluster: Cluster, nemo_home: Path) -> Iterator[Any]:
    """The module that submits to the cluster."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PATH", "SLURM_CONF"):
            patch.setenv(name, cluster.environment[name])
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("TEMPO_DATA", str(ROOT / "tests" / "fixtures" / "words"))
        patch.chdir(ROOT)
        from tempo_megatron.launch import nemo

        yield nemo


def submit(nemo: Any, python: Path, *overrides: str) -> dict[str, int]:
    """The job of each task; two pipeline stages, a node each."""
    settings = ["tests/slurm/tiny.yaml", "policy.checkpoint=''", "parallel.tensor_model_parallel_size=1", *overrides]
    steps = tasks(RECIPE, settings, str(python))
    (run,) = [value for key, _, value in (setting.partition("=") for setting in settings) if key == "run_dir"]
    experiment = nemo.on_slurm("tiny", steps, nemo.Cluster(nodes=2, tasks_per_node=1, gpus_per_node=1), Path(run))
    return {name: int(job) for name, job in nemo.submit(experiment).items()}


def stand_in(directory: Path, text: str) -> Path:
    """A program in the place of Python."""
    program = directory / "python"
    program.write_text(f"#!/bin/bash\n{text}\n")
    program.chmod(0o755)
    return program


def test_four_tasks_end_with_an_evaluated_model(nemo: Any, cluster: Cluster, tmp_path: Path, demo_model: Path) -> None:
    """Convert, train on two nodes with recorded responses, export, evaluate with vLLM: each task uses the result of the
    one before."""
    run = tmp_path / "run"
    python = stand_in(
        tmp_path,
        f'[ "$3" = train ] || {warm_shell()} "$@"\nshift 2\n{warm_shell()} -m tests.slurm.trainer "$@"',
    )
    settings = ("critic.checkpoint=''", "loop.iterations=1", "parallel.processes_per_node=1", "evaluation.samples=2")
    jobs = submit(nemo, python, f"run_dir={run}", f"model.hf_path={demo_model}", *settings)
    assert list(jobs) == ["convert", "train", "export", "evaluate"]
    states = {name: cluster.wait(job, LIMIT) for name, job in jobs.items()}
    assert states == dict.fromkeys(jobs, "COMPLETED"), output_of_jobs(cluster, jobs)
    assert "TP 1 x CP 1 x PP 2 x DP 1" in output_of_jobs(cluster, jobs)
    assert AutoModelForCausalLM.from_pretrained(run / "hf").num_parameters() > 0
    assert json.loads((run / "evaluation" / "results.json").read_text())


def test_a_training_that_fails_cancels_what_follows(
    nemo: Any, cluster: Cluster, tmp_path: Path, demo_model: Path
) -> None:
    """Nothing is exported or evaluated from a run that did not reach its end."""
    python = stand_in(tmp_path, '[ "$3" != train ]')
    jobs = submit(nemo, python, f"run_dir={tmp_path / 'run'}", f"model.hf_path={demo_model}", "critic.checkpoint=''")
    states = {name: cluster.wait(job, LIMIT) for name, job in jobs.items()}
    expected = {"convert": "COMPLETED", "train": "FAILED", "export": "CANCELLED", "evaluate": "CANCELLED"}
    assert states == expected, output_of_jobs(cluster, jobs)


def test_an_interrupted_training_is_requeued(nemo: Any, cluster: Cluster, tmp_path: Path, demo_model: Path) -> None:
    """Exit code 75 means "saved, start me again". A signal that comes before the ranks listen for it costs no run
    either. The tasks that follow wait."""
    attempts = "case ${SLURM_RESTART_COUNT:-0} in 0) exit 75 ;; 1) kill -USR1 $$ ;; esac"
    python = stand_in(tmp_path, f'[ "$3" != train ] && exit\n{attempts}')
    jobs = submit(nemo, python, f"run_dir={tmp_path / 'run'}", f"model.hf_path={demo_model}", "critic.checkpoint=''")
    states = {name: cluster.wait(job, LIMIT) for name, job in jobs.items()}
    assert states == dict.fromkeys(jobs, "COMPLETED"), output_of_jobs(cluster, jobs)
    assert cluster.restarts(jobs["train"]) == 2


def output_of_jobs(cluster: Cluster, jobs: dict[str, int]) -> str:
    """All that the tasks' jobs and ranks wrote."""
    directories = [Path(cluster.job(job)["StdOut"]).parent for job in jobs.values()]
    return "\n".join(f"{path}\n{path.read_text()}" for folder in directories for path in folder.glob("*.out"))

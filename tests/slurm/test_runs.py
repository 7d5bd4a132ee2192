"""Training by slurm/tempo_14b.sh on two nodes: a small model, TP 2 x PP 2, in the place of the large one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoints_convert.convert import to_hf
from tests.conftest import ROOT
from tests.slurm.cluster import LIMIT, Cluster, wait_for
from tests.warm.start import warm_shell

TWO_NODES = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2")
ONE_NODE = ("--nodes=1", "--ntasks-per-node=4", "--gpus-per-node=4")
FROM_THE_MODEL = ("policy.checkpoint=''", "critic.checkpoint=''")
CHOICE = (
    "checkpoint.select_best=true",
    "checkpoint.selection_prompts=2",
    "checkpoint.selection_samples=2",
    "calibration.questions=2",
)
UNREPEATABLE = ("seconds/", "memory/")
WORDS = ROOT / "tests" / "fixtures" / "words"


class Training:
    """Jobs of tempo_14b.sh with one output directory. With `tempo_alone` the first run counts as finished, and the
    second starts from the model."""

    def __init__(
        self, cluster: Cluster, directory: Path, model: Path, venv: Path, *, tempo_alone: bool = False
    ) -> None:
        self.cluster = cluster
        self.run = directory / "tempo"
        self.output = directory / "job.log"
        self._environment = {"TEMPO_MODEL": model, "TEMPO_OUTPUT": directory, "TEMPO_VENV": venv, "TEMPO_DATA": WORDS}
        directory.mkdir()
        self._always: tuple[str, ...] = ()
        if tempo_alone:
            (directory / "rlvr").mkdir()
            (directory / "rlvr" / "FINISHED").touch()
            self._always = FROM_THE_MODEL

    def submit(self, *settings: str, options: tuple[str, ...] = TWO_NODES) -> int:
        overlay = "tests/slurm/tiny.yaml"
        script = (f"--output={self.output}", "slurm/tempo_14b.sh", overlay, *self._always, *settings)
        return self.cluster.sbatch(*options, *script, cwd=ROOT, PYTHONPATH=ROOT, **self._environment)

    def wait(self, job: int) -> str:
        """The state in which the job ended."""
        return self.cluster.wait(job, LIMIT)

    def rows(self) -> list[dict[str, Any]]:
        """The run's metrics without those that differ from run to run."""
        lines = (self.run / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if not k.startswith(UNREPEATABLE)} for line in lines]

    def iteration(self) -> int:
        """The iteration of the newest complete checkpoint; -1 without one."""
        saved_states = self.run.glob("checkpoints/iteration-*/state.json")
        return max((int(path.parent.name.removeprefix("iteration-")) for path in saved_states), default=-1)

    def wait_for_progress(self, job: int, attempt: int) -> None:
        """Wait until this attempt of a job has written a checkpoint. The attempt before it may still be ending."""
        wait_for((self.run / "logs" / str(job) / f"attempt-{attempt}").is_dir, LIMIT, self.everything_said)
        newest = self.iteration()

        def has_progressed() -> bool:
            assert self.cluster.state(job) == "RUNNING", self.everything_said()
            return self.iteration() > newest

        wait_for(has_progressed, LIMIT, self.everything_said)

    def everything_said(self) -> str:
        logs = sorted(self.run.parent.glob("*/logs/latest/rank-*.log"))
        return "\n".join(f"{path}\n{path.read_text()[-3000:]}" for path in [self.output, *logs])


@pytest.fixture(scope="module")
def quick_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands in the place of the virtual environment: its Python trains with recorded responses and starts at once."""
    # The scripts call `python -m tempo_megatron.cli ...`.
    return write_venv(tmp_path_factory, f'shift 2\n{warm_shell()} -m tests.slurm.trainer "$@"')


@pytest.fixture(scope="module")
def half_warm_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The virtual environment. Only in RLVR, the first run, does a rank of each node import everything itself."""
    text = f'case "$SLURM_LOCALID $*" in "0 "*run_dir=*"/rlvr "*) exec {sys.executable} "$@" ;; esac\n'
    text += f'{warm_shell()} "$@"'
    return write_venv(tmp_path_factory, text)


def write_venv(tmp_path_factory: pytest.TempPathFactory, text: str) -> Path:
    """A directory whose bin/python runs lines of bash."""
    python = tmp_path_factory.mktemp("venv") / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/bash\n{text}\n")
    python.chmod(0o755)
    return python.parents[1]


def kill_rank(job: int, rank: int) -> None:
    """Send SIGKILL to one rank of a job, on whichever node it runs."""
    for process in psutil.process_iter():
        try:
            environment, parent = process.environ(), process.parent()
        except psutil.Error:
            continue
        place = (environment.get("SLURM_JOB_ID"), environment.get("SLURM_PROCID"))
        if place == (str(job), str(rank)) and parent and parent.name() == "slurmstepd":
            process.kill()
            return
    raise AssertionError(f"no rank {rank} of job {job}")


def test_two_nodes_train_to_a_hugging_face_directory(
    cluster: Cluster, tmp_path: Path, demo_model: Path, half_warm_venv: Path
) -> None:
    """`sbatch slurm/tempo_14b.sh` starts the whole stack, vLLM included. RLVR trains policy and critic, and TEMPO goes
    on from the best checkpoint of both."""
    training = Training(cluster, tmp_path / "runs", demo_model, half_warm_venv)
    job = training.submit("loop.iterations=1", "stages.warm_start.steps=0", *CHOICE)
    assert training.wait(job) == "COMPLETED", training.everything_said()
    assert "TP 2 x CP 1 x PP 2 x DP 1" in (training.run / "logs" / "latest" / "rank-000.log").read_text()
    model = AutoModelForCausalLM.from_pretrained(training.run / "hf")
    tokenizer = AutoTokenizer.from_pretrained(training.run / "hf")
    rlvr = AutoModelForCausalLM.from_pretrained(training.run.parent / "rlvr" / "hf")
    start = AutoModelForCausalLM.from_pretrained(demo_model)
    assert tokenizer.decode(tokenizer.encode("abc")) == "abc"
    # What is exported is the best, which may be the start: what was trained is in the last checkpoint.
    for run, before in ((training.run.parent / "rlvr", start), (training.run, rlvr)):
        to_hf(max((run / "checkpoints").glob("iteration-*")), tmp_path / run.name, role="policy")
        trained = AutoModelForCausalLM.from_pretrained(tmp_path / run.name)
        assert not torch.equal(trained.lm_head.weight, before.lm_head.weight)
    assert model.config.vocab_size == start.config.vocab_size
    best = str(training.run.parent / "rlvr" / "checkpoints" / "best")
    config = yaml.safe_load((training.run / "config.yaml").read_text())
    assert (config["policy"]["checkpoint"], config["critic"]["checkpoint"]) == (best, best)


def test_what_interrupts_a_run_leaves_no_trace(
    cluster: Cluster, tmp_path: Path, demo_model: Path, quick_venv: Path
) -> None:
    """A run is preempted twice, loses a node, has a rank killed, and ends on half of its nodes. Its metrics are those
    of an undisturbed run. The killed rank ends the job within a minute, and the log names it."""
    training = Training(cluster, tmp_path / "interrupted", demo_model, quick_venv, tempo_alone=True)
    job = training.submit("loop.iterations=1000")
    for attempt in (0, 1):
        training.wait_for_progress(job, attempt)
        cluster.run("scancel", "--batch", "--signal=USR1", job)
    training.wait_for_progress(job, 2)
    assert training.output.read_text().count("interrupted and saved") == 2, training.everything_said()

    cluster.run("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    training.wait_for_progress(job, 3)
    kill_rank(job, 1)
    assert cluster.wait(job, 60) == "FAILED"
    assert "rank 1 failed first" in training.output.read_text() and cluster.restarts(job) == 3

    end = f"loop.iterations={training.iteration() + 2}"
    assert training.wait(training.submit(end, options=ONE_NODE)) == "COMPLETED", training.everything_said()

    uninterrupted = Training(cluster, tmp_path / "whole", demo_model, quick_venv, tempo_alone=True)
    assert uninterrupted.wait(uninterrupted.submit(end)) == "COMPLETED", uninterrupted.everything_said()
    assert training.rows() == uninterrupted.rows()

"""NeMo-Run: a recipe's tasks as one experiment, on this machine or on a Slurm cluster."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nemo_run

from tempo_megatron.launch.experiment import Task
from tempo_megatron.launch.torchrun import ENVIRONMENT

_SETUP = r"""
# NeMo-Run would requeue after every failure or after none. This is after "interrupted and saved", where SIGUSR1 or
# SIGTERM came before the ranks listened for it, and, of the first attempts, where nodes cannot train and Slurm may give
# others; unless the job was cancelled.
requeue_if_it_helps() {
    local most=50
    case $1 in 75 | 138 | 143) ;; 69) most=3 ;; *) return ;; esac
    [ "${SLURM_RESTART_COUNT:-0}" -lt "$most" ] || return
    [ "$(squeue --noheader --job "$SLURM_JOB_ID" --format %T)" != RUNNING ] || scontrol requeue "$SLURM_JOB_ID"
}
trap 'requeue_if_it_helps $?' EXIT
export TEMPO_NODES="${nodes[*]}"
end="$(squeue --noheader --job "$SLURM_JOB_ID" --format %e)"
[ -z "$end" ] || export TEMPO_DEADLINE="$(date --date "$end" +%s)"
"""


@dataclass(frozen=True)
class Cluster:
    """What is asked of Slurm for each task."""

    nodes: int = 1
    """of the training task; the others take one"""
    tasks_per_node: int = 8
    """ranks of the training task on a node: one a GPU"""
    gpus_per_node: int = 8
    account: str | None = None
    partition: str | None = None
    time: str = "24:00:00"
    """limit of a task, as Slurm writes it"""
    lead: int = 600
    """seconds before the limit at which ranks are told to save"""
    container: str | None = None
    """image to run in, by pyxis"""
    mounts: tuple[Path, ...] = ()
    """directories that tasks see in the image beside the present one, at the same paths"""


def on_slurm(title: str, tasks: Sequence[Task], cluster: Cluster) -> nemo_run.Experiment:
    """The experiment, each task waiting for the one before; when one fails, Slurm cancels those that wait for it."""
    return _experiment(title, tasks, [_slurm(task, cluster) for task in tasks], [task.script for task in tasks])


def submit(experiment: nemo_run.Experiment) -> dict[str, str]:
    """Submit every task of an experiment of `on_slurm` at once; returns the number of each one's job."""
    with experiment:
        experiment.run(detach=True)
    return {job.id: job.handle.partition("://")[2].split("/")[1] for job in experiment.jobs}


def written(experiment: nemo_run.Experiment) -> dict[str, str]:
    """The text of each task's sbatch script, followed by what it runs. Nothing is submitted or left behind."""
    with experiment:
        experiment.dryrun(log=False, delete_exp_dir=False)
    texts = {}
    for job in experiment.jobs:
        directory = Path(job.executor.experiment_dir)
        batch = (directory / f"{job.executor.job_name}_sbatch.sh").read_text()
        texts[job.id] = batch + f"\n# scripts/{job.id}.sh\n{job.task.inline}\n"
    shutil.rmtree(directory)
    return texts


def run_here(title: str, tasks: Sequence[Task]) -> bool:
    """Run the tasks one after the other on this machine; whether all succeeded. The first failure is the last to start.

    NeMo-Run's LocalExecutor goes on after a failure, hence the marks that tasks leave for their successors.
    """
    with tempfile.TemporaryDirectory(prefix="tempo-launch-") as directory:
        marks = [Path(directory, task.name) for task in tasks]
        scripts = [
            _after(before, f"(\n{task.script}\n) && touch {mark}")
            for before, task, mark in zip([None, *marks], tasks, marks, strict=False)
        ]
        with _experiment(title, tasks, [nemo_run.LocalExecutor() for _ in tasks], scripts) as experiment:
            experiment.run(tail_logs=True)
        return marks[-1].exists()


def _after(mark: Path | None, script: str) -> str:
    if mark is None:
        return script
    return f'[ -e {mark} ] || {{ echo "not started: {mark.name} failed"; exit 1; }}\n{script}'


def _experiment(
    title: str, tasks: Sequence[Task], executors: Sequence[nemo_run.Executor], scripts: Sequence[str]
) -> nemo_run.Experiment:
    experiment = nemo_run.Experiment(title, skip_status_at_exit=True)
    with experiment:
        before: list[str] = []
        for task, executor, script in zip(tasks, executors, scripts, strict=True):
            inline = f"cd {shlex.quote(os.getcwd())} || exit 1\n{script}"
            made = nemo_run.Script(inline=inline)
            before = [experiment.add(made, executor=executor, name=task.name, dependencies=before)]
    return experiment


def _slurm(task: Task, cluster: Cluster) -> nemo_run.SlurmExecutor:
    mounts = [f"{directory.absolute()}:{directory.absolute()}" for directory in (Path(), *cluster.mounts)]
    return nemo_run.SlurmExecutor(
        account=cluster.account,
        partition=cluster.partition,
        job_name_prefix="tempo-",
        time=cluster.time,
        nodes=cluster.nodes if task.all_nodes else 1,
        ntasks_per_node=cluster.tasks_per_node if task.all_nodes else 1,
        gpus_per_node=cluster.gpus_per_node or None,
        exclusive=True,
        mem="0",
        signal=f"USR1@{cluster.lead}" if task.all_nodes else None,
        container_image=cluster.container,
        container_mounts=mounts if cluster.container else [],
        # Not as NeMo-Run has it: srun would end ranks that still save, and hide that others have.
        srun_args=["--cpu-bind=none", "--kill-on-bad-exit=0"],
        env_vars=dict(ENVIRONMENT),
        setup_lines=_SETUP,
        additional_parameters={"kill_on_invalid_dep": "yes"},
        tunnel=nemo_run.LocalTunnel(job_dir=""),
        packager=nemo_run.Packager(),
        poll_estimated_start_time=False,
    )

"""NeMo-Run: a recipe's tasks as one experiment, on this machine or on a Slurm cluster."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nemo_run
from invoke.exceptions import UnexpectedExit
from nemo_run.config import get_nemorun_home

from tempo_megatron.launch.experiment import LaunchTask
from tempo_megatron.launch.job import JOB, RANKS
from tempo_megatron.launch.torchrun import ENVIRONMENT

_REQUEUE = r"""
# NeMo-Run would requeue after every failure or after none. This is after "interrupted and saved", where SIGUSR1 or
# SIGTERM came before the ranks listened for it, and where nodes cannot train and Slurm may give others. It has an end,
# early where nothing was saved, unless Slurm took the nodes away.
requeue_if_it_helps() {
    case $1 in 69 | 75 | 138 | 143) ;; *) return ;; esac
    [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ] || return
    if [ "$1" != 143 ] && ! grep -qs SIGTERM "$run/interrupted"; then
        [ "$(attempts_in_vain "$run")" -le "$MOST_IN_VAIN" ] || return
    fi
    requeue_job "$run"
}
begin_attempt "$run"
trap 'requeue_if_it_helps $?' EXIT
export TEMPO_NODES="$(ask scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd' ' -)" TEMPO_DEADLINE="$(deadline)"
"""


def setup(run: Path) -> str:
    """The lines of bash that a job of a run's experiment begins with."""
    return f"{JOB.read_text()}\nrun={shlex.quote(str(run.absolute()))}\n{_REQUEUE}"


class LaunchError(RuntimeError):
    """NeMo-Run or sbatch refused a task: nothing is queued, and nothing is left of the experiment."""


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
    mounts: tuple[str, ...] = ()
    """what tasks see in the image, HERE:THERE each"""


def on_slurm(title: str, tasks: Sequence[LaunchTask], cluster: Cluster, run: Path) -> nemo_run.Experiment:
    """The experiment of a run, each task waiting for the one before; when one fails, Slurm cancels those that wait for
    it. Raises LaunchError."""
    executors = [_slurm(task, cluster, run) for task in tasks]
    with _refusals():
        return _experiment(title, tasks, executors, [task.script for task in tasks])


def submit(experiment: nemo_run.Experiment) -> dict[str, str]:
    """Submit every task of an experiment of `on_slurm` at once; returns the number of each one's job.

    Raises LaunchError when a task is refused; those that are queued by then are canceled.
    """
    submitted = Path(get_nemorun_home(), ".slurm_jobs")
    is_first = not submitted.exists()
    try:
        with _refusals() as printed, experiment:
            experiment.run(detach=True)
    except LaunchError:
        for number in _numbers(experiment).values():
            subprocess.run(["scancel", number], check=False)
        shutil.rmtree(experiment._exp_dir, ignore_errors=True)
        if is_first:
            submitted.unlink(missing_ok=True)
        raise
    print(printed.getvalue(), end="")
    return _numbers(experiment)


def _numbers(experiment: nemo_run.Experiment) -> dict[str, str]:
    """The jobs of the tasks that are queued."""
    return {job.id: job.handle.partition("://")[2].split("/")[1] for job in experiment.jobs if job.handle}


@contextlib.contextmanager
def _refusals() -> Iterator[io.StringIO]:
    """Gives what NeMo-Run prints, where a refusal would be lost. What it raises becomes a LaunchError of one line."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield printed
    except UnexpectedExit as error:
        said = [line.removeprefix("sbatch: error: ") for line in error.result.stderr.splitlines() if line]
        raise LaunchError("sbatch refuses the job: " + "; ".join(said)) from error
    except Exception as error:  # NeMo-Run has no class of its own for what it refuses
        raise LaunchError(f"NeMo-Run refuses the job: {' '.join(str(error).split())}") from error


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


def run_here(title: str, tasks: Sequence[LaunchTask]) -> bool:
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
    title: str, tasks: Sequence[LaunchTask], executors: Sequence[nemo_run.Executor], scripts: Sequence[str]
) -> nemo_run.Experiment:
    experiment = nemo_run.Experiment(title, skip_status_at_exit=True)
    with experiment:
        before: list[str] = []
        for task, executor, script in zip(tasks, executors, scripts, strict=True):
            inline = f"cd {shlex.quote(os.getcwd())} || exit 1\n{script}"
            made = nemo_run.Script(inline=inline)
            before = [experiment.add(made, executor=executor, name=task.name, dependencies=before)]
    return experiment


def _slurm(task: LaunchTask, cluster: Cluster, run: Path) -> nemo_run.SlurmExecutor:
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
        container_mounts=list(cluster.mounts),
        # Not as NeMo-Run has it: srun would end ranks that still save, and hide that others have.
        srun_args=[*RANKS, "--kill-on-bad-exit=0"],
        env_vars=dict(ENVIRONMENT),
        setup_lines=setup(run),
        additional_parameters={"kill_on_invalid_dep": "yes"},
        tunnel=nemo_run.LocalTunnel(job_dir=""),
        packager=nemo_run.Packager(),
        poll_estimated_start_time=False,
    )

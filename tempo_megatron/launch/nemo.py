"""Runs a recipe's tasks as one NeMo-Run experiment, on this machine or on a Slurm cluster."""

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
from tempo_megatron.launch.job import JOB_SCRIPT, SRUN_RANK_OPTIONS

_REQUEUE = r"""
# NeMo-Run requeues after every failure or after none. This requeues after "interrupted and saved" (75), after SIGUSR1
# or SIGTERM before the ranks listened (138, 143), and if nodes cannot train (69), since Slurm may give others. It gives
# up after 50 restarts, or after a few attempts that saved nothing, unless Slurm took the nodes away.
requeue_if_it_helps() {
    case $1 in 69 | 75 | 138 | 143) ;; *) return ;; esac
    [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ] || return
    if [ "$1" != 143 ] && ! grep -qs SIGTERM "$run/interrupted"; then
        [ "$(attempts_without_save "$run")" -le "$MAX_WITHOUT_SAVE" ] || return
    fi
    requeue_job "$run"
}
begin_attempt "$run"
trap 'requeue_if_it_helps $?' EXIT
export TEMPO_NODES="$(ask scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd' ' -)" TEMPO_DEADLINE="$(deadline)"
"""


def setup_lines(run: Path) -> str:
    """Return the bash lines with which each job of a run begins."""
    return f"{JOB_SCRIPT.read_text()}\nrun={shlex.quote(str(run.absolute()))}\n{_REQUEUE}"


class LaunchError(RuntimeError):
    """NeMo-Run or sbatch refused a task. Nothing is queued, and no files of the experiment remain."""


@dataclass(frozen=True)
class Cluster:
    """The resources of each task."""

    nodes: int = 1
    """The nodes of the training task. Other tasks take one."""
    tasks_per_node: int = 8
    """The ranks of the training task on a node, one per GPU."""
    gpus_per_node: int = 8
    account: str | None = None
    partition: str | None = None
    time: str = "24:00:00"
    """The time limit of a task in Slurm's format."""
    lead: int = 600
    """The seconds before the time limit at which Slurm signals the ranks to save."""
    container: str | None = None
    """The image that tasks run in, by pyxis."""
    mounts: tuple[str, ...] = ()
    """The mounts of the image, each as HOST_PATH:IMAGE_PATH."""


def slurm_experiment(title: str, tasks: Sequence[LaunchTask], cluster: Cluster, run: Path) -> nemo_run.Experiment:
    """Return the experiment of a run, in which each task waits for the one before.

    If a task fails, Slurm cancels those that wait for it. Raises LaunchError.
    """
    executors = [_slurm_executor(task, cluster, run) for task in tasks]
    with _catch_refusals():
        return _experiment(title, tasks, executors, [task.script for task in tasks])


def submit(experiment: nemo_run.Experiment) -> dict[str, str]:
    """Submit all tasks of a `slurm_experiment`. Returns the job number of each task.

    Raises LaunchError if a task is refused, after canceling the tasks that are already queued.
    """
    jobs_file = Path(get_nemorun_home(), ".slurm_jobs")
    is_first = not jobs_file.exists()
    try:
        with _catch_refusals() as printed, experiment:
            experiment.run(detach=True)
    except LaunchError:
        for number in _job_numbers(experiment).values():
            subprocess.run(["scancel", number], check=False)
        shutil.rmtree(experiment._exp_dir, ignore_errors=True)
        if is_first:
            jobs_file.unlink(missing_ok=True)
        raise
    print(printed.getvalue(), end="")
    return _job_numbers(experiment)


def _job_numbers(experiment: nemo_run.Experiment) -> dict[str, str]:
    """Return the job numbers of the tasks that are queued."""
    return {job.id: job.handle.partition("://")[2].split("/")[1] for job in experiment.jobs if job.handle}


@contextlib.contextmanager
def _catch_refusals() -> Iterator[io.StringIO]:
    """Capture what NeMo-Run prints, and turn its exceptions into a LaunchError of one line."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield printed
    except UnexpectedExit as error:
        lines = [line.removeprefix("sbatch: error: ") for line in error.result.stderr.splitlines() if line]
        raise LaunchError("sbatch refuses the job: " + "; ".join(lines)) from error
    except Exception as error:  # NeMo-Run has no exception class for refusals
        raise LaunchError(f"NeMo-Run refuses the job: {' '.join(str(error).split())}") from error


def sbatch_scripts(experiment: nemo_run.Experiment) -> dict[str, str]:
    """Return each task's sbatch script, followed by the script that it runs. Submits nothing and leaves no files."""
    with experiment:
        experiment.dryrun(log=False, delete_exp_dir=False)
    texts = {}
    for job in experiment.jobs:
        directory = Path(job.executor.experiment_dir)
        batch = (directory / f"{job.executor.job_name}_sbatch.sh").read_text()
        texts[job.id] = batch + f"\n# scripts/{job.id}.sh\n{job.task.inline}\n"
    shutil.rmtree(directory)
    return texts


def run_locally(title: str, tasks: Sequence[LaunchTask]) -> bool:
    """Run the tasks in order on this machine. Returns whether all succeeded. No task starts after a failure.

    NeMo-Run's LocalExecutor continues after a failure. So each successful task leaves a marker file for the next one.
    """
    with tempfile.TemporaryDirectory(prefix="tempo-launch-") as directory:
        markers = [Path(directory, task.name) for task in tasks]
        scripts = [
            _after(predecessor, f"(\n{task.script}\n) && touch {marker}")
            for predecessor, task, marker in zip([None, *markers], tasks, markers, strict=False)
        ]
        with _experiment(title, tasks, [nemo_run.LocalExecutor() for _ in tasks], scripts) as experiment:
            experiment.run(tail_logs=True)
        return markers[-1].exists()


def _after(marker: Path | None, script: str) -> str:
    """Return the script, which fails at once if the marker of its predecessor is missing."""
    if marker is None:
        return script
    return f'[ -e {marker} ] || {{ echo "not started: {marker.name} failed"; exit 1; }}\n{script}'


def _experiment(
    title: str, tasks: Sequence[LaunchTask], executors: Sequence[nemo_run.Executor], scripts: Sequence[str]
) -> nemo_run.Experiment:
    experiment = nemo_run.Experiment(title, skip_status_at_exit=True)
    with experiment:
        predecessor: list[str] = []
        for task, executor, script in zip(tasks, executors, scripts, strict=True):
            inline = f"cd {shlex.quote(os.getcwd())} || exit 1\n{script}"
            job = nemo_run.Script(inline=inline)
            predecessor = [experiment.add(job, executor=executor, name=task.name, dependencies=predecessor)]
    return experiment


def _slurm_executor(task: LaunchTask, cluster: Cluster, run: Path) -> nemo_run.SlurmExecutor:
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
        # NeMo-Run's default would let srun kill ranks that still save, and hide the exit codes of others.
        srun_args=[*SRUN_RANK_OPTIONS, "--kill-on-bad-exit=0"],
        setup_lines=setup_lines(run),
        additional_parameters={"kill_on_invalid_dep": "yes"},
        tunnel=nemo_run.LocalTunnel(job_dir=""),
        packager=nemo_run.Packager(),
        poll_estimated_start_time=False,
    )

"""Runs the sbatch scripts with shell scripts in place of Slurm's programs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tests.conftest import ROOT

FINISHES = 'for word; do [[ $word != run_dir=* ]] || touch "${word#run_dir=}/summary.json"; done'
DOCTOR = 'for word; do [ "$last" = --nodes-file ] && echo node1 > "$word"; last=$word; done'


def submit(
    script: str,
    directory: Path,
    srun: str,
    *settings: str,
    programs: Mapping[str, str] = MappingProxyType({}),
    **environment: str,
) -> tuple[int, str]:
    """Run a job whose `srun` is these lines of bash. Returns its exit code and output.

    All nodes answer. `programs` replace other programs of Slurm.
    """
    nodes_answer = '[ "${*: -1}" != true ] || exit 0'
    fake_programs = {
        "srun": f'{nodes_answer}\necho "$@" >> {directory}/called\n{srun}',
        "squeue": 'for word; do case $word in *%T*) echo "7 RUNNING 7" ;; esac; done',
        "scontrol": f'[ "$1" = show ] && echo node1 || echo "$@" >> {directory}/requests',
        "sleep": "",
    } | dict(programs)
    for name, text in fake_programs.items():
        program = directory / name
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "tempo", "SLURM_NTASKS": "8"}
    job |= {"SLURM_JOB_NODELIST": "node1", "SLURM_NNODES": "1", "TEMPO_OUTPUT": str(directory / "runs")}
    job_process = subprocess.run(
        ["bash", ROOT / "slurm" / script, *settings],
        env={**os.environ, **job, **environment, "PATH": f"{directory}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return job_process.returncode, job_process.stdout


def commands(script: str, directory: Path, *settings: str, **environment: str) -> list[str]:
    """Return the command lines of `srun` in a job that succeeds."""
    code, output = submit(script, directory, f"{DOCTOR}\n{FINISHES}", *settings, **environment)
    assert code == 0, output
    return (directory / "called").read_text().splitlines()


def requeues(directory: Path) -> int:
    """Return how often the job requested a requeue."""
    requests = directory / "requests"
    return requests.read_text().splitlines().count("requeue 7") if requests.exists() else 0

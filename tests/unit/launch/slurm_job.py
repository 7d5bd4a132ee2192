"""A job of the sbatch scripts with shell scripts in the place of Slurm's programs."""

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
    """A job whose `srun` runs these lines of bash; its exit code and what it said. All of its nodes answer. `programs`
    replace others of Slurm's."""
    nodes_answer = '[ "${*: -1}" != true ] || exit 0'
    stand_ins = {
        "srun": f'{nodes_answer}\necho "$@" >> {directory}/called\n{srun}',
        "squeue": 'for word; do case $word in *%T*) echo "7 RUNNING 7" ;; esac; done',
        "scontrol": f'[ "$1" = show ] && echo node1 || echo "$@" >> {directory}/asked',
        "sleep": "",
    } | dict(programs)
    for name, text in stand_ins.items():
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
    """The lines that the `srun` of a job that succeeds is called with."""
    code, said = submit(script, directory, f"{DOCTOR}\n{FINISHES}", *settings, **environment)
    assert code == 0, said
    return (directory / "called").read_text().splitlines()


def requeues(directory: Path) -> int:
    """How often jobs asked to be started again."""
    requests = directory / "asked"
    return requests.read_text().splitlines().count("requeue 7") if requests.exists() else 0

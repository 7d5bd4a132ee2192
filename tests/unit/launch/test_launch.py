"""How a process becomes a rank, and how signals reach ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tempo_megatron.config import ConfigError
from tempo_megatron.launch import slurm, torchrun

STEP = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


def test_tasks_of_a_step_become_ranks(tmp_path: Path, monkeypatch: object) -> None:
    """In `srun tempo train` all tasks get the same first node and port, and each its own rank."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\n[ \"$*\" = 'show hostnames node[3-4]' ] && printf 'node3\\nnode4\\n'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")  # type: ignore[attr-defined]
    environment = dict(STEP)
    slurm.join_step(environment)
    other = {**STEP, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    slurm.join_step(other)
    assert torchrun.is_rank(environment)
    assert (environment["RANK"], environment["LOCAL_RANK"], environment["WORLD_SIZE"]) == ("3", "1", "4")
    assert environment["MASTER_ADDR"] == other["MASTER_ADDR"] == "node3"
    assert environment["MASTER_PORT"] == other["MASTER_PORT"]


@pytest.mark.parametrize(
    ("listed", "node", "tasks"),
    [("8(x4)", 3, "8"), ("8(x3),4", 2, "8"), ("8(x3),4", 3, "4"), ("4,8(x2),2", 1, "8"), ("16", 0, "16")],
)
def test_ranks_know_how_many_share_their_node(listed: str, node: int, tasks: str) -> None:
    """Otherwise each rank would take all cores of the node."""
    environment = {**STEP, "TEMPO_NODES": "n0", "SLURM_STEP_TASKS_PER_NODE": listed, "SLURM_NODEID": str(node)}
    slurm.join_step(environment)
    assert environment["LOCAL_WORLD_SIZE"] == tasks


def test_a_batch_script_and_a_single_task_start_alone() -> None:
    """`tempo train` starts its own ranks in an sbatch script, and in a step of one task."""
    for changes in ({"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}):
        environment = dict(changes)
        slurm.join_step(environment)
        assert environment == changes
        assert not torchrun.is_rank(environment)


def test_ranks_of_torchrun_keep_their_numbers() -> None:
    """Ranks of torchrun inside an srun step are not renumbered."""
    environment = {**STEP, "RANK": "9", "WORLD_SIZE": "16", "TORCHELASTIC_RUN_ID": "1"}
    before = dict(environment)
    slurm.join_step(environment)
    assert environment == before


def test_leftovers_of_another_launcher_are_overwritten() -> None:
    """Otherwise every task would be rank 0 of 1, and train on its own."""
    environment = {**STEP, "TEMPO_NODES": "node3 node4", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    slurm.join_step(environment)
    assert [environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["3", "4", "1"]


def test_a_process_with_only_some_rank_variables_is_no_rank() -> None:
    """RANK and WORLD_SIZE alone are leftovers of another launcher. The ranks of this machine are started."""
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    assert torchrun.is_rank(variables)
    assert not any(torchrun.is_rank({k: v for k, v in variables.items() if k != absent}) for absent in variables)


def test_scontrol_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One failure is no answer. If all tries fail, or the program is missing, the error says what to set instead."""
    monkeypatch.setattr(slurm, "_PAUSES", (0.0, 0.0))
    tries = f"echo x >> {tmp_path}/tries"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\n{tries}\n[ $(wc -l < {tmp_path}/tries) -gt 2 ] && echo node3 || exit 1\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert slurm.step_nodes(STEP) == ["node3"]
    scontrol.write_text("#!/bin/sh\necho no configuration >&2\nexit 1\n")
    with pytest.raises(ConfigError, match="no configuration: give the names"):
        slurm.join_step(dict(STEP))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="there is no scontrol here"):
        slurm.join_step(dict(STEP))


def test_a_task_in_an_image_needs_no_slurm_programs() -> None:
    """A container has no scontrol. The batch script outside sets TEMPO_NODES."""
    environment = {**STEP, "TEMPO_NODES": "node3 node4", "PATH": "/nowhere"}
    slurm.join_step(environment)
    assert environment["MASTER_ADDR"] == "node3" and environment["RANK"] == "3"
    assert slurm.step_nodes(environment) == ["node3", "node4"]


def test_a_given_rendezvous_address_is_used() -> None:
    """The batch scripts clear leftovers of another job, and set MASTER_ADDR from TEMPO_MASTER_ADDR."""
    environment = {**STEP, "TEMPO_NODES": "node3 node4", "MASTER_ADDR": "node3-ib", "MASTER_PORT": "29000"}
    slurm.join_step(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("node3-ib", "29000")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_ranks_get_the_same_signal_as_their_launcher(number: signal.Signals, tmp_path: Path) -> None:
    """A run reports the signal that interrupted it: SIGUSR1 is Slurm's warning, SIGTERM a preemption."""
    rank = (
        "import pathlib, signal, sys; numbers = {signal.SIGTERM, signal.SIGUSR1}; "
        "signal.pthread_sigmask(signal.SIG_BLOCK, numbers); pathlib.Path(sys.argv[1], 'listens').touch(); "
        "pathlib.Path(sys.argv[1], 'heard').write_text(signal.Signals(signal.sigwait(numbers)).name)"
    )
    launcher_code = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:], 'tempo_megatron.cli'])"
    )
    launcher = subprocess.Popen([sys.executable, "-c", launcher_code, rank, str(tmp_path)])
    deadline = time.monotonic() + 120
    while not (tmp_path / "listens").exists():
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    assert torchrun.interrupt_ranks(launcher.pid, number)
    assert launcher.wait(timeout=120) == 0
    assert (tmp_path / "heard").read_text() == number.name
    assert not torchrun.interrupt_ranks(launcher.pid, number)

"""`tempo doctor` on several ranks that play nodes: a network that works, and nodes that are bad in their own ways."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.parallel.launcher import ROOT

WORKER = Path(__file__).with_name("doctor_worker.py")
SETTINGS = ["model.precision=fp32", "parallel.processes_per_node=1", "run_dir=${oc.env:SHARED}/runs/mine"]
LIMIT = 90


def examine(directory: Path, ranks: list[dict[str, str]], *settings: str) -> tuple[dict[str, Any], list[int], str]:
    """The JSON report, the exit code of each rank, and what was printed; `ranks` are environments."""
    arguments = [*SETTINGS, *settings, "--json", directory / "report.json", "--nodes-file", directory / "nodes"]
    worker = subprocess.Popen(
        [sys.executable, *(str(part) for part in [WORKER, json.dumps(ranks), *arguments])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    try:
        printed, _ = worker.communicate(timeout=LIMIT)
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
    assert worker.returncode == 0, printed
    return json.loads((directory / "report.json").read_text()), json.loads(printed.splitlines()[-1]), printed


def place(rank: int, ranks: int, node: str, shared: Path, local_rank: int = 0) -> dict[str, str]:
    numbers = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": local_rank}
    return {**{name: str(value) for name, value in numbers.items()}, "SLURMD_NODENAME": node, "SHARED": str(shared)}


def verdicts(report: dict[str, Any], node: str) -> dict[str, str]:
    return {made["check"]: made["verdict"] for made in report["findings"] if made["node"] == node}


def test_two_good_nodes_measure_their_network(tmp_path: Path) -> None:
    """Every check is good, the all-reduce across nodes has a speed and the clock a difference, all ranks have the same
    verdict, and nothing stays of the files that were exchanged: run_dir itself is not made."""
    report, codes, _ = examine(tmp_path, [place(rank, 2, f"n{rank}", tmp_path) for rank in range(2)])
    assert codes == [0, 0]
    assert report["may_start"]
    assert {made["verdict"] for made in report["findings"]} == {"good"}
    found = {(made["check"], made["node"]): made["found"] for made in report["findings"]}
    assert float(found["all-reduce across", "n0"].split()[0]) > 0
    assert found["all-reduce across", "n1"].endswith("with n0")
    assert abs(float(found["clock", "n1"].split()[0])) < 1
    assert (tmp_path / "nodes").read_text() == "n0\nn1\n"
    assert not list(tmp_path.glob(".preflight*"))
    assert not (tmp_path / "runs").exists()


def test_bad_nodes_are_named_and_left_out(tmp_path: Path) -> None:
    """One node never comes, one has another file system at the path of run_dir: both are named within the limit, each
    with its reason; the good node still measures its all-reduce and is listed for the step that trains."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\nprintf 'n1\\nn2\\nn3\\n'\n")
    scontrol.chmod(0o755)
    slurm = {"SLURM_STEP_NODELIST": "n[1-3]", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    came = [
        place(0, 4, "n1", tmp_path, local_rank=0),
        place(1, 4, "n1", tmp_path, local_rank=1),
        place(2, 4, "n2", elsewhere),
    ]
    limits = ["preflight.time_limit_seconds=30", "preflight.bad_nodes=leave_out"]
    report, codes, printed = examine(tmp_path, [slurm | rank for rank in came], *limits)
    assert codes == [0, 0, 0]
    assert report["bad_nodes"] == ["n2", "n3"]
    assert verdicts(report, "n3") == {"presence": "bad"}
    assert verdicts(report, "n2")["shared directory"] == "bad"
    assert verdicts(report, "n1")["all-reduce within"] == "good"
    assert set(verdicts(report, "n1").values()) == {"good"}
    assert report["seconds"] < 30
    assert (tmp_path / "nodes").read_text() == "n1\n"
    assert "never came within 10 s" in printed
    assert f"{elsewhere} is not the first node's" in printed
    assert "1 of 3 nodes good" in printed
    assert not [*tmp_path.glob(".preflight*"), *elsewhere.glob(".preflight*")]

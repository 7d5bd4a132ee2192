"""`tempo doctor` on several ranks that play nodes: a network that works, and nodes that are bad in their own ways."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.launcher import ROOT
from tests.warm.start import warm_python

WORKER = Path(__file__).with_name("doctor_worker.py")
SETTINGS = [
    "model.precision=fp32",
    "parallel.processes_per_node=1",
    "preflight.time_limit_seconds=120",
    "run_dir=${oc.env:SHARED}/runs/mine",
]
LIMIT = 240


@dataclass
class Examined:
    """`tempo doctor` at work, then what came of it."""

    directory: Path
    worker: subprocess.Popen[str]
    printed: str = ""

    def finish(self) -> None:
        try:
            self.printed, _ = self.worker.communicate(timeout=LIMIT)
        finally:
            if self.worker.poll() is None:
                os.killpg(self.worker.pid, signal.SIGKILL)
        assert self.worker.returncode == 0, self.printed

    @property
    def exit_codes(self) -> list[int]:
        codes: list[int] = json.loads(self.printed.splitlines()[-1])
        return codes

    @property
    def report(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((self.directory / "report.json").read_text())
        return read

    @property
    def nodes(self) -> str:
        return (self.directory / "nodes").read_text()

    def verdicts(self, node: str) -> dict[str, str]:
        return {row["check"]: row["verdict"] for row in self.report["findings"] if row["node"] == node}


def start(directory: Path, ranks: list[dict[str, str]], *settings: str) -> Examined:
    """`ranks` are the environments of those that come."""
    arguments = [*SETTINGS, *settings, "--json", directory / "report.json", "--nodes-file", directory / "nodes"]
    worker = subprocess.Popen(
        [*warm_python(), *(str(part) for part in [WORKER, json.dumps(ranks), *arguments])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    return Examined(directory, worker)


def place(rank: int, ranks: int, node: str, shared: Path, local_rank: int = 0) -> dict[str, str]:
    numbers = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": local_rank}
    return {**{name: str(value) for name, value in numbers.items()}, "SLURMD_NODENAME": node, "SHARED": str(shared)}


def start_bad_nodes(directory: Path) -> Examined:
    """n1 is good, n2 has another file system at the path of run_dir, n3 never comes."""
    (directory / "elsewhere").mkdir()
    scontrol = directory / "scontrol"
    scontrol.write_text("#!/bin/sh\nprintf 'n1\\nn2\\nn3\\n'\n")
    scontrol.chmod(0o755)
    slurm = {"SLURM_STEP_NODELIST": "n[1-3]", "PATH": f"{directory}:{os.environ['PATH']}"}
    present_ranks = [
        place(0, 4, "n1", directory, local_rank=0),
        place(1, 4, "n1", directory, local_rank=1),
        place(2, 4, "n2", directory / "elsewhere"),
    ]
    limits = ["preflight.presence_seconds=10", "preflight.bad_nodes=leave_out"]
    return start(directory, [slurm | rank for rank in present_ranks], *limits)


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Examined]:
    """Two good nodes, and three of which two are bad: both at once, for the second waits most of its time."""
    directories = {name: tmp_path_factory.mktemp(name) for name in ("good", "bad")}
    good = [place(rank, 2, f"n{rank}", directories["good"]) for rank in range(2)]
    examinations = {"bad": start_bad_nodes(directories["bad"]), "good": start(directories["good"], good)}
    for examination in examinations.values():
        examination.finish()
    return examinations


def test_two_good_nodes_measure_their_network(examined: dict[str, Examined]) -> None:
    """Every check is good, the all-reduce across nodes has a speed and the clock a difference, all ranks have the same
    verdict, and nothing stays of the files that were exchanged: run_dir itself is not made."""
    examination = examined["good"]
    assert examination.exit_codes == [0, 0]
    assert examination.report["may_start"]
    assert {finding["verdict"] for finding in examination.report["findings"]} == {"good"}
    measured = {(finding["check"], finding["node"]): finding["message"] for finding in examination.report["findings"]}
    assert float(measured["all-reduce across", "n0"].split()[0]) > 0
    assert measured["all-reduce across", "n1"].endswith("with n0")
    assert all(measured["address", node].endswith("is reached by others") for node in ("n0", "n1"))
    skew, *_, uncertainty = measured["clock", "n1"].split()
    assert abs(float(skew)) <= float(uncertainty) + 0.001  # one clock; both are rounded
    assert examination.nodes == "n0\nn1\n"
    assert not list(examination.directory.glob(".preflight*"))
    assert not (examination.directory / "runs").exists()


def test_bad_nodes_are_named_and_left_out(examined: dict[str, Examined]) -> None:
    """Both are named, each with its reason; the good node still measures its all-reduce and is listed for the step that
    trains."""
    examination = examined["bad"]
    elsewhere = examination.directory / "elsewhere"
    assert examination.exit_codes == [0, 0, 0]
    assert examination.report["bad_nodes"] == ["n2", "n3"]
    assert examination.verdicts("n3") == {"presence": "bad"}
    assert examination.verdicts("n2")["shared directory"] == "bad"
    assert examination.verdicts("n1")["all-reduce within"] == "good"
    assert set(examination.verdicts("n1").values()) == {"good"}
    assert examination.nodes == "n1\n"
    assert "never came within preflight.presence_seconds, 10 s" in examination.printed
    assert f"{elsewhere} is not the first node's" in examination.printed
    assert "1 of 3 nodes good" in examination.printed
    assert not [*examination.directory.glob(".preflight*"), *elsewhere.glob(".preflight*")]

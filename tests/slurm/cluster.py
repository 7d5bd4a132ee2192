"""A real Slurm of two nodes on this machine, under one directory: daemons listen on loopback addresses, and each node
has a host name."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tempo_megatron.utils.ports import free_ports

NODES = {"node1": "127.0.0.11", "node2": "127.0.0.12"}
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "unshare")
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
LIMIT = 400
"""Slurm and its jobs need fewer seconds than this on a machine that does nothing else."""
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE"}

_CONFIGURATION = """
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# Slurm lets a requeued job start only when the credentials of its last attempt have expired.
AuthInfo=socket={directory}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmctldPidFile={directory}/slurmctld.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmdSpoolDir={directory}/spool-%n
SlurmdLogFile={directory}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_min_interval=0,bf_interval=1,sched_interval=1,batch_sched_delay=0
ReturnToService=2
KillWait=3
MinJobAge=600
MessageTimeout=20
SlurmdTimeout=30
JobRequeue=1
GresTypes=gpu
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_NODE = "NodeName={name} NodeHostname={name} NodeAddr={address} Port={port} CPUs=16 RealMemory=16000 Gres=gpu:8\n"


def missing() -> str:
    """Why no cluster can be started here; empty when one can."""
    if os.geteuid():
        return "needs root, to give each node a host name"
    absent = [program for program in _PROGRAMS if not shutil.which(program, path=_PATH)]
    if absent:
        return f"needs {', '.join(absent)}: apt-get install slurmctld slurmd slurm-client munge"
    tried = subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True)
    return "" if tried.returncode == 0 else "needs leave to make namespaces, for a host name a node"


class Cluster:
    """Two nodes named node1 and node2, each with 16 CPUs and, as far as Slurm knows, 8 GPUs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(directory / "slurm.conf")}

    def run(self, *command: object) -> str:
        """The output of a client command. Raises AssertionError with what the command said where it fails."""
        completed = subprocess.run(
            [str(part) for part in command], env=self.environment, capture_output=True, text=True, timeout=LIMIT
        )
        assert completed.returncode == 0, f"{command}: {completed.stdout}{completed.stderr}"
        return completed.stdout.strip()

    def sbatch(self, *arguments: object, cwd: Path, **environment: object) -> int:
        """Submit from a directory; returns the job's number."""
        completed = subprocess.run(
            ["sbatch", "--parsable", *map(str, arguments)],
            cwd=cwd,
            env=self.environment | {name: str(value) for name, value in environment.items()},
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert completed.returncode == 0, completed.stderr
        return int(completed.stdout)

    def job(self, number: int | str) -> dict[str, str]:
        """What `scontrol show job` says of a job, or of an element of an array, as 7_1."""
        output = self.run("scontrol", "--oneliner", "show", "job", number)
        return dict(pair.split("=", 1) for pair in output.split() if "=" in pair)

    def state(self, number: int | str) -> str:
        return self.job(number)["JobState"]

    def wait(self, number: int | str, limit: float) -> str:
        """The state in which a job ended. AssertionError after `limit` seconds."""
        wait_for(lambda: self.state(number) in _ENDED, limit, lambda: f"job {number} is {self.state(number)}")
        return self.state(number)

    def restarts(self, number: int | str) -> int:
        return int(self.job(number)["Restarts"])


@contextmanager
def running(directory: Path) -> Iterator[Cluster]:
    """A cluster whose nodes are idle; all that it started ends with it."""
    cluster = Cluster(directory)
    _write_files(directory)
    with ExitStack() as daemons:
        daemons.enter_context(
            _daemon(
                cluster,
                "munged",
                "--foreground",
                "--force",
                f"--socket={directory}/munge/socket",
                f"--key-file={directory}/munge/key",
                f"--pid-file={directory}/munge/pid",
                f"--log-file={directory}/munge/log",
                f"--seed-file={directory}/munge/seed",
            )
        )
        wait_for((directory / "munge" / "socket").exists, LIMIT, lambda: "munged does not listen")
        daemons.enter_context(_daemon(cluster, "slurmctld", "-D", "-c"))
        for name in NODES:
            prepare = 'mount --bind "$0" /etc/hosts; hostname "$1"; exec slurmd -D -N "$1"'
            daemons.enter_context(
                _daemon(cluster, "unshare", "--mount", "--uts", "sh", "-c", prepare, directory / "hosts", name)
            )
        wait_for(lambda: _idle(cluster) == len(NODES), LIMIT, lambda: cluster.run("sinfo", "--Node", "--long"))
        try:
            yield cluster
        finally:
            cluster.run("scancel", "--full", "--user=root")
            wait_for(lambda: not cluster.run("squeue", "--noheader"), LIMIT, lambda: cluster.run("squeue"))


def wait_for(is_true: Callable[[], bool], limit: float, describe: Callable[[], str]) -> None:
    """Wait until `is_true` returns True. Raises AssertionError with `describe()` after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not is_true():
        assert time.monotonic() < deadline, f"not within {limit} s: {describe()}"
        time.sleep(0.2)


def _idle(cluster: Cluster) -> int:
    idle_nodes = subprocess.run(
        ["sinfo", "--noheader", "--states=idle", "--format=%D"], env=cluster.environment, capture_output=True, text=True
    )
    return int(idle_nodes.stdout or 0)


@contextmanager
def _daemon(cluster: Cluster, *command: object) -> Iterator[None]:
    with (cluster.directory / "daemons.log").open("a") as log:
        process = subprocess.Popen([str(part) for part in command], env=cluster.environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _write_files(directory: Path) -> None:
    for name in ("munge", "state", "gpu", *(f"spool-{node}" for node in NODES)):
        (directory / name).mkdir()
    key = directory / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    ports = free_ports(len(NODES) + 1)
    nodes = [
        _NODE.format(name=name, address=address, port=port)
        for (name, address), port in zip(NODES.items(), ports[1:], strict=True)
    ]
    written = _CONFIGURATION.format(directory=directory, port=ports[0])
    (directory / "slurm.conf").write_text("".join([written.replace("PartitionName", "".join(nodes) + "PartitionName")]))
    hosts = [f"{address} {name}\n" for name, address in NODES.items()]
    (directory / "hosts").write_text(Path("/etc/hosts").read_text() + "".join(hosts))
    devices = [directory / "gpu" / f"nvidia{number}" for number in range(8)]
    for device in devices:
        os.mknod(device, 0o20666, os.makedev(1, 3))  # GPUs by name alone: /dev/null
    (directory / "gres.conf").write_text(f"Name=gpu File={directory}/gpu/nvidia[0-7]\n")

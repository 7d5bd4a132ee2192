"""The warm server of this test run."""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
_DIRECTORY = "TEMPO_WARM_DIRECTORY"
"""The environment variable with the directory of the server's socket. Pytest's first process creates it for all."""
_OWNER = "TEMPO_WARM_OWNER"
"""The environment variable with the process id of pytest. The server ends when that process has ended."""
_KEEPS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""With these variables glibc keeps the memory of freed tensors for the next ones.

The kernel would otherwise zero the same pages again and again, which took half of the CPU time of the largest model.
"""
CLIENT = Path(__file__).with_name("client.py")


def announce(directory: Path) -> None:
    """Set where this test run's server listens. The server starts with the first command."""
    os.environ |= {_DIRECTORY: str(directory), _OWNER: str(os.getpid())}


def warm_python() -> list[str]:
    """Return the beginning of a command line that replaces [sys.executable]. The command runs as a fork of the server.

    The command needs the environment variable TEMPO_WARM_SERVER, which is set here. With GPUs the command runs in a
    Python of its own, since CUDA does not survive a fork.
    """
    import torch  # two seconds, which the first process of pytest does without

    if torch.cuda.is_available():
        return [sys.executable]
    os.environ["TEMPO_WARM_SERVER"] = str(_socket_of_server())
    return [sys.executable, "-I", "-S", str(CLIENT)]


def warm_shell() -> str:
    """Return `warm_python` as a line of shell. The command replaces the shell, by `exec`."""
    line = shlex.join(warm_python())
    return f"TEMPO_WARM_SERVER={os.environ.get('TEMPO_WARM_SERVER', '')} exec {line}"


def warm_torchrun() -> dict[str, str]:
    """Return environment variables with which torchrun starts its ranks as forks of the server.

    torchrun itself, and a `tempo` command that calls it, run as ever.
    """
    line = warm_python()
    if line == [sys.executable]:
        return {}
    python = Path(os.environ[_DIRECTORY]) / "python"
    script = python.with_suffix(f".{os.getpid()}")
    script.write_text(f'#!/bin/sh\nexec {shlex.join(line)} "$@"\n')
    script.chmod(0o755)
    script.rename(python)  # another worker of pytest-xdist may execute the old file, which has the same lines
    return {"PYTHON_EXEC": str(python)}


def _socket_of_server() -> Path:
    directory = Path(os.environ[_DIRECTORY])
    path = directory / "server"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of pytest-xdist's workers starts it
        if not path.exists():
            python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            environment = {**os.environ, **_KEEPS_MEMORY, "PYTHONPATH": python_path}
            command = [sys.executable, "-m", "tests.warm.server", path, os.environ[_OWNER]]
            with (directory / "log").open("w") as log:
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
            while not path.exists():
                time.sleep(0.02)
    return path

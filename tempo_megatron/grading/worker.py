"""The program of a worker process: it receives a task, reports its start, and sends the outcome.

A worker keeps no state between tasks. It imports neither torch nor the trainer. Its parent ends it, by closing the
pipe or by SIGKILL.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection

from tempo_megatron.grading.graders import grader_functions

STARTED, SUCCEEDED, FAILED, UNKNOWN_GRADER = "started", "succeeded", "failed", "unknown grader"
"""The kinds of messages to the parent."""
_PR_SET_PDEATHSIG = 1
_MAX_MESSAGE_CHARACTERS = 500


def main() -> None:
    """Runs a worker.

    Its arguments are the pipe's file descriptor, the memory limit in bytes, and the parent's process id.
    """
    descriptor, memory_bytes, parent = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    # A closed pipe would not end a long computation. Linux sends this signal also if only the starting thread ends.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Connection(descriptor) as connection:
        serve(connection)


def serve(connection: Connection) -> None:
    """Runs tasks, (grader, its function's name, arguments), until the pipe closes."""
    while True:
        try:
            name, method, arguments = connection.recv()
        except EOFError:
            return
        try:
            function = getattr(grader_functions(name), method)
        except Exception as error:
            connection.send((UNKNOWN_GRADER, str(error)))
            continue
        connection.send((STARTED, None))  # the time limit starts here, because loading a grader takes seconds
        try:
            outcome = (SUCCEEDED, function(*arguments))
        except Exception as error:  # third-party graders may raise any exception
            outcome = (FAILED, f"{type(error).__name__}: {error}"[:_MAX_MESSAGE_CHARACTERS])
        connection.send(outcome)

"""Imports what `preload` names and forks a process for each client.

usage: python -m tests.warm.server SOCKET OWNER

Listens at SOCKET until the process with the id OWNER has ended. Single-threaded: threads do not survive a fork.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

_LOOK_SECONDS = 1.0
"""The server checks this often whether its owner still runs."""
_NAMESPACES = {"mnt": os.CLONE_NEWNS, "uts": os.CLONE_NEWUTS}
"""A fork enters these namespaces of its client: nodes of the tests' Slurm cluster have host names of their own."""


class Server:
    """Connections of clients, each with the process id of its fork."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._forks: dict[socket.socket, int] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._child_ended, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._child_ended, selectors.EVENT_READ)

    def serve(self, owner: int) -> None:
        """Fork for clients until `owner` has ended, then kill the forks that still run."""
        while Path(f"/proc/{owner}").exists():
            for key, _ in self._selector.select(_LOOK_SECONDS):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._child_ended:
                    self._child_ended.recv(4096)
                elif key.fileobj in self._forks:
                    self._listen_to(key.fileobj)  # type: ignore[arg-type]
            self._reap()
        for pid in self._forks.values():
            _kill_group(pid)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        with contextlib.suppress(OSError, ValueError):  # a client that is killed while it asks gets no fork
            head, streams, _, _ = socket.recv_fds(client, 8, 3)
            text = client.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
            request = json.loads(text)
            if pid := os.fork():
                os.setpgid(pid, pid)
                self._forks[client] = pid
                self._selector.register(client, selectors.EVENT_READ)
            else:
                os.setpgid(0, 0)
                self._close_all(client)
                _become(request, streams)
            for descriptor in streams:
                os.close(descriptor)
            return
        client.close()

    def _close_all(self, client: socket.socket) -> None:
        """Close everything of the server in the fork."""
        signal.set_wakeup_fd(-1)
        self._selector.close()
        for connection in (client, self._listener, self._child_ended, self._wakeup, *self._forks):
            connection.close()

    def _listen_to(self, client: socket.socket) -> None:
        """Pass a client's signals on to its fork, or kill the fork if the client has ended."""
        pid = self._forks[client]
        try:
            numbers = client.recv(64)
        except ConnectionError:
            numbers = b""
        if not numbers:
            _kill_group(pid)
            self._forget(client)
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _reap(self) -> None:
        """Tell each client how its fork has ended."""
        clients = {pid: client for client, pid in self._forks.items()}
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if client := clients.get(ended[0]):
                    code = os.waitstatus_to_exitcode(ended[1])
                    with contextlib.suppress(OSError):
                        client.sendall(code.to_bytes(4, "big", signed=True))
                    self._forget(client)

    def _forget(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        del self._forks[client]
        client.close()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _become(request: dict[str, Any], streams: list[int]) -> NoReturn:
    """Run the command of a request as Python would, then end this process."""
    code = 1
    try:
        code = _run(request, streams)
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(request: dict[str, Any], streams: list[int]) -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    _enter_namespaces(request["pid"])
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    argv = request["argv"]
    if argv[0] == "-u":  # from torchrun; the streams are written line by line anyway
        del argv[0]
    code = 0
    try:
        if argv[0] == "-m":
            sys.path[:0] = [os.getcwd(), *_python_path()]
            sys.argv = argv[1:]
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[:0] = [str(Path(argv[0]).resolve().parent), *_python_path()]
            sys.argv = argv
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as ending:
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    # The interpreter does the same when it ends: it waits for threads and calls the registered functions.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    return code & 0xFF


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _enter_namespaces(client: int) -> None:
    for name, kind in _NAMESPACES.items():
        if os.readlink(f"/proc/{client}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"):
            descriptor = os.open(f"/proc/{client}/ns/{name}", os.O_RDONLY)
            os.setns(descriptor, kind)
            os.close(descriptor)


def main(path: str, owner: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    os.rename(f"{path}.new", path)  # whoever sees the file can connect
    import tests.warm.preload  # noqa: F401  (clients that come earlier wait in the listener's queue)

    gc.collect()
    gc.freeze()  # a fork's garbage collections then touch, and so copy, none of what is shared
    Server(listener).serve(int(owner))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Ranks meet in a TCPStore, where the first rank sends tasks and the other ranks do them.

No process group is made, so that a missing or stuck rank blocks no other rank and can be named. Every wait has a limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any

from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]

from tempo_megatron.preflight.node_reader import node_name

_POLL_SECONDS = 0.02
_END_TASK = "end"
_NO_ARGUMENTS: Mapping[str, Any] = {}

Tasks = Mapping[str, Callable[..., Any]]
"""What a rank does, by task name. Keyword arguments and the result must be JSON."""


class RendezvousError(RuntimeError):
    """This rank could not reach the first rank, or lost it."""


@dataclass(frozen=True)
class RankLocation:
    """The rank and the rendezvous address that a launcher gave this process."""

    rank: int
    local_rank: int
    world_size: int
    host: str
    """The address of the first rank's node."""
    port: int
    launcher_serves: bool
    """Whether torchrun serves the store at that port instead of the first rank."""
    node: str

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> RankLocation:
        return RankLocation(
            rank=int(environment["RANK"]),
            local_rank=int(environment["LOCAL_RANK"]),
            world_size=int(environment["WORLD_SIZE"]),
            host=environment["MASTER_ADDR"],
            port=int(environment["MASTER_PORT"]),
            launcher_serves=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            node=node_name(),
        )


@dataclass
class RankReplies:
    """The replies of ranks to one task."""

    answers: dict[int, Any] = field(default_factory=dict)
    """The results of the task, by rank."""
    errors: dict[int, str] = field(default_factory=dict)
    """The exceptions that the task raised, by rank."""
    absent: list[int] = field(default_factory=list)
    """The ranks that did not answer within the limit."""


class Rendezvous:
    """One rank's part of the rendezvous.

    Raises RendezvousError if the first rank cannot be reached within `presence_seconds`. Ranks may come that much later
    than most. After that the first rank has `seconds` for its tasks.
    """

    def __init__(self, location: RankLocation, tasks: Tasks, presence_seconds: float, seconds: float) -> None:
        self.location, self._tasks, self._presence_seconds = location, tasks, presence_seconds
        self._task_numbers = count()
        self._store = PrefixStore("preflight", connect(location, presence_seconds))
        # The first rank decides when the time is over: the others wait a little longer for its decision.
        self._store.set_timeout(timedelta(seconds=seconds + 10))
        self._store.set(f"came/{location.rank}", location.node)

    def present_ranks(self) -> dict[int, str]:
        """Return the node of each rank that has come so far."""
        ranks = [rank for rank in range(self.location.world_size) if self._store.check([f"came/{rank}"])]
        return {rank: self._store.get(f"came/{rank}").decode() for rank in ranks}

    def wait_for_all(self) -> None:
        """Wait until all ranks have come, or until `presence_seconds` after most ranks have.

        If most ranks never come, the time counts from this call. The first rank decides; on another rank this raises
        RendezvousError if no decision comes.
        """
        if self.location.rank:
            with self._first_rank_required():
                self._store.wait(["task/0"], timedelta(seconds=2 * self._presence_seconds + 10))
            return
        ranks, since, most_came = self.location.world_size, time.monotonic(), False
        while (present := len(self.present_ranks())) < ranks and time.monotonic() < since + self._presence_seconds:
            if 2 * present > ranks and not most_came:
                since, most_came = time.monotonic(), True
            time.sleep(_POLL_SECONDS)

    def ask(
        self, task: str, ranks: Collection[int], seconds: float, arguments: Mapping[str, Any] = _NO_ARGUMENTS
    ) -> RankReplies:
        """Have `ranks` do a task, and return their replies after at most `seconds`. On the first rank only."""
        deadline = time.monotonic() + seconds
        number = self._publish(task, ranks, arguments)
        if self.location.rank in ranks:
            self._do(number, task, arguments)
        replies = RankReplies()
        for rank in sorted(ranks):
            key = f"answer/{number}/{rank}"
            while not (has_answered := self._store.check([key])) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            if not has_answered:
                replies.absent.append(rank)
                continue
            reply = json.loads(self._store.get(key))
            if "error" in reply:
                replies.errors[rank] = reply["error"]
            else:
                replies.answers[rank] = reply["answer"]
        return replies

    def end(self, ranks: Collection[int], outcome: Any, seconds: float) -> None:
        """Send the outcome to all ranks, and wait until `ranks` have received it. On the first rank only."""
        number = self._publish(_END_TASK, range(self.location.world_size), {"outcome": outcome})
        deadline = time.monotonic() + seconds
        for rank in set(ranks) - {self.location.rank}:
            while not self._store.check([f"answer/{number}/{rank}"]) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)

    def follow(self) -> Any:
        """Do the first rank's tasks until it ends, and return its outcome. On the other ranks only.

        Raises RendezvousError if the first rank is lost, or sends no task within the limit.
        """
        with self._first_rank_required():
            while True:
                number = next(self._task_numbers)
                task = json.loads(self._store.get(f"task/{number}"))
                if task["name"] == _END_TASK:
                    self._answer(number, {"answer": None})
                    return task["arguments"]["outcome"]
                if self.location.rank in task["ranks"]:
                    self._do(number, task["name"], task["arguments"])

    @contextlib.contextmanager
    def _first_rank_required(self) -> Iterator[None]:
        try:
            yield
        except DistError as error:
            reason = str(error).splitlines()[0]
            raise RendezvousError(f"rank 0 at {self.location.host} gave no verdict: {reason}") from error

    def _publish(self, task: str, ranks: Collection[int], arguments: Mapping[str, Any]) -> int:
        number = next(self._task_numbers)
        message = {"name": task, "ranks": sorted(ranks), "arguments": dict(arguments)}
        self._store.set(f"task/{number}", json.dumps(message))
        return number

    def _do(self, number: int, task: str, arguments: Mapping[str, Any]) -> None:
        try:
            reply = {"answer": self._tasks[task](**arguments)}
        except Exception as error:  # any failure of this node becomes a finding about it
            reply = {"error": f"{type(error).__name__}: {error}"}
        self._answer(number, reply)

    def _answer(self, number: int, reply: Mapping[str, Any]) -> None:
        self._store.set(f"answer/{number}/{self.location.rank}", json.dumps(reply))


@cache
def connect(location: RankLocation, seconds: float) -> TCPStore:
    """Return the store at the rendezvous' address. The first rank serves it, unless a launcher does.

    The store stays open for the life of the process. The process group that training makes at the same port shares the
    server, and a rank that is ahead never meets a server that is about to close. Raises RendezvousError.
    """
    serves = location.rank == 0 and not location.launcher_serves
    if not serves:
        _wait_for_server(location, seconds)
    try:
        return TCPStore(
            location.host,
            location.port,
            is_master=serves,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except DistError as error:
        action = "serve" if serves else "reach"
        reason = str(error).splitlines()[0]
        raise RendezvousError(f"cannot {action} the rendezvous at {location.host}:{location.port}: {reason}") from error


def _wait_for_server(location: RankLocation, seconds: float) -> None:
    """Wait until the port is served. TCPStore's own attempts would log much, but not the reason."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((location.host, location.port), timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RendezvousError(
                    f"rank 0 cannot be reached at {location.host}:{location.port} within preflight.presence_seconds, "
                    f"{seconds:g} s: {error}{_resolved(location.host)} (MASTER_ADDR and MASTER_PORT name another)"
                ) from error
            time.sleep(0.1)


def _resolved(host: str) -> str:
    """Return a note on the address that `host` resolves to here, or "" if `host` is that address."""
    try:
        address = socket.gethostbyname(host)
    except OSError:
        return ""
    return "" if address == host else f"; {host} is {address} here"

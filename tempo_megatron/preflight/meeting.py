"""Ranks meet in a TCPStore: the first rank gives tasks, the others do them; nobody waits without a limit.

No process group is made, so that a rank that is missing or stuck holds nobody up and has a name.
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

from tempo_megatron.preflight.gather import node_name

_POLL_SECONDS = 0.02
_END = "end"
_NONE: Mapping[str, Any] = {}

Tasks = Mapping[str, Callable[..., Any]]
"""name: what a rank does; keyword arguments and answer are JSON"""


class MeetingError(RuntimeError):
    """This rank could not meet the first one, or the first one went away."""


@dataclass(frozen=True)
class RankLocation:
    """What a launcher told this rank."""

    rank: int
    local_rank: int
    world_size: int
    host: str
    """address of the first rank's node"""
    port: int
    launcher_serves: bool
    """torchrun holds the store at that port, not the first rank"""
    node: str

    @staticmethod
    def here(environment: Mapping[str, str] = os.environ) -> RankLocation:
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
    """What ranks said to a task, by rank."""

    given: dict[int, Any] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    """the exception that the task raised there"""
    absent: list[int] = field(default_factory=list)
    """no answer within the limit"""


class Meeting:
    """One rank's part. Raises MeetingError when the first rank cannot be reached within `to_come` seconds.

    Ranks may come that much later than most; then the first one has `seconds` for what it asks.
    """

    def __init__(self, place: RankLocation, tasks: Tasks, to_come: float, seconds: float) -> None:
        self.place, self._tasks, self._to_come, self._numbers = place, tasks, to_come, count()
        self._store = PrefixStore("preflight", connect(place, to_come))
        # The first rank decides when the time is over: others wait a little longer for its word.
        self._store.set_timeout(timedelta(seconds=seconds + 10))
        self._store.set(f"came/{place.rank}", place.node)

    def came(self) -> dict[int, str]:
        """Rank: node, of all who have come so far."""
        ranks = [rank for rank in range(self.place.world_size) if self._store.check([f"came/{rank}"])]
        return {rank: self._store.get(f"came/{rank}").decode() for rank in ranks}

    def wait_for_all(self) -> None:
        """Until the first rank has seen everyone come, or `to_come` seconds have gone since most did; since now, where
        most never do. Raises MeetingError on another rank that does not hear of it."""
        if self.place.rank:
            with self._hearing():
                self._store.wait(["task/0"], timedelta(seconds=2 * self._to_come + 10))
            return
        ranks, since, most_came = self.place.world_size, time.monotonic(), False
        while (came := len(self.came())) < ranks and time.monotonic() < since + self._to_come:
            if 2 * came > ranks and not most_came:
                since, most_came = time.monotonic(), True
            time.sleep(_POLL_SECONDS)

    def ask(
        self, name: str, ranks: Collection[int], seconds: float, arguments: Mapping[str, Any] = _NONE
    ) -> RankReplies:
        """On the first rank: have `ranks` do a task, and wait at most `seconds` for what they say."""
        deadline = time.monotonic() + seconds
        number = self._publish(name, ranks, arguments)
        if self.place.rank in ranks:
            self._do(number, name, arguments)
        answers = RankReplies()
        for rank in sorted(ranks):
            key = f"answer/{number}/{rank}"
            while not (there := self._store.check([key])) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            if not there:
                answers.absent.append(rank)
                continue
            said = json.loads(self._store.get(key))
            if "error" in said:
                answers.failed[rank] = said["error"]
            else:
                answers.given[rank] = said["answer"]
        return answers

    def end(self, ranks: Collection[int], outcome: Any, seconds: float) -> None:
        """On the first rank: tell all the outcome, and wait until those of `ranks` have heard it."""
        number = self._publish(_END, range(self.place.world_size), {"outcome": outcome})
        deadline = time.monotonic() + seconds
        for rank in set(ranks) - {self.place.rank}:
            while not self._store.check([f"answer/{number}/{rank}"]) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)

    def follow(self) -> Any:
        """On the others: do what the first rank asks for until it ends; returns the outcome that it tells.

        Raises MeetingError when it ends otherwise or is not heard of within the limit.
        """
        with self._hearing():
            while True:
                number = next(self._numbers)
                task = json.loads(self._store.get(f"task/{number}"))
                if task["name"] == _END:
                    self._answer(number, {"answer": None})
                    return task["arguments"]["outcome"]
                if self.place.rank in task["ranks"]:
                    self._do(number, task["name"], task["arguments"])

    @contextlib.contextmanager
    def _hearing(self) -> Iterator[None]:
        try:
            yield
        except DistError as error:
            reason = str(error).splitlines()[0]
            raise MeetingError(f"rank 0 at {self.place.host} gave no verdict: {reason}") from error

    def _publish(self, name: str, ranks: Collection[int], arguments: Mapping[str, Any]) -> int:
        number = next(self._numbers)
        self._store.set(
            f"task/{number}", json.dumps({"name": name, "ranks": sorted(ranks), "arguments": dict(arguments)})
        )
        return number

    def _do(self, number: int, name: str, arguments: Mapping[str, Any]) -> None:
        try:
            said = {"answer": self._tasks[name](**arguments)}
        except Exception as error:  # whatever is wrong with this node becomes a finding about it
            said = {"error": f"{type(error).__name__}: {error}"}
        self._answer(number, said)

    def _answer(self, number: int, said: Mapping[str, Any]) -> None:
        self._store.set(f"answer/{number}/{self.place.rank}", json.dumps(said))


@cache
def connect(place: RankLocation, seconds: float) -> TCPStore:
    """The store at the rendezvous' address, this rank serving it where it is the first and no launcher does.

    Kept for the life of the process: the process group that training makes at the same port shares the server, and a
    rank that is ahead never meets one that is about to close. Raises MeetingError.
    """
    serves = place.rank == 0 and not place.launcher_serves
    if not serves:
        _wait_for(place, seconds)
    try:
        return TCPStore(
            place.host,
            place.port,
            is_master=serves,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except DistError as error:
        what = "serve" if serves else "reach"
        reason = str(error).splitlines()[0]
        raise MeetingError(f"cannot {what} the rendezvous at {place.host}:{place.port}: {reason}") from error


def _wait_for(place: RankLocation, seconds: float) -> None:
    """Until the port is served; the store's own tries say nothing of the reason and much else."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((place.host, place.port), timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise MeetingError(
                    f"rank 0 cannot be reached at {place.host}:{place.port} within preflight.presence_seconds, "
                    f"{seconds:g} s: {error}{_resolved(place.host)} (MASTER_ADDR and MASTER_PORT name another)"
                ) from error
            time.sleep(0.1)


def _resolved(host: str) -> str:
    """What a name resolves to here, where that is another text."""
    try:
        address = socket.gethostbyname(host)
    except OSError:
        return ""
    return "" if address == host else f"; {host} is {address} here"

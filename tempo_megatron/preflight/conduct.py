"""The first rank's part: it asks, in order, and makes the report. The tasks are what every rank can be asked for."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from tempo_megatron.config import Config, PreflightConfig
from tempo_megatron.preflight import bandwidth, device_checks, exchange, node_checks, placement, reach, room
from tempo_megatron.preflight.bandwidth import Group, Measured
from tempo_megatron.preflight.exchange import ClockReading, Exchange
from tempo_megatron.preflight.facts import Facts, Finding, NodeVerdict, node_facts
from tempo_megatron.preflight.gather import gather
from tempo_megatron.preflight.meeting import Meeting, RankLocation, RankReplies, Tasks
from tempo_megatron.preflight.reach import Listener
from tempo_megatron.preflight.report import Report

_SHARE_FOR_FACTS = 1 / 3
"""of the time limit, for all ranks to describe their nodes, where bandwidth is measured after it"""
_EXCHANGE_SECONDS = 10
_CLOCK_ROUNDS = 3
_LEAST_SECONDS = 5
"""below these a measurement is not begun"""


def tasks(config: Config, place: RankLocation) -> Tasks:
    """What this rank does when it is asked."""
    listener = Listener(place.node)
    return {
        "facts": lambda: asdict(gather()) if place.local_rank == 0 else None,
        "clock": time.time,
        "files": partial(exchange.answer, config.run_dir, place.node),
        "remove files": lambda token, levels: Exchange(config.run_dir, token, levels).remove(place.node),
        "listen": listener.open,
        "reach": partial(reach.failures, place.node),
        "stop listening": listener.close,
        "all-reduce": partial(bandwidth.reduce_in_process, rank=place.rank),
    }


class Conductor:
    """Asks all ranks and gathers findings. `awaited` are the nodes that ought to come, where they are known."""

    def __init__(self, meeting: Meeting, config: Config, awaited: Sequence[str]) -> None:
        self._meeting, self._config, self._awaited = meeting, config, awaited
        self._begun = time.monotonic()
        self._findings: list[Finding] = []
        self._nodes: dict[int, str] = {}
        self._speakers: dict[int, str] = {}
        """the rank of each node that speaks for it"""

    def examine(self, *, measure: bool) -> Report:
        """Every check; bandwidth, which takes most of the time, only where `measure` asks for it."""
        facts = self._introductions(self._left() * (_SHARE_FOR_FACTS if measure else 1))
        self._findings += [
            *device_checks.check_devices(facts, self._config),
            *node_checks.check_node(facts, self._config),
        ]
        # The nodes that the run asks for: one that does not come would not make it another run.
        nodes = math.ceil(self._meeting.place.world_size / self._config.parallel.processes_per_node)
        self._findings += room.memory(facts, self._config, nodes)
        self._clocks()
        self._addresses()
        if self._config.run_dir:
            self._files()
        if measure:
            # What gloo is given to do is too little for nodes to be compared by.
            on_gpus = device_checks.on_gpus(facts, self._config)
            self._bandwidth(self._config.preflight.bandwidth_share_of_median if on_gpus else 0.0)
            self._rest(facts)
        return self._report(facts)

    def _report(self, facts: Facts) -> Report:
        return Report(self._ranks(), self._findings, facts, time.monotonic() - self._begun)

    def _rest(self, facts: Facts) -> None:
        """Whether the run fits without the bad nodes, should it start without them."""
        report = self._report(facts)
        use = report.nodes_to_use(self._config)
        if len(use) < len(report.ranks):
            of_rest = {node: facts[node] for node in use if node in facts}
            self._findings += room.memory_of_rest(of_rest, self._config, len(use))

    def _ranks(self) -> dict[str, int]:
        """How many ranks came from each node, those that are missed included."""
        came = list(self._nodes.values())
        complete = len(came) == self._meeting.place.world_size
        return {node: came.count(node) for node in [*came, *([] if complete else self._awaited)]}

    def _left(self) -> float:
        return self._config.preflight.time_limit_seconds - (time.monotonic() - self._begun)

    def _introductions(self, seconds: float) -> Facts:
        came = self._meeting.came()
        answers = self._meeting.ask("facts", came, seconds)
        self._findings += absent(came, self._meeting.place.world_size, self._awaited, self._config.preflight)
        self._findings += silent(answers, came, seconds)
        self._findings += placement.check_placement(came, self._config)
        self._nodes = came
        self._speakers = {rank: came[rank] for rank, said in answers.given.items() if said is not None}
        return {node: node_facts(answers.given[rank]) for rank, node in self._speakers.items()}

    def _clocks(self) -> None:
        others = [rank for rank in self._speakers if rank != self._meeting.place.rank]
        readings: dict[str, list[ClockReading]] = {}
        for _ in range(_CLOCK_ROUNDS if others else 0):
            asked = time.time()
            answers = self._meeting.ask("clock", others, min(_EXCHANGE_SECONDS, self._left()))
            heard = time.time()
            for rank, said in answers.given.items():
                readings.setdefault(self._speakers[rank], []).append(ClockReading(asked, said, heard))
        self._findings += exchange.clocks(readings, self._config.preflight.clock_skew_seconds)

    def _addresses(self) -> None:
        """What gloo would connect: without it a node whose name resolves to itself holds up all for minutes."""
        if len(self._speakers) < 2:
            return
        token = secrets.token_hex(8)
        answers = self._ask_speakers("listen", {"token": token})
        addresses = {self._speakers[rank]: tuple(address) for rank, address in answers.given.items()}
        remedy = "see its host name, its network and GLOO_SOCKET_IFNAME"
        self._findings += [
            Finding("address", self._speakers[rank], NodeVerdict.bad, error, remedy)
            for rank, error in answers.failed.items()
        ]
        if len(addresses) > 1:
            tries = reach.neighbors(list(addresses))
            said = self._ask_speakers("reach", {"addresses": addresses, "tries": tries, "token": token})
            tried = {self._speakers[rank]: reasons for rank, reasons in said.given.items()}
            self._findings += reach.findings(addresses, tried)
        self._ask_speakers("stop listening", {})

    def _files(self) -> None:
        here = self._meeting.place.node
        exchanged = Exchange.of(self._config.run_dir, secrets.token_hex(8))
        try:
            exchanged.show(here)
        except OSError as error:
            remedy = "make it writable, or choose another run_dir"
            self._findings.append(Finding("shared directory", here, NodeVerdict.bad, f"run_dir: {error}", remedy))
            return
        task = {"token": exchanged.token, "levels": exchanged.levels}
        answers = self._ask_speakers("files", {"first": here, **task})
        said = {self._speakers[rank]: answer for rank, answer in answers.given.items()}
        failed = {self._speakers[rank]: error for rank, error in answers.failed.items()}
        failed |= {self._speakers[rank]: f"no answer within {_EXCHANGE_SECONDS} s" for rank in answers.absent}
        self._findings += exchange.files(said, failed, {node for node in said if exchanged.sees(node)})
        self._ask_speakers("remove files", task)
        self._findings.append(room.disk(exchanged.directory, self._config, self._meeting.place.world_size))

    def _ask_speakers(self, name: str, arguments: Mapping[str, Any]) -> RankReplies:
        return self._meeting.ask(name, self._speakers, max(1.0, min(_EXCHANGE_SECONDS, self._left())), arguments)

    def _bandwidth(self, share: float) -> None:
        """Over nodes that are good so far: one that is bad would hold up the others."""
        limits = self._config.preflight
        ranks: dict[str, list[int]] = {}
        for rank, node in self._nodes.items():
            ranks.setdefault(node, []).append(rank)
        good = self._good(ranks)
        alone = [(node,) for node in good if len(ranks[node]) > 1]
        to_come = len(bandwidth.ring(good)) + (len(good) > 2)
        measured = self._measure(alone, ranks, to_come)
        self._findings += bandwidth.within(measured, limits.bandwidth_within_gb_per_second, share)
        good = self._good(ranks)
        rounds = bandwidth.ring(good)
        pairs: list[Measured] = []
        for at, round_ in enumerate(rounds, start=1):
            pairs += self._measure(round_, ranks, len(rounds) - at + (len(good) > 2))
        self._findings += bandwidth.across(pairs, limits.bandwidth_across_gb_per_second, share)
        good = self._good(ranks)
        if len(good) > 2:
            self._findings += [bandwidth.together(made) for made in self._measure([tuple(good)], ranks, 0)]

    def _good(self, ranks: Mapping[str, Sequence[int]]) -> list[str]:
        bad = {finding.node for finding in self._findings if finding.verdict is NodeVerdict.bad}
        return [node for node in ranks if node not in bad]

    def _measure(self, groups: Sequence[Group], ranks: Mapping[str, Sequence[int]], to_come: int) -> list[Measured]:
        """One round of groups that do not overlap, in its share of the time left to it and the rounds to come."""
        if not groups:
            return []
        seconds = (self._left() - 2) / (1 + to_come)
        if seconds < _LEAST_SECONDS:
            found = f"not measured: {self._left():.0f} s of preflight.time_limit_seconds are left"
            self._findings.append(Finding("all-reduce", "", NodeVerdict.warning, found, "raise the limit"))
            return []
        members = {group: [rank for node in group for rank in ranks[node]] for group in groups}
        everyone = [rank for group in members.values() for rank in group]
        # The measurement ends itself first, so that each rank is still there to say why.
        task = {"name": secrets.token_hex(4), "groups": list(members.values()), "seconds": seconds - 3}
        answers = self._meeting.ask("all-reduce", everyone, seconds, task)
        return bandwidth.collected(members, answers.given, answers.failed)


def absent(came: Mapping[int, str], ranks: int, awaited: Sequence[str], limits: PreflightConfig) -> list[Finding]:
    """Findings about nodes and ranks that did not come."""
    limit = f"within preflight.presence_seconds, {limits.presence_seconds:g} s"
    missing = [rank for rank in range(ranks) if rank not in came]
    # A step's node may hold no rank of this run, and is not missed while all ranks are there.
    never = [node for node in awaited if missing and node not in came.values()]
    found = [
        Finding("presence", node, NodeVerdict.bad, f"never came {limit}", "see its slurmd, `sinfo -R`, and its log")
        for node in never
    ]
    if missing and not never:
        # Ranks are dealt out in blocks almost everywhere: the nodes before and after are a hint.
        near = {came[rank + step] for rank in missing for step in (-1, 1) if rank + step in came}
        listed = ", ".join(map(str, missing))
        hint = f"; ranks beside them are on {', '.join(sorted(near))}" if near else ""
        found.append(
            Finding("presence", "", NodeVerdict.bad, f"ranks {listed} never came {limit}{hint}", "see their logs")
        )
    return found


def silent(answers: RankReplies, came: Mapping[int, str], seconds: float) -> Iterator[Finding]:
    """Findings about ranks that came and did not describe their nodes."""
    for rank in answers.absent:
        said = f"rank {rank} came and did not describe the node within {seconds:.0f} s"
        yield Finding("presence", came[rank], NodeVerdict.bad, said, "a stuck driver or file system: reboot it")
    for rank, error in answers.failed.items():
        yield Finding("presence", came[rank], NodeVerdict.bad, f"rank {rank}: {error}", "see its log")

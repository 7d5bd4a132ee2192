"""Runs all checks on the first rank and makes the report. `rank_tasks` are the tasks that it gives to every rank."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from tempo_megatron.config import Config, PreflightConfig
from tempo_megatron.preflight import (
    bandwidth,
    clocks,
    device_checks,
    memory_and_disk,
    network,
    node_checks,
    rank_placement,
    shared_directory,
)
from tempo_megatron.preflight.bandwidth import Group, GroupBandwidth
from tempo_megatron.preflight.clocks import ClockReading
from tempo_megatron.preflight.findings import Finding, NodeVerdict
from tempo_megatron.preflight.network import AddressListener
from tempo_megatron.preflight.node_facts import Facts, parse_node_facts
from tempo_megatron.preflight.node_reader import read_node
from tempo_megatron.preflight.rendezvous import RankLocation, RankReplies, Rendezvous, Tasks
from tempo_megatron.preflight.report import Report
from tempo_megatron.preflight.shared_directory import SharedDirectoryProbe

_FACTS_SHARE = 1 / 3
"""The share of the time limit in which all ranks describe their nodes, if bandwidth is measured afterwards."""
_REPLY_SECONDS = 10
_CLOCK_ROUNDS = 3
_MIN_MEASURE_SECONDS = 5
"""A measurement is not begun if fewer seconds are left for it."""


def rank_tasks(config: Config, location: RankLocation) -> Tasks:
    """Return what this rank does for each task of the first rank."""
    listener = AddressListener(location.node)
    return {
        "facts": lambda: asdict(read_node()) if location.local_rank == 0 else None,
        "clock": time.time,
        "files": partial(shared_directory.answer_probe, config.run_dir, location.node),
        "remove files": lambda token, levels: SharedDirectoryProbe(config.run_dir, token, levels).remove(location.node),
        "listen": listener.open,
        "reach": partial(network.connection_failures, location.node),
        "stop listening": listener.close,
        "all-reduce": partial(bandwidth.measure_in_subprocess, rank=location.rank),
    }


class CheckRunner:
    """Gives tasks to all ranks and collects findings.

    `expected_nodes` are the nodes that should come, as far as they are known.
    """

    def __init__(self, rendezvous: Rendezvous, config: Config, expected_nodes: Sequence[str]) -> None:
        self._rendezvous, self._config, self._expected_nodes = rendezvous, config, expected_nodes
        self._start = time.monotonic()
        self._findings: list[Finding] = []
        self._nodes: dict[int, str] = {}
        """The node of each rank that came."""
        self._speakers: dict[int, str] = {}
        """The node of each rank that answers for its node, one rank per node."""

    def run(self, *, measure_bandwidth: bool) -> Report:
        """Run every check and return the report. Measuring bandwidth takes most of the time."""
        facts = self._read_facts(self._seconds_left() * (_FACTS_SHARE if measure_bandwidth else 1))
        self._findings += [
            *device_checks.check_devices(facts, self._config),
            *node_checks.check_node(facts, self._config),
        ]
        # The number of nodes that the run asks for: an absent node does not make it another run.
        nodes = math.ceil(self._rendezvous.location.world_size / self._config.parallel.processes_per_node)
        self._findings += memory_and_disk.check_memory(facts, self._config, nodes)
        self._check_clocks()
        self._check_addresses()
        if self._config.run_dir:
            self._check_run_dir()
        if measure_bandwidth:
            # gloo reduces too little data for a comparison of nodes.
            on_gpus = device_checks.runs_on_gpus(facts, self._config)
            self._check_bandwidth(self._config.preflight.bandwidth_share_of_median if on_gpus else 0.0)
            self._check_remaining_nodes(facts)
        return self._report(facts)

    def _report(self, facts: Facts) -> Report:
        return Report(self._ranks_by_node(), self._findings, facts, time.monotonic() - self._start)

    def _check_remaining_nodes(self, facts: Facts) -> None:
        """Check whether the run fits the good nodes, if it would start without the bad ones."""
        report = self._report(facts)
        nodes = report.nodes_to_use(self._config)
        if len(nodes) < len(report.ranks):
            remaining = {node: facts[node] for node in nodes if node in facts}
            self._findings += memory_and_disk.check_memory_of_remaining(remaining, self._config, len(nodes))

    def _ranks_by_node(self) -> dict[str, int]:
        """Return the number of ranks that came from each node, 0 for missing nodes."""
        nodes = list(self._nodes.values())
        complete = len(nodes) == self._rendezvous.location.world_size
        return {node: nodes.count(node) for node in [*nodes, *([] if complete else self._expected_nodes)]}

    def _seconds_left(self) -> float:
        return self._config.preflight.time_limit_seconds - (time.monotonic() - self._start)

    def _read_facts(self, seconds: float) -> Facts:
        """Return the facts of all nodes that describe themselves, and check presence and placement of ranks."""
        nodes = self._rendezvous.present_ranks()
        replies = self._rendezvous.ask("facts", nodes, seconds)
        world_size = self._rendezvous.location.world_size
        self._findings += check_presence(nodes, world_size, self._expected_nodes, self._config.preflight)
        self._findings += check_replies(replies, nodes, seconds)
        self._findings += rank_placement.check_placement(nodes, self._config)
        self._nodes = nodes
        self._speakers = {rank: nodes[rank] for rank, answer in replies.answers.items() if answer is not None}
        return {node: parse_node_facts(replies.answers[rank]) for rank, node in self._speakers.items()}

    def _check_clocks(self) -> None:
        others = [rank for rank in self._speakers if rank != self._rendezvous.location.rank]
        readings: dict[str, list[ClockReading]] = {}
        for _ in range(_CLOCK_ROUNDS if others else 0):
            sent = time.time()
            replies = self._rendezvous.ask("clock", others, min(_REPLY_SECONDS, self._seconds_left()))
            received = time.time()
            for rank, other in replies.answers.items():
                readings.setdefault(self._speakers[rank], []).append(ClockReading(sent, other, received))
        self._findings += clocks.check_clocks(readings, self._config.preflight.clock_skew_seconds)

    def _check_addresses(self) -> None:
        """Check the addresses that gloo would connect to."""
        if len(self._speakers) < 2:
            return
        token = secrets.token_hex(8)
        replies = self._ask_speakers("listen", {"token": token})
        addresses = {self._speakers[rank]: tuple(address) for rank, address in replies.answers.items()}
        remedy = "see its host name, its network and GLOO_SOCKET_IFNAME"
        self._findings += [
            Finding("address", self._speakers[rank], NodeVerdict.bad, error, remedy)
            for rank, error in replies.errors.items()
        ]
        if len(addresses) > 1:
            targets = network.ring_neighbors(list(addresses))
            task = {"addresses": addresses, "targets": targets, "token": token}
            replies = self._ask_speakers("reach", task)
            failures = {self._speakers[rank]: reasons for rank, reasons in replies.answers.items()}
            self._findings += network.check_addresses(addresses, failures)
        self._ask_speakers("stop listening", {})

    def _check_run_dir(self) -> None:
        """Check that run_dir is one directory for all nodes, and its free space."""
        first_node = self._rendezvous.location.node
        probe = SharedDirectoryProbe.on_first_node(self._config.run_dir, secrets.token_hex(8))
        try:
            probe.write(first_node)
        except OSError as error:
            remedy = "make it writable, or choose another run_dir"
            self._findings.append(Finding("shared directory", first_node, NodeVerdict.bad, f"run_dir: {error}", remedy))
            return
        task = {"token": probe.token, "levels": probe.levels}
        replies = self._ask_speakers("files", {"first": first_node, **task})
        answers = {self._speakers[rank]: answer for rank, answer in replies.answers.items()}
        errors = {self._speakers[rank]: error for rank, error in replies.errors.items()}
        errors |= {self._speakers[rank]: f"no answer within {_REPLY_SECONDS} s" for rank in replies.absent}
        seen_by_first = {node for node in answers if probe.sees(node)}
        self._findings += shared_directory.check_shared_directory(answers, errors, seen_by_first)
        self._ask_speakers("remove files", task)
        world_size = self._rendezvous.location.world_size
        self._findings.append(memory_and_disk.check_disk(probe.directory, self._config, world_size))

    def _ask_speakers(self, task: str, arguments: Mapping[str, Any]) -> RankReplies:
        seconds = max(1.0, min(_REPLY_SECONDS, self._seconds_left()))
        return self._rendezvous.ask(task, self._speakers, seconds, arguments)

    def _check_bandwidth(self, share: float) -> None:
        """Measure the nodes that are good so far, because a bad node would hold up the others."""
        limits = self._config.preflight
        ranks: dict[str, list[int]] = {}
        for rank, node in self._nodes.items():
            ranks.setdefault(node, []).append(rank)
        good = self._good_nodes(ranks)
        single_nodes = [(node,) for node in good if len(ranks[node]) > 1]
        later_rounds = len(bandwidth.ring_pairs(good)) + (len(good) > 2)
        results = self._measure(single_nodes, ranks, later_rounds)
        self._findings += bandwidth.check_within_nodes(results, limits.bandwidth_within_gb_per_second, share)
        good = self._good_nodes(ranks)
        rounds = bandwidth.ring_pairs(good)
        pair_results: list[GroupBandwidth] = []
        for round_number, pairs in enumerate(rounds, start=1):
            pair_results += self._measure(pairs, ranks, len(rounds) - round_number + (len(good) > 2))
        self._findings += bandwidth.check_across_nodes(pair_results, limits.bandwidth_across_gb_per_second, share)
        good = self._good_nodes(ranks)
        if len(good) > 2:
            self._findings += [bandwidth.check_all_nodes(result) for result in self._measure([tuple(good)], ranks, 0)]

    def _good_nodes(self, ranks: Mapping[str, Sequence[int]]) -> list[str]:
        bad = {finding.node for finding in self._findings if finding.verdict is NodeVerdict.bad}
        return [node for node in ranks if node not in bad]

    def _measure(
        self, groups: Sequence[Group], ranks: Mapping[str, Sequence[int]], later_rounds: int
    ) -> list[GroupBandwidth]:
        """Measure one round of disjoint groups. The time that is left is shared with `later_rounds` more rounds."""
        if not groups:
            return []
        seconds = (self._seconds_left() - 2) / (1 + later_rounds)
        if seconds < _MIN_MEASURE_SECONDS:
            message = f"not measured: {self._seconds_left():.0f} s of preflight.time_limit_seconds are left"
            self._findings.append(Finding("all-reduce", "", NodeVerdict.warning, message, "raise the limit"))
            return []
        members = {group: [rank for node in group for rank in ranks[node]] for group in groups}
        all_members = [rank for group in members.values() for rank in group]
        # The measurement ends before the task does, so that each rank can still report why.
        task = {"name": secrets.token_hex(4), "groups": list(members.values()), "seconds": seconds - 3}
        replies = self._rendezvous.ask("all-reduce", all_members, seconds, task)
        return bandwidth.group_results(members, replies.answers, replies.errors)


def check_presence(
    nodes: Mapping[int, str], ranks: int, expected_nodes: Sequence[str], limits: PreflightConfig
) -> list[Finding]:
    """Return findings about nodes and ranks that did not come. `nodes` has the node of each rank that came."""
    limit = f"within preflight.presence_seconds, {limits.presence_seconds:g} s"
    missing_ranks = [rank for rank in range(ranks) if rank not in nodes]
    # A node of the Slurm step may have no rank of this run. It is not missing while all ranks are present.
    missing_nodes = [node for node in expected_nodes if missing_ranks and node not in nodes.values()]
    findings = [
        Finding("presence", node, NodeVerdict.bad, f"never came {limit}", "see its slurmd, `sinfo -R`, and its log")
        for node in missing_nodes
    ]
    if missing_ranks and not missing_nodes:
        # Ranks are almost always assigned in blocks: the nodes before and after are a hint.
        neighbors = {nodes[rank + step] for rank in missing_ranks for step in (-1, 1) if rank + step in nodes}
        hint = f"; ranks beside them are on {', '.join(sorted(neighbors))}" if neighbors else ""
        message = f"ranks {', '.join(map(str, missing_ranks))} never came {limit}{hint}"
        findings.append(Finding("presence", "", NodeVerdict.bad, message, "see their logs"))
    return findings


def check_replies(replies: RankReplies, nodes: Mapping[int, str], seconds: float) -> Iterator[Finding]:
    """Yield findings about ranks that came and did not describe their nodes."""
    for rank in replies.absent:
        message = f"rank {rank} came and did not describe the node within {seconds:.0f} s"
        yield Finding("presence", nodes[rank], NodeVerdict.bad, message, "a stuck driver or file system: reboot it")
    for rank, error in replies.errors.items():
        yield Finding("presence", nodes[rank], NodeVerdict.bad, f"rank {rank}: {error}", "see its log")

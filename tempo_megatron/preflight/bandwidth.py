"""All-reduce bandwidth within each node and across nodes, in groups that tell which node is the bad one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tempo_megatron.preflight.facts import Finding, NodeVerdict

_FEWEST_TO_COMPARE = 3
"""of two nodes, nobody knows which is the slow one"""

Group = tuple[str, ...]
"""nodes whose ranks reduce together"""


@dataclass(frozen=True)
class Measured:
    """What became of one group."""

    group: Group
    gb_per_second: float
    """of the slowest rank; 0: failed"""
    reason: str = ""
    """why it failed"""


def ring(nodes: Sequence[str]) -> list[list[Group]]:
    """Rounds of pairs that run at the same time; each node meets both its neighbors in a ring of all nodes.

    A bad node spoils both its pairs, a good one beside it has another neighbor.
    """
    if len(nodes) < 2:
        return []
    pairs: list[Group] = [(node, nodes[(at + 1) % len(nodes)]) for at, node in enumerate(nodes)]
    if len(nodes) == 2:
        return [[pairs[0]]]
    if len(nodes) % 2:
        return [pairs[:-1:2], pairs[1::2], pairs[-1:]]
    return [pairs[::2], pairs[1::2]]


def within(measured: Sequence[Measured], least: float, share: float) -> Iterator[Finding]:
    """Findings about single nodes. `least` GB/s, and `share` of the nodes' median, are what a good one has."""
    of_nodes = {made.group[0]: made for made in measured}
    yield from _compared("all-reduce within", of_nodes, least, "preflight.bandwidth_within_gb_per_second", share)


def across(measured: Sequence[Measured], least: float, share: float) -> Iterator[Finding]:
    """The same about the nodes of pairs: each is as good as its better pair."""
    best: dict[str, Measured] = {}
    for made in measured:
        for node in made.group:
            if node not in best or made.gb_per_second > best[node].gb_per_second:
                best[node] = made
    yield from _compared("all-reduce across", best, least, "preflight.bandwidth_across_gb_per_second", share)


def together(made: Measured) -> Finding:
    """The finding about all nodes at once."""
    return _finding("all-reduce of all", "", made, 0.0, "")


def _compared(check: str, of_nodes: Mapping[str, Measured], least: float, key: str, share: float) -> Iterator[Finding]:
    reason = f"{key} is {least:g}"
    worked = [made.gb_per_second for made in of_nodes.values() if made.gb_per_second]
    if len(worked) >= _FEWEST_TO_COMPARE and share * median(worked) > least:
        least = share * median(worked)
        reason = f"the nodes' median is {median(worked):.3g}, preflight.bandwidth_share_of_median {share:g}"
    for node, made in of_nodes.items():
        yield _finding(check, node, made, least, reason)


def _finding(check: str, node: str, made: Measured, least: float, reason: str) -> Finding:
    others = ", ".join(other for other in made.group if other != node)
    beside = f" with {others}" if others and node else ""
    if not made.gb_per_second:
        remedy = "see NCCL_DEBUG=INFO; look at NVLink, the network and NCCL_SOCKET_IFNAME"
        return Finding(check, node, NodeVerdict.bad, f"failed{beside}: {made.reason}", remedy)
    found = f"{made.gb_per_second:.3g} GB/s{beside}"
    if made.gb_per_second < least:
        remedy = "NCCL_DEBUG=INFO says which links are used; look for one that is down or NCCL_* that forbids it"
        return Finding(check, node, NodeVerdict.bad, f"{found}, {reason}", remedy)
    return Finding(check, node, NodeVerdict.good, found)


def reduce_in_process(name: str, groups: Sequence[Sequence[int]], seconds: float, rank: int) -> float:
    """GB/s that this rank's group of `groups` (lists of ranks) has, measured in another process.

    Raises RuntimeError when it fails or takes longer than `seconds`.
    """
    at, mine = next((at, group) for at, group in enumerate(groups) if rank in group)
    place = {"group": f"{name}/{at}", "rank": mine.index(rank), "size": len(mine), "seconds": seconds}
    command = [sys.executable, "-m", "tempo_megatron.preflight.all_reduce"]
    try:
        done = subprocess.run(
            [*command, *(f"--{key}={value}" for key, value in place.items())],
            capture_output=True,
            text=True,
            timeout=seconds + 2,
            env=os.environ,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no end within {seconds:.0f} s") from None
    if done.returncode:
        raise RuntimeError(_reason(done.stderr, done.returncode, seconds))
    return float(done.stdout.split()[-1])


def _reason(stderr: str, code: int, seconds: float) -> str:
    """One line for what a measurement died of."""
    if "Timeout (" in stderr:
        return f"no end within {seconds:.0f} s"
    errors = [line for line in stderr.splitlines() if "Error" in line and not line.startswith(" ")]
    return errors[-1].strip() if errors else f"exit code {code}"


def collected(
    groups: Mapping[Group, Sequence[int]], given: Mapping[int, float], failed: Mapping[int, str]
) -> list[Measured]:
    """A round's results by group, from what its ranks said: GB/s, a failure or nothing."""
    found = []
    for group, ranks in groups.items():
        reasons = [f"rank {rank}: {failed.get(rank, 'no answer')}" for rank in ranks if rank not in given]
        speed = 0.0 if reasons else min(given[rank] for rank in ranks)
        found.append(Measured(group, speed, "; ".join(reasons[:3])))
    return found

"""Measures the all-reduce bandwidth within nodes and across nodes, in groups that single out a bad node."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tempo_megatron.preflight.findings import Finding, NodeVerdict

_MIN_NODES_TO_COMPARE = 3
"""The fewest nodes that are compared. With two nodes it is unknown which is the slow one."""

Group = tuple[str, ...]
"""The nodes whose ranks reduce together."""


@dataclass(frozen=True)
class GroupBandwidth:
    """The result of one group's measurement."""

    group: Group
    gb_per_second: float
    """The bandwidth of the slowest rank; 0 if the measurement failed."""
    reason: str = ""
    """Why the measurement failed."""


def ring_pairs(nodes: Sequence[str]) -> list[list[Group]]:
    """Return rounds of disjoint pairs that are measured at the same time.

    Each node is paired with both its neighbors in a ring of all nodes. A bad node spoils both its pairs, while its
    neighbors are good in their other pair.
    """
    if len(nodes) < 2:
        return []
    pairs: list[Group] = [(node, nodes[(index + 1) % len(nodes)]) for index, node in enumerate(nodes)]
    if len(nodes) == 2:
        return [[pairs[0]]]
    if len(nodes) % 2:
        return [pairs[:-1:2], pairs[1::2], pairs[-1:]]
    return [pairs[::2], pairs[1::2]]


def check_within_nodes(results: Sequence[GroupBandwidth], minimum: float, share: float) -> Iterator[Finding]:
    """Yield findings about single nodes. A good node reaches `minimum` GB/s, and `share` of the nodes' median."""
    by_node = {result.group[0]: result for result in results}
    yield from _check_nodes("all-reduce within", by_node, minimum, "preflight.bandwidth_within_gb_per_second", share)


def check_across_nodes(results: Sequence[GroupBandwidth], minimum: float, share: float) -> Iterator[Finding]:
    """Yield the same findings for the results of pairs. The better pair of a node counts."""
    best: dict[str, GroupBandwidth] = {}
    for result in results:
        for node in result.group:
            if node not in best or result.gb_per_second > best[node].gb_per_second:
                best[node] = result
    yield from _check_nodes("all-reduce across", best, minimum, "preflight.bandwidth_across_gb_per_second", share)


def check_all_nodes(result: GroupBandwidth) -> Finding:
    """Return the finding about all nodes together."""
    return _finding("all-reduce of all", "", result, 0.0, "")


def _check_nodes(
    check: str, by_node: Mapping[str, GroupBandwidth], minimum: float, key: str, share: float
) -> Iterator[Finding]:
    reason = f"{key} is {minimum:g}"
    speeds = [result.gb_per_second for result in by_node.values() if result.gb_per_second]
    if len(speeds) >= _MIN_NODES_TO_COMPARE and share * median(speeds) > minimum:
        minimum = share * median(speeds)
        reason = f"the nodes' median is {median(speeds):.3g}, preflight.bandwidth_share_of_median {share:g}"
    for node, result in by_node.items():
        yield _finding(check, node, result, minimum, reason)


def _finding(check: str, node: str, result: GroupBandwidth, minimum: float, reason: str) -> Finding:
    others = ", ".join(other for other in result.group if other != node)
    partners = f" with {others}" if others and node else ""
    if not result.gb_per_second:
        remedy = "see NCCL_DEBUG=INFO; look at NVLink, the network and NCCL_SOCKET_IFNAME"
        return Finding(check, node, NodeVerdict.bad, f"failed{partners}: {result.reason}", remedy)
    message = f"{result.gb_per_second:.3g} GB/s{partners}"
    if result.gb_per_second < minimum:
        remedy = "NCCL_DEBUG=INFO says which links are used; look for one that is down or NCCL_* that forbids it"
        return Finding(check, node, NodeVerdict.bad, f"{message}, {reason}", remedy)
    return Finding(check, node, NodeVerdict.good, message)


def measure_in_subprocess(name: str, groups: Sequence[Sequence[int]], seconds: float, rank: int) -> float:
    """Return the bandwidth in GB/s of this rank's group, measured in another process.

    `groups` are lists of ranks that are measured at the same time. Raises RuntimeError if the measurement fails or
    takes longer than `seconds`.
    """
    group_index, ranks = next((index, group) for index, group in enumerate(groups) if rank in group)
    options = {
        "group": f"{name}/{group_index}",
        "rank": ranks.index(rank),
        "size": len(ranks),
        "seconds": seconds,
    }
    command = [sys.executable, "-m", "tempo_megatron.preflight.all_reduce"]
    try:
        process = subprocess.run(
            [*command, *(f"--{key}={value}" for key, value in options.items())],
            capture_output=True,
            text=True,
            timeout=seconds + 2,
            env=os.environ,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no end within {seconds:.0f} s") from None
    if process.returncode:
        raise RuntimeError(_failure_reason(process.stderr, process.returncode, seconds))
    return float(process.stdout.split()[-1])


def _failure_reason(stderr: str, code: int, seconds: float) -> str:
    """Return why a measurement failed, in one line."""
    if "Timeout (" in stderr:
        return f"no end within {seconds:.0f} s"
    errors = [line for line in stderr.splitlines() if "Error" in line and not line.startswith(" ")]
    return errors[-1].strip() if errors else f"exit code {code}"


def group_results(
    groups: Mapping[Group, Sequence[int]], speeds: Mapping[int, float], errors: Mapping[int, str]
) -> list[GroupBandwidth]:
    """Return one result per group. `groups` has the ranks of each, `speeds` their GB/s, `errors` their failures.

    A rank that is in neither `speeds` nor `errors` gave no answer.
    """
    results = []
    for group, ranks in groups.items():
        reasons = [f"rank {rank}: {errors.get(rank, 'no answer')}" for rank in ranks if rank not in speeds]
        slowest = 0.0 if reasons else min(speeds[rank] for rank in ranks)
        results.append(GroupBandwidth(group, slowest, "; ".join(reasons[:3])))
    return results

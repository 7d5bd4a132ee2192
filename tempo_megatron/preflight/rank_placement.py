"""Checks that neighboring ranks share a node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tempo_megatron.config import Config
from tempo_megatron.preflight.findings import Finding, NodeVerdict

CHECK = "placement"
"""The name of this check. Other nodes would not remedy what it finds."""


def check_placement(nodes: Mapping[int, str], config: Config) -> Iterator[Finding]:
    """Yield a finding if neighboring ranks are on different nodes. `nodes` has the node of each rank.

    Ranks of one tensor- or context-parallel group are neighbors and communicate in every layer. If they are dealt out
    over nodes, they communicate over the network.
    """
    ranks: dict[str, list[int]] = {}
    for rank in sorted(nodes):
        ranks.setdefault(nodes[rank], []).append(rank)
    split = {node: node_ranks for node, node_ranks in ranks.items() if _has_others_between(node_ranks, nodes)}
    if not split:
        return
    examples = "; ".join(
        f"{node} has ranks {', '.join(map(str, node_ranks[:4]))}" for node, node_ranks in list(split.items())[:3]
    )
    parallel = config.parallel
    neighbors = parallel.tensor_model_parallel_size * parallel.context_parallel_size
    verdict = NodeVerdict.bad if neighbors > 1 else NodeVerdict.warning
    message = f"neighboring ranks are on different nodes: {examples}"
    yield Finding(CHECK, "", verdict, message, "srun --distribution=block, and unset SLURM_DISTRIBUTION")


def _has_others_between(ranks: list[int], nodes: Mapping[int, str]) -> bool:
    return any(nodes.get(rank, nodes[ranks[0]]) != nodes[ranks[0]] for rank in range(ranks[0], ranks[-1]))

"""Where a step's ranks are: neighbors in number ought to share a node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tempo_megatron.config import Config
from tempo_megatron.preflight.facts import Finding, NodeVerdict

CHECK = "placement"


def check_placement(nodes: Mapping[int, str], config: Config) -> Iterator[Finding]:
    """The finding about ranks by their nodes. Ranks of one tensor- or context-parallel group are neighbors, and talk
    in every layer: those that are dealt out over nodes do so over the network."""
    ranks: dict[str, list[int]] = {}
    for rank in sorted(nodes):
        ranks.setdefault(nodes[rank], []).append(rank)
    split = {node: here for node, here in ranks.items() if _has_others_between(here, nodes)}
    if not split:
        return
    shown = "; ".join(f"{node} has ranks {', '.join(map(str, here[:4]))}" for node, here in list(split.items())[:3])
    parallel = config.parallel
    neighbors = parallel.tensor_model_parallel_size * parallel.context_parallel_size
    verdict = NodeVerdict.bad if neighbors > 1 else NodeVerdict.warning
    place = f"neighboring ranks are on different nodes: {shown}"
    yield Finding(CHECK, "", verdict, place, "srun --distribution=block, and unset SLURM_DISTRIBUTION")


def _has_others_between(ranks: list[int], nodes: Mapping[int, str]) -> bool:
    return any(nodes.get(rank, nodes[ranks[0]]) != nodes[ranks[0]] for rank in range(ranks[0], ranks[-1]))

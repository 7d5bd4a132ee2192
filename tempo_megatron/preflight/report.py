"""What the checks come to: which nodes are good, whether training may start and on which, a table and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tempo_megatron.config import BadNodes, Config
from tempo_megatron.preflight import placement, room
from tempo_megatron.preflight.facts import Facts, Finding, NodeVerdict


@dataclass(frozen=True)
class Report:
    """All findings about the nodes of a run."""

    ranks: Mapping[str, int]
    """node: ranks that came from it, in the order of ranks; nodes that were awaited in vain have 0"""
    findings: Sequence[Finding]
    facts: Facts
    seconds: float

    @property
    def bad_nodes(self) -> list[str]:
        bad = {finding.node for finding in self.findings if finding.verdict is NodeVerdict.bad}
        return [node for node in self.ranks if node in bad]

    @property
    def is_good(self) -> bool:
        return all(finding.verdict is not NodeVerdict.bad for finding in self.findings)

    @property
    def others_may_do(self) -> bool:
        """Whether nothing is wrong that other nodes would have too."""
        bad = [finding for finding in self.findings if finding.verdict is NodeVerdict.bad]
        of_the_run = {finding.check for finding in bad if not finding.node} & {*room.CHECKS, placement.CHECK}
        if any(finding.check == "presence" for finding in bad):
            of_the_run.discard("memory")  # what is usual is not known of so few
        return not of_the_run

    @property
    def is_spotless(self) -> bool:
        """Not even a warning."""
        return all(finding.verdict is NodeVerdict.good for finding in self.findings)

    def nodes_to_use(self, config: Config) -> list[str]:
        """The nodes that training can start on, as `preflight.bad_nodes` has it; empty when it cannot start."""
        everything = list(self.ranks)
        if self.is_good or config.preflight.bad_nodes is BadNodes.report:
            return everything
        of_the_run = any(finding.verdict is NodeVerdict.bad and not finding.node for finding in self.findings)
        if config.preflight.bad_nodes is BadNodes.fail or of_the_run:
            return []
        return enough_for_layout([node for node in everything if node not in self.bad_nodes], self.ranks, config)

    def table(self, config: Config) -> str:
        """Every finding that is not good, a row each, then what is good in one line a check."""
        use = self.nodes_to_use(config)
        wrong = [finding for finding in self.findings if finding.verdict is not NodeVerdict.good]
        rows = [("node", "verdict", "check", "found")]
        rows += [(finding.node or "all", finding.verdict.value, finding.check, finding.found) for finding in wrong]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = []
        for row, finding in zip(rows, [None, *wrong], strict=True):
            lines.append("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))
            if finding and finding.remedy:
                lines.append(" " * (sum(widths) + 6) + f"-> {finding.remedy}")
        return "\n".join([*(lines if wrong else []), *self._good(), "", self._summary(use)])

    def _good(self) -> Iterator[str]:
        for check in dict.fromkeys(finding.check for finding in self.findings):
            good = [made for made in self.findings if made.check == check and made.verdict is NodeVerdict.good]
            if good:
                found = list(dict.fromkeys(made.found for made in good))
                shown = found[0] if len(found) == 1 else f"{found[0]} ... {found[-1]}"
                where = f" on {len(good)} of {len(self.ranks)} nodes" if good[0].node else ""
                yield f"good: {check}{where}: {shown}"

    def _summary(self, use: Sequence[str]) -> str:
        good = len(self.ranks) - len(self.bad_nodes)
        begin = f"{good} of {len(self.ranks)} nodes good, {self.seconds:.1f} s"
        if not use:
            return f"{begin}: training cannot start"
        left_out = [node for node in self.ranks if node not in use]
        return f"{begin}: training can start" + (f" without {', '.join(left_out)}" if left_out else "")

    def to_json(self, config: Config) -> dict[str, Any]:
        """Everything, for machines."""
        use = self.nodes_to_use(config)
        return {
            "may_start": bool(use),
            "nodes_to_use": use,
            "bad_nodes": self.bad_nodes,
            "seconds": round(self.seconds, 2),
            "findings": [asdict(finding) for finding in self.findings],
            "nodes": {
                node: {"ranks": ranks, "facts": asdict(self.facts[node]) if node in self.facts else None}
                for node, ranks in self.ranks.items()
            },
        }


def enough_for_layout(good: Sequence[str], ranks: Mapping[str, int], config: Config) -> list[str]:
    """The first of the good nodes, as many as TP x PP x CP and vLLM's replicas can be laid out on; empty if none."""
    parallel = config.parallel
    tensor = parallel.tensor_model_parallel_size
    model = tensor * parallel.pipeline_model_parallel_size * parallel.context_parallel_size
    unit = math.lcm(model, config.generation.tensor_parallel_size or tensor)
    for wanted in range(len(good), 0, -1):
        if sum(ranks[node] for node in good[:wanted]) % unit == 0:
            return list(good[:wanted])
    return []


def as_text(found: Mapping[str, Any]) -> str:
    return json.dumps(found, indent=2) + "\n"

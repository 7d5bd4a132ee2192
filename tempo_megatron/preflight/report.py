"""The report on all findings: which nodes are good, whether training may start and on which, a table and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tempo_megatron.config import BadNodes, Config
from tempo_megatron.preflight import memory_and_disk, rank_placement
from tempo_megatron.preflight.findings import Finding, NodeVerdict
from tempo_megatron.preflight.node_facts import Facts


@dataclass(frozen=True)
class Report:
    """All findings about the nodes of a run."""

    ranks: Mapping[str, int]
    """The number of ranks that came from each node, in the order of ranks. Missing nodes have 0."""
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
    def other_nodes_may_help(self) -> bool:
        """Whether other nodes might remedy all that is bad."""
        bad = [finding for finding in self.findings if finding.verdict is NodeVerdict.bad]
        of_the_run = {finding.check for finding in bad if not finding.node}
        not_remedied = of_the_run & {*memory_and_disk.CHECKS, rank_placement.CHECK}
        if any(finding.check == "presence" for finding in bad):
            not_remedied.discard("memory")  # the median of an incomplete set of nodes is no reference
        return not not_remedied

    @property
    def has_no_warnings(self) -> bool:
        """Whether there is neither a bad finding nor a warning."""
        return all(finding.verdict is NodeVerdict.good for finding in self.findings)

    def nodes_to_use(self, config: Config) -> list[str]:
        """Return the nodes that training can start on under `preflight.bad_nodes`; empty if it cannot start."""
        all_nodes = list(self.ranks)
        if self.is_good or config.preflight.bad_nodes is BadNodes.report:
            return all_nodes
        run_is_bad = any(finding.verdict is NodeVerdict.bad and not finding.node for finding in self.findings)
        if config.preflight.bad_nodes is BadNodes.fail or run_is_bad:
            return []
        return enough_for_layout([node for node in all_nodes if node not in self.bad_nodes], self.ranks, config)

    def table(self, config: Config) -> str:
        """Return one row per finding that is not good, then one line per check with good findings."""
        problems = [finding for finding in self.findings if finding.verdict is not NodeVerdict.good]
        rows = [("node", "verdict", "check", "finding")]
        rows += [(finding.node or "all", finding.verdict.value, finding.check, finding.message) for finding in problems]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = []
        for row, finding in zip(rows, [None, *problems], strict=True):
            lines.append("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))
            if finding and finding.remedy:
                lines.append(" " * (sum(widths) + 6) + f"-> {finding.remedy}")
        return "\n".join(
            [*(lines if problems else []), *self._good_checks(), "", self._summary(self.nodes_to_use(config))]
        )

    def _good_checks(self) -> Iterator[str]:
        for check in dict.fromkeys(finding.check for finding in self.findings):
            good = [
                finding for finding in self.findings if finding.check == check and finding.verdict is NodeVerdict.good
            ]
            if good:
                messages = list(dict.fromkeys(finding.message for finding in good))
                message = messages[0] if len(messages) == 1 else f"{messages[0]} ... {messages[-1]}"
                nodes = f" on {len(good)} of {len(self.ranks)} nodes" if good[0].node else ""
                yield f"good: {check}{nodes}: {message}"

    def _summary(self, nodes_to_use: Sequence[str]) -> str:
        good = len(self.ranks) - len(self.bad_nodes)
        summary = f"{good} of {len(self.ranks)} nodes good, {self.seconds:.1f} s"
        if not nodes_to_use:
            return f"{summary}: training cannot start"
        left_out = [node for node in self.ranks if node not in nodes_to_use]
        return f"{summary}: training can start" + (f" without {', '.join(left_out)}" if left_out else "")

    def to_json(self, config: Config) -> dict[str, Any]:
        """Return all findings and facts for JSON."""
        nodes_to_use = self.nodes_to_use(config)
        return {
            "may_start": bool(nodes_to_use),
            "nodes_to_use": nodes_to_use,
            "bad_nodes": self.bad_nodes,
            "seconds": round(self.seconds, 2),
            "findings": [asdict(finding) for finding in self.findings],
            "nodes": {
                node: {"ranks": ranks, "facts": asdict(self.facts[node]) if node in self.facts else None}
                for node, ranks in self.ranks.items()
            },
        }


def enough_for_layout(good: Sequence[str], ranks: Mapping[str, int], config: Config) -> list[str]:
    """Return the first good nodes, as many as TP x PP x CP and vLLM's replicas divide evenly; empty if none.

    `ranks` has the number of ranks of each node.
    """
    parallel = config.parallel
    tensor = parallel.tensor_model_parallel_size
    model = tensor * parallel.pipeline_model_parallel_size * parallel.context_parallel_size
    unit = math.lcm(model, config.generation.tensor_parallel_size or tensor)
    for number in range(len(good), 0, -1):
        if sum(ranks[node] for node in good[:number]) % unit == 0:
            return list(good[:number])
    return []


def as_text(report: Mapping[str, Any]) -> str:
    """Return the JSON text of `Report.to_json`."""
    return json.dumps(report, indent=2) + "\n"

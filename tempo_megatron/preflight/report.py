"""The result of the checks: which nodes are good, on which nodes training can start, a table, and JSON."""

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

TABLE_HEADS = ("node", "verdict", "check", "finding", "remedy")


@dataclass(frozen=True)
class Report:
    """All findings about the nodes of a run."""

    ranks: Mapping[str, int]
    """The number of ranks that came from each node, in the order of ranks; 0 for a node that never came."""
    findings: Sequence[Finding]
    facts: Facts
    seconds: float
    """The checks took so many seconds."""

    @property
    def bad_nodes(self) -> list[str]:
        """The nodes that have a bad finding."""
        bad = {finding.node for finding in self.findings if finding.verdict is NodeVerdict.bad}
        return [node for node in self.ranks if node in bad]

    @property
    def is_good(self) -> bool:
        return all(finding.verdict is not NodeVerdict.bad for finding in self.findings)

    @property
    def other_nodes_may_help(self) -> bool:
        """Whether the run might start on other nodes: no bad finding holds for nodes of any kind."""
        bad = [finding for finding in self.findings if finding.verdict is NodeVerdict.bad]
        run_checks = {finding.check for finding in bad if not finding.node} & {
            *memory_and_disk.CHECKS,
            rank_placement.CHECK,
        }
        if any(finding.check == "presence" for finding in bad):
            run_checks.discard("memory")  # too few nodes came to know what memory is usual
        return not run_checks

    @property
    def has_no_warnings(self) -> bool:
        """Whether no finding is bad or a warning."""
        return all(finding.verdict is NodeVerdict.good for finding in self.findings)

    def nodes_to_use(self, config: Config) -> list[str]:
        """Returns the nodes that training can start on by the rule of `preflight.bad_nodes`; none when it cannot
        start."""
        nodes = list(self.ranks)
        if self.is_good or config.preflight.bad_nodes is BadNodes.report:
            return nodes
        is_run_bad = any(finding.verdict is NodeVerdict.bad and not finding.node for finding in self.findings)
        if config.preflight.bad_nodes is BadNodes.fail or is_run_bad:
            return []
        return enough_for_layout([node for node in nodes if node not in self.bad_nodes], self.ranks, config)

    def table(self, config: Config) -> str:
        """Returns the report as text: a row for each finding that is not good, then a line for each check that is good,
        then a summary."""
        wrong = self._findings_not_good()
        rows: list[tuple[str, ...]] = [TABLE_HEADS[:4]]
        rows += [row[:4] for row in self.rows()[: len(wrong)]]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = []
        for row, finding in zip(rows, [None, *wrong], strict=True):
            lines.append("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))
            if finding and finding.remedy:
                lines.append(" " * (sum(widths) + 6) + f"-> {finding.remedy}")
        good = (f"good: {check}{place}: {value}" for check, place, value in self._good_checks())
        return "\n".join([*(lines if wrong else []), *good, "", self.summary(config)])

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Returns the report's rows under TABLE_HEADS: each finding that is not good, then each check that is good."""
        wrong = [
            (finding.node or "all", finding.verdict.value, finding.check, finding.message, finding.remedy)
            for finding in self._findings_not_good()
        ]
        good = [
            (place.removeprefix(" on ") or "all", NodeVerdict.good.value, check, value, "")
            for check, place, value in self._good_checks()
        ]
        return wrong + good

    def _findings_not_good(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict is not NodeVerdict.good]

    def _good_checks(self) -> Iterator[tuple[str, str, str]]:
        """Yields each check that some nodes pass, how many nodes pass it, in words, and the values that were found."""
        for check in dict.fromkeys(finding.check for finding in self.findings):
            good = [
                finding for finding in self.findings if finding.check == check and finding.verdict is NodeVerdict.good
            ]
            if good:
                values = list(dict.fromkeys(finding.message for finding in good))
                place = f" on {len(good)} of {len(self.ranks)} nodes" if good[0].node else ""
                yield check, place, values[0] if len(values) == 1 else f"{values[0]} ... {values[-1]}"

    def summary(self, config: Config) -> str:
        """Returns a line that says how many nodes are good and whether training can start."""
        nodes = self.nodes_to_use(config)
        good = len(self.ranks) - len(self.bad_nodes)
        counts = f"{good} of {len(self.ranks)} nodes good, {self.seconds:.1f} s"
        if not nodes:
            return f"{counts}: training cannot start"
        left_out = [node for node in self.ranks if node not in nodes]
        return f"{counts}: training can start" + (f" without {', '.join(left_out)}" if left_out else "")

    def to_json(self, config: Config) -> dict[str, Any]:
        """Returns the whole report for machines."""
        nodes = self.nodes_to_use(config)
        return {
            "may_start": bool(nodes),
            "nodes_to_use": nodes,
            "bad_nodes": self.bad_nodes,
            "seconds": round(self.seconds, 2),
            "findings": [asdict(finding) for finding in self.findings],
            "nodes": {
                node: {"ranks": ranks, "facts": asdict(self.facts[node]) if node in self.facts else None}
                for node, ranks in self.ranks.items()
            },
        }


def enough_for_layout(good: Sequence[str], ranks: Mapping[str, int], config: Config) -> list[str]:
    """Returns the first good nodes, as many as the layout and vLLM's replicas fit on; none if too few."""
    parallel = config.parallel
    tensor_ranks = parallel.tensor_model_parallel_size
    model_ranks = tensor_ranks * parallel.pipeline_model_parallel_size * parallel.context_parallel_size
    expert_ranks = parallel.expert_model_parallel_size * parallel.pipeline_model_parallel_size
    unit = math.lcm(model_ranks, expert_ranks, config.generation.tensor_parallel_size or tensor_ranks)
    for count in range(len(good), 0, -1):
        if sum(ranks[node] for node in good[:count]) % unit == 0:
            return list(good[:count])
    return []


def as_text(report: Mapping[str, Any]) -> str:
    """Returns a report of `Report.to_json` as the text of a file."""
    return json.dumps(report, indent=2) + "\n"

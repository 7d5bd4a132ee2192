"""What a check reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class NodeVerdict(StrEnum):
    """Whether training can start on a node."""

    good = "good"
    warning = "warning"
    """Training can start, but slower or at a risk."""
    bad = "bad"


@dataclass(frozen=True)
class Finding:
    """What one check reports about one node, or about the run as a whole if `node` is empty."""

    check: str
    node: str
    verdict: NodeVerdict
    message: str
    remedy: str = ""


def most_common(values: Mapping[str, str]) -> str:
    """Return the most frequent value of the nodes, or "" without nodes. Among equals the first node's value wins."""
    return Counter(values.values()).most_common(1)[0][0] if values else ""

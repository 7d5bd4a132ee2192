"""Checks that the clocks of all nodes agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tempo_megatron.preflight.findings import Finding, NodeVerdict


@dataclass(frozen=True)
class ClockReading:
    """Another node's time, and the first node's time before it sent the request and after it got the answer.

    All are in seconds.
    """

    sent: float
    other: float
    received: float

    @property
    def least_skew(self) -> float:
        """The seconds that the other clock is at least ahead (behind: negative), however long each way took."""
        if self.sent <= self.other <= self.received:
            return 0.0
        return self.other - self.received if self.other > self.received else self.other - self.sent

    @property
    def uncertainty(self) -> float:
        """The seconds by which the estimated skew may be wrong."""
        return (self.received - self.sent) / 2


def check_clocks(readings: Mapping[str, Sequence[ClockReading]], limit: float) -> Iterator[Finding]:
    """Yield one finding per node, from its quickest reading. `limit` is the largest skew of a good node in seconds."""
    for node, node_readings in readings.items():
        best = min(node_readings, key=lambda reading: reading.uncertainty)
        if abs(best.least_skew) > limit:
            direction = "ahead of" if best.least_skew > 0 else "behind"
            yield Finding(
                "clock",
                node,
                NodeVerdict.bad,
                f"{abs(best.least_skew):.1f} s {direction} the first node's, preflight.clock_skew_seconds is {limit:g}",
                "start its time service (chronyd, ntpd)",
            )
        else:
            skew = best.other - (best.sent + best.received) / 2
            yield Finding("clock", node, NodeVerdict.good, f"{skew:+.3f} s, give or take {best.uncertainty:.3f}")

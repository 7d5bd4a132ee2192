"""What takes two to find out: clocks that differ, and a directory that is not the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempo_megatron.preflight.facts import Finding, NodeVerdict


@dataclass(frozen=True)
class ClockReading:
    """Another node's time in seconds, and the first node's before it asked and after it had the answer."""

    asked: float
    said: float
    heard: float

    @property
    def least_skew(self) -> float:
        """Seconds that the other clock is ahead (behind: negative) at least, however long each way took."""
        if self.asked <= self.said <= self.heard:
            return 0.0
        return self.said - self.heard if self.said > self.heard else self.said - self.asked

    @property
    def uncertainty(self) -> float:
        return (self.heard - self.asked) / 2


def clocks(readings: Mapping[str, Sequence[ClockReading]], limit: float) -> Iterator[Finding]:
    """A finding a node, by its quickest reading."""
    for node, made in readings.items():
        best = min(made, key=lambda reading: reading.uncertainty)
        if abs(best.least_skew) > limit:
            way = "ahead of" if best.least_skew > 0 else "behind"
            yield Finding(
                "clock",
                node,
                NodeVerdict.bad,
                f"{abs(best.least_skew):.1f} s {way} the first node's, preflight.clock_skew_seconds is {limit:g}",
                "start its time service (chronyd, ntpd)",
            )
        else:
            skew = best.said - (best.asked + best.heard) / 2
            yield Finding("clock", node, NodeVerdict.good, f"{skew:+.3f} s, give or take {best.uncertainty:.3f}")


@dataclass(frozen=True)
class Exchange:
    """Files that two nodes show each other where `run_dir` is, or would be made; nothing of them stays.

    `levels` is how many of run_dir's last parts do not exist yet on the first node. The directory is looked up by each
    node in its own settings: a path that means another place elsewhere is just what is searched for.
    """

    run_dir: str
    token: str
    levels: int

    @staticmethod
    def of(run_dir: str, token: str) -> Exchange:
        """For the first node, which exchanges in the nearest directory that exists."""
        path = Path(run_dir).absolute()
        levels = next(at for at, directory in enumerate([path, *path.parents]) if directory.is_dir())
        return Exchange(run_dir, token, levels)

    @property
    def directory(self) -> Path:
        path = Path(self.run_dir).absolute()
        return [path, *path.parents][self.levels]

    def show(self, name: str) -> None:
        """Write this node's file. Raises OSError."""
        self._file(name).write_text(self.token)

    def sees(self, name: str) -> bool:
        """Whether another node's file can be read here."""
        try:
            return self._file(name).read_text() == self.token
        except OSError:
            return False

    def remove(self, name: str) -> None:
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.directory / f".preflight-{self.token}-{name}"


def answer(run_dir: str, node: str, first: str, token: str, levels: int) -> dict[str, Any]:
    """What a node does: look for the first node's file and, if it is there, write its own."""
    exchange = Exchange(run_dir, token, levels)
    seen = exchange.sees(first)
    if seen and node != first:
        exchange.show(node)
    return {"directory": str(exchange.directory), "seen": seen}


def files(
    answers: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str], seen_back: set[str]
) -> Iterator[Finding]:
    """A finding a node, from what it answered, or the error that it had, and whether its file is seen by the first."""
    remedy = "mount the same file system at the same path on all nodes (container: mount it there too), writable"
    for node, error in failed.items():
        yield Finding("shared directory", node, NodeVerdict.bad, f"run_dir: {error}", remedy)
    for node, said in answers.items():
        where = said["directory"]
        if not said["seen"]:
            found = f"{where} is not the first node's: a file that it wrote there is not seen"
            yield Finding("shared directory", node, NodeVerdict.bad, found, remedy)
        elif node not in seen_back:
            found = f"a file written to {where} is not seen by the first node"
            yield Finding("shared directory", node, NodeVerdict.bad, found, remedy)
        else:
            yield Finding("shared directory", node, NodeVerdict.good, f"{where} is the same")

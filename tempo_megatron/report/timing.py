"""Where a run's time and memory go."""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import median

from tempo_megatron.report.panels import Line, Panel, Section
from tempo_megatron.report.reading import Row, RunRecord

_GROUPS = {
    "generating": ("sync", "generate", "grade", "vote"),
    "critic": ("values", "e_step", "critic_metrics"),
    "policy": ("advantages", "m_step"),
    "evaluating and saving": ("evaluate", "token_samples", "observe", "save", "export"),
}
"""What a bar is made of. A selection of a checkpoint generates and scores, and is counted there."""
_PHASES_WITHIN_OTHERS = ("select_checkpoint", "offload", "replica_idle")
"""Times that are parts of phases, or contain phases."""


@dataclass(frozen=True)
class PhaseUse:
    """What a phase used over the whole run."""

    name: str
    seconds: float
    share: float
    """Of the seconds of all phases."""
    peak_gib: float | None
    """The highest memory in use in it; None where none was measured."""
    iteration_seconds: float | None
    """The median over the iterations that have the phase; None where none has it."""
    planned_seconds: float | None
    """What `tempo plan` predicted for an iteration; None where it predicted nothing."""
    planned_gib: float | None
    """What `tempo plan` predicted for the device's memory."""


@dataclass(frozen=True)
class Memory:
    """The memory that `PhaseUse.peak_gib` is about."""

    kind: str
    """`device` or `host`."""
    total_gib: float | None
    """The memory of the device; None where it was not recorded."""


def time_section(record: RunRecord) -> Section:
    """Return seconds per iteration by group of phases, and the speed of generation."""
    rows = [row for row in record.training_rows() if row["iteration"] > 0]
    x = [float(row["iteration"]) for row in rows]
    lines = [Line(name, x, [_seconds(row, phases) for row in rows]) for name, phases in _GROUPS.items()]
    bars = Panel(
        "Seconds of an iteration",
        "Each bar is the time since the line before it. Iterations with an evaluation take longer.",
        [line for line in lines if any(line.y)],
        unit="s",
        stacked=True,
    )
    generating = [row for row in rows if _only_trains(row)]
    ranks = _ranks(record)
    speed = Panel(
        "Speed of generation" + (" of a GPU or rank" if ranks else ""),
        "Generated tokens a second, in iterations without evaluation.",
        [
            Line(
                "generated",
                [float(row["iteration"]) for row in generating],
                [row["generation/tokens"] / row["seconds/generate"] / (ranks or 1) for row in generating],
            )
        ],
        unit="tokens/s",
    )
    panels = [panel for panel in (bars, speed) if any(line.x for line in panel.lines)]
    return Section("Time and memory", "Where the run's time and memory went.", panels)


def phase_uses(record: RunRecord) -> tuple[list[PhaseUse], Memory]:
    """Return the use of each phase, the longest first, and which memory its peak is about."""
    seconds: dict[str, float] = {}
    for row in record.rows:
        for key, value in row.items():
            phase = key.removeprefix("seconds/")
            if phase != key and phase not in _PHASES_WITHIN_OTHERS:
                seconds[phase] = seconds.get(phase, 0.0) + value
    kind = "device" if any("memory/device_peak_gib" in row for row in record.rows) else "host"
    total, plan = sum(seconds.values()), record.plan or {}
    uses = []
    for phase, value in sorted(seconds.items(), key=lambda item: -item[1]):
        key = f"memory/{phase}/{kind}_peak_gib"
        peaks = [row[key] for row in record.rows if key in row]
        in_iterations = [
            row[f"seconds/{phase}"]
            for row in record.training_rows()
            if row["iteration"] > 0 and f"seconds/{phase}" in row
        ]
        uses.append(
            PhaseUse(
                phase,
                value,
                value / total if total else 0.0,
                max(peaks, default=None),
                median(in_iterations) if in_iterations else None,
                plan.get("seconds", {}).get(phase),
                plan.get("device_gib", {}).get(phase) if kind == "device" else None,
            )
        )
    size = re.search(r"([\d.]+) GiB", record.environment.get("device", ""))
    return uses, Memory(kind, float(size[1]) if size else None)


def _seconds(row: Row, phases: tuple[str, ...]) -> float:
    return float(sum(row.get(f"seconds/{phase}", 0.0) for phase in phases))


def _only_trains(row: Row) -> bool:
    """Whether the tokens and the seconds of a line are both those of training's own generation."""
    others = ("evaluate", "select_checkpoint", "start")
    return bool(row.get("seconds/generate") and row.get("generation/tokens")) and not any(
        f"seconds/{phase}" in row for phase in others
    )


def _ranks(record: RunRecord) -> int:
    """Return the number of ranks that environment.json names; 0 where it is not recorded."""
    count = re.match(r"(\d+) x ", record.environment.get("device", ""))
    return int(count[1]) if count else 0

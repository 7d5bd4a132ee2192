"""Seconds and memory of an iteration's phases, beside what `tempo plan` predicts for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from benchmarking.report import Figures
from tempo_megatron.planning.memory import GIB
from tempo_megatron.planning.phases import PlannedRun, total_bytes
from tempo_megatron.planning.schedule import Schedule
from tempo_megatron.planning.workload import Workload

Usage = Mapping[str, float]
"""Seconds and memory of an iteration by the names of its log: `seconds/PHASE` and `memory/PHASE/KIND_peak_gib`."""
_SECONDS, _PEAK = "seconds", "peak GiB"
_PLANNED_NAMES = {"moving": "offload"}
"""Phases that the plan calls otherwise than the log."""


def planned_phases(run: PlannedRun, workload: Workload) -> dict[str, Figures]:
    """Returns the seconds and the peak GiB that `tempo plan` predicts for each phase of an iteration."""
    phases: dict[str, Figures] = {}
    for phase, seconds in Schedule(run, workload).phase_seconds().items():
        phases.setdefault(_PLANNED_NAMES.get(phase, phase), {})[_SECONDS] = seconds
    for phase, parts in run.phase_memory().items():
        phases.setdefault(phase, {})[_PEAK] = total_bytes(parts) / GIB
    return phases


def predicted_iteration(run: PlannedRun, workload: Workload) -> Figures:
    """Returns the seconds and tokens of an iteration that `tempo plan` predicts, and those of its phases."""
    schedule = Schedule(run, workload)
    seconds = schedule.iteration_seconds()
    tokens = schedule.rollouts.generated(workload.uniform_share) * (workload.prompt + workload.mean)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens/s/GPU": tokens / seconds / run.machine.gpus,
        "phases": planned_phases(run, workload),
    }


def beside_plan(usages: Sequence[Usage], memory: str, plan: Mapping[str, Figures]) -> dict[str, Figures]:
    """Returns seconds (the median of the iterations) and peak GiB (the maximum) of each phase, measured and planned.

    `memory` is the kind of memory: "device" or "host". `plan` has the figures of `planned_phases`. What is not
    measured or not planned is left out, and so are phases that did not occur.
    """
    names = dict.fromkeys(key.removeprefix("seconds/") for usage in usages for key in usage if "seconds/" in key)
    phases = {}
    for name in names:
        sources = {_SECONDS: (f"seconds/{name}", median), _PEAK: (f"memory/{name}/{memory}_peak_gib", max)}
        figures: Figures = {}
        for kind, (key, aggregate) in sources.items():
            if values := [usage[key] for usage in usages if key in usage]:
                figures[kind] = aggregate(values)
                if planned := plan.get(name, {}).get(kind):
                    figures[f"{kind}, planned"] = planned
                    figures[f"{kind}, measured / planned"] = figures[kind] / planned
        phases[name] = figures
    return phases

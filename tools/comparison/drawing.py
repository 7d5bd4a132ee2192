"""Panels of runs: a line is the mean over seeds, in a band from the lowest to the highest seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import batched
from pathlib import Path

from comparison.samples import curve
from tempo_megatron.report.panels import MAXIMUM_LINES, Line, Panel


def mean_line(name: str, seeds: Sequence[Sequence[tuple[int, float]]]) -> Line:
    """Returns the mean over seeds at each iteration that all seeds logged, with the lowest and the highest seed."""
    columns = [dict(points) for points in seeds]
    iterations = sorted(set.intersection(*map(set, columns)))
    values = [[column[iteration] for column in columns] for iteration in iterations]
    return Line(
        name,
        [float(iteration) for iteration in iterations],
        [statistics.mean(row) for row in values],
        [min(row) for row in values],
        [max(row) for row in values],
    )


def mean_panels(runs: Mapping[str, Sequence[Path]], key: str, title: str, *, share: bool) -> list[Panel]:
    """Returns panels of a metric with a line for each name. `runs` has the runs of each name, one a seed.

    A panel has at most `MAXIMUM_LINES` lines. The title of each of several panels names its lines.
    """
    panels = []
    for names in batched(runs, MAXIMUM_LINES):
        lines = [mean_line(name, [curve(run, key) for run in runs[name]]) for name in names]
        panel_title = f"{title}: {', '.join(names)}" if len(runs) > MAXIMUM_LINES else title
        panels.append(Panel(panel_title, "Mean over seeds, from the lowest to the highest seed.", lines, share=share))
    return panels

"""Figures for pages: a panel for each run, and gains against the critic's quality. They suit light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.results import Trajectory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAXIMUM_COLUMNS = 4
INK = "#79828e"
"""The color of text and axes. All colors have a contrast of at least 3 to white and to GitHub's dark page."""
COLORS = ("#3d7fe6", "#d4702c", "#23946f", "#9a6ac4", "#c9568c", "#948022")
"""The reference has the first color, and other runs of a figure of trajectories the second."""
_STYLE: dict[str, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "tempo",
}


@contextmanager
def page_style() -> Iterator[None]:
    """Draws on a transparent ground, in colors that can be read on light and dark pages."""
    import matplotlib

    matplotlib.use("agg")
    with matplotlib.rc_context(_STYLE):
        yield


def save(figure: Figure, path: Path) -> Path:
    """Writes an SVG that is the same for the same figures, closes the figure, and returns the path."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    return path


def draw_trajectories(trajectories: Mapping[str, Mapping[str, Trajectory]], reference: str) -> Figure:
    """Returns a figure with a panel for each measure of each run: a thin line for each seed, and the mean in its band.

    `trajectories` maps a run to its measures. A line at the start's mean and the mean of the run `reference` are in
    each panel. Panels of a measure share their axes.
    """
    from matplotlib import pyplot

    names = list(trajectories)
    titles = list(trajectories[reference])
    blocks = math.ceil(len(names) / MAXIMUM_COLUMNS)
    columns = math.ceil(len(names) / blocks)
    rows = blocks * len(titles)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(9.2, 0.7 + 1.55 * rows), squeeze=False, sharex=True, layout="constrained"
    )
    tops = {title: _top(by_title[title] for by_title in trajectories.values()) for title in titles}
    for number, name in enumerate(names):
        block, column = divmod(number, columns)
        for row, title in enumerate(titles):
            axes = grid[block * len(titles) + row][column]
            _draw_panel(axes, trajectories[name][title], trajectories[reference][title], name == reference)
            axes.set_ylim(0, tops[title])
            axes.set_title(name if row == 0 else "")
            axes.set_ylabel(f"{title}, %" if column == 0 else "")
            axes.tick_params(labelleft=column == 0, labelbottom=True)
            axes.locator_params(nbins=4)
            if row == len(titles) - 1:
                axes.set_xlabel("iteration")
    for axes in grid[-len(titles) :, len(names) - columns * (blocks - 1) :].flat:
        axes.remove()
    figure.legend(handles=_keys(reference), loc="outside upper center", ncols=5, fontsize=9)
    return figure


def _draw_panel(axes: Axes, run: Trajectory, reference: Trajectory, is_reference: bool) -> None:
    color = COLORS[0] if is_reference else COLORS[1]
    for seed in run.seeds:
        axes.plot(run.iterations, 100 * seed, color=color, linewidth=0.7, alpha=0.6, gid="seed")
    bounds = [[100 * value for value in end] for end in (run.low, run.high)]
    axes.fill_between(run.iterations, *bounds, color=color, alpha=0.2, linewidth=0)
    axes.axhline(100 * run.mean[0], color=INK, linestyle=":", linewidth=1)
    if not is_reference:
        axes.plot(reference.iterations, 100 * reference.mean, color=COLORS[0], linewidth=1.3, linestyle="--")
    axes.plot(run.iterations, 100 * run.mean, color=color, linewidth=2, gid="mean")


def _top(trajectories: Iterator[Trajectory]) -> float:
    """Returns the upper end of an axis in percent, at least 1: over all seeds and bands, with a margin."""
    return max(1.0, 105 * max(max(float(run.seeds.max()), *run.high) for run in trajectories))


def _keys(reference: str) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Line2D([], [], color=COLORS[1], linewidth=0.7, alpha=0.6, label="one seed"),
        Line2D([], [], color=COLORS[1], linewidth=2, label="mean"),
        Patch(color=COLORS[1], alpha=0.2, linewidth=0, label="95% interval of the mean"),
        Line2D([], [], color=INK, linestyle=":", linewidth=1, label="mean of the start"),
        Line2D([], [], color=COLORS[0], linestyle="--", linewidth=1.3, label=f"mean of {reference}"),
    ]


def draw_critic_at_start(points: Sequence[Mapping[str, Any]], measure: str) -> Figure:
    """Returns a figure of the gain in `measure` against the critic's AUROC at the start, with a point for each run."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for number, name in enumerate(dict.fromkeys(point["run"] for point in points)):
        own = [point for point in points if point["run"] == name]
        aurocs, gains = [point["auroc"] for point in own], [100 * point["gain"] for point in own]
        axes.scatter(aurocs, gains, s=36, color=COLORS[number % len(COLORS)], label=name)
    axes.axhline(0, color=INK, linewidth=1)
    axes.axvline(0.5, color=INK, linestyle=":", linewidth=1)
    axes.set_xlabel("critic's AUROC within prompts, unlabeled rollouts, first M-step")
    axes.set_ylabel(f"gain in {measure}, points")
    axes.legend(fontsize=9)
    return figure

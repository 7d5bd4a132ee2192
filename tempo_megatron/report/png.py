"""The report's panels as PNG files, for papers and slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tempo_megatron.report.panels import Panel, Section, title_slug

_COLORS = ("#2b5fd9", "#c2571a", "#1d8a68", "#8250a8")
"""The colors of the page's lines."""


def write_figures(sections: Sequence[Section], directory: Path) -> list[Path]:
    """Write a PNG for each panel into `directory` and return their paths: `critic-brier-score.png`."""
    import matplotlib

    matplotlib.use("agg")
    directory.mkdir(parents=True, exist_ok=True)
    return [
        _write(panel, directory / f"{title_slug(section.title)}-{title_slug(panel.title)}.png")
        for section in sections
        for panel in section.panels
    ]


def _write(panel: Panel, path: Path) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    floor = [0.0] * max((len(line.x) for line in panel.lines), default=0)
    for line in panel.lines:
        color = _COLORS[line.color - 1]
        if panel.stacked:
            axes.bar(line.x, line.y, bottom=floor, color=color, label=line.name)
            floor = [base + value for base, value in zip(floor, line.y, strict=True)]
            continue
        if line.low and line.high:
            axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.16, linewidth=0)
        axes.plot(line.x, line.y, color=color, marker="." if len(line.x) <= 40 else "", label=line.name)
    if panel.diagonal:
        axes.plot([0, 1], [0, 1], color="#5c616b", linestyle=":", linewidth=1)
    if panel.reference is not None:
        axes.axhline(panel.reference, color="#5c616b", linestyle=":", linewidth=1)
    if panel.share:
        axes.set_ylim(0, 1.02)
    axes.set_title(panel.title + (f", iteration {panel.frames[-1].iteration}" if panel.frames else ""))
    axes.set_xlabel(panel.x_title)
    axes.set_ylabel(panel.unit)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.legend:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path

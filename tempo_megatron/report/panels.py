"""What a drawing consists of: lines, panels of one measure, and sections of panels. The page's script draws them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

MAXIMUM_LINES = 4
"""More lines in one panel cannot be told apart."""


@dataclass(frozen=True)
class Line:
    """One line of a panel: y over x, with the ends of a 95% interval at each point if it has one."""

    name: str
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    color: int = 0
    """The number of its color, from 1. A panel numbers lines that have 0 by their place, and they keep it when lines
    without a point are left out: a run has one color in the whole page."""


@dataclass(frozen=True)
class Panel:
    """One measure over iterations."""

    title: str
    meaning: str
    """A sentence for readers who do not know the measure."""
    lines: list[Line]
    share: bool = False
    """Whether the y axis goes from 0 to 1."""
    reference: float | None = None
    """The value of a dashed horizontal line, such as 0.5 for guessing."""
    unit: str = ""
    stacked: bool = False
    """Whether the lines are drawn as bars on top of each other."""
    compares_runs: bool = False
    """Whether each line is a run, which has to be named even where it is the only one."""

    def __post_init__(self) -> None:
        if len(self.lines) > MAXIMUM_LINES:
            raise ValueError(f"panel {self.title!r} has {len(self.lines)} lines, more than {MAXIMUM_LINES}")
        lines = [line if line.color else replace(line, color=index) for index, line in enumerate(self.lines, start=1)]
        object.__setattr__(self, "lines", lines)

    @property
    def has_legend(self) -> bool:
        """Whether the lines are named."""
        return self.compares_runs or len(self.lines) > 1


@dataclass(frozen=True)
class Section:
    """Panels about one subject."""

    title: str
    about: str
    panels: list[Panel]


def title_slug(title: str) -> str:
    """Return a title as a name for links and files: lower case, with hyphens between words."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")

"""What a drawing consists of: lines, panels of one measure, and sections of panels. The page's script draws them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

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
    counts: list[int] | None = None
    """The number of responses of each point, which its area shows."""
    color: int = 0
    """The number of its color, from 1. A panel numbers lines that have 0 by their place, and they keep it when lines
    without a point are left out: a run has one color in the whole page."""


@dataclass(frozen=True)
class Frame:
    """The lines of a panel at one position of its slider."""

    iteration: int
    lines: list[Line]


@dataclass(frozen=True)
class Panel:
    """One measure over iterations, or with `frames` over what `x_title` says."""

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
    x_title: str = "iteration"
    frames: list[Frame] = field(default_factory=list)
    """What a slider over iterations shows. `lines` are those of the last frame."""
    diagonal: bool = False
    """Whether x and y go from 0 to 1, with a dashed line where they are equal."""

    def __post_init__(self) -> None:
        if len(self.lines) > MAXIMUM_LINES:
            raise ValueError(f"panel {self.title!r} has {len(self.lines)} lines, more than {MAXIMUM_LINES}")
        object.__setattr__(self, "lines", _colored(self.lines))
        object.__setattr__(self, "frames", [replace(frame, lines=_colored(frame.lines)) for frame in self.frames])

    @property
    def legend(self) -> list[Line]:
        """The lines to name, of all frames; [] for a line that is alone."""
        named = {line.name: line for lines in (*(frame.lines for frame in self.frames), self.lines) for line in lines}
        lines = sorted(named.values(), key=lambda line: line.color)
        return lines if self.compares_runs or self.frames or len(lines) > 1 else []


def _colored(lines: Sequence[Line]) -> list[Line]:
    return [line if line.color else replace(line, color=index) for index, line in enumerate(lines, start=1)]


@dataclass(frozen=True)
class Section:
    """Panels about one subject."""

    title: str
    about: str
    panels: list[Panel]


def title_slug(title: str) -> str:
    """Return a title as a name for links and files: lower case, with hyphens between words."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")

"""tools/comparison/figures.py: what the figures of a page show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from comparison.figures import COLORS, INK, draw_critic_at_start, draw_trajectories, page_style, save
from comparison.results import Trajectory

LIGHT, DARK = "#ffffff", "#0d1117"
"""GitHub's pages."""


def trajectories(names: str) -> dict[str, dict[str, Trajectory]]:
    line = Trajectory([0, 20, 40], np.array([[0.1, 0.2, 0.3], [0.1, 0.3, 0.2]]), [0.05, 0.2, 0.2], [0.15, 0.3, 0.4])
    return {name: {"avg@8": line, "pass@8": line} for name in names}


@pytest.mark.parametrize(("names", "rows", "columns"), [("a", 2, 1), ("abcdef", 4, 3), ("abcdefgh", 4, 4)])
def test_each_run_has_a_panel_of_each_measure_with_all_seeds_and_the_mean(names: str, rows: int, columns: int) -> None:
    with page_style():
        figure = draw_trajectories(trajectories(names), "a")
    assert len(figure.axes) == 2 * len(names)
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (rows, columns)
    for axes in figure.axes:
        assert [line.get_gid() for line in axes.lines].count("seed") == 2
        (mean,) = [line for line in axes.lines if line.get_gid() == "mean"]
        assert np.allclose(mean.get_ydata(), [10, 25, 25])
        (band,) = axes.collections
        ends = band.get_paths()[0].get_extents()
        assert (ends.ymin, ends.ymax) == (pytest.approx(5), pytest.approx(40))
        assert axes.get_ylim() == (0, pytest.approx(42))


def test_panels_without_a_run_are_left_out() -> None:
    with page_style():
        figure = draw_trajectories(trajectories("abcde"), "a")
    assert len(figure.axes) == 10
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [*"abcde"]


def test_each_run_has_a_point_of_its_auroc_and_gain() -> None:
    points = [
        {"run": "critic_20", "auroc": 0.6, "gain": -0.01},
        {"run": "critic_20", "auroc": 0.7, "gain": 0.02},
        {"run": "tempo", "auroc": 0.9, "gain": 0.05},
    ]
    with page_style():
        (axes,) = draw_critic_at_start(points, "avg@16").axes
    offsets = [np.asarray(points.get_offsets()).tolist() for points in axes.collections]
    assert offsets == [[[0.6, -1.0], [0.7, 2.0]], [[0.9, 5.0]]]


def test_a_figure_of_the_same_numbers_is_the_same_file(tmp_path: Path) -> None:
    """A figure in the repository changes only where its numbers do."""
    with page_style():
        first, second = (
            save(draw_trajectories(trajectories("ab"), "a"), tmp_path / name).read_bytes()
            for name in ("1.svg", "2.svg")
        )
    assert first == second and b"<text" in first


@pytest.mark.parametrize("page", [LIGHT, DARK])
@pytest.mark.parametrize("color", [INK, *COLORS])
def test_colors_stand_out_on_light_and_dark_pages(color: str, page: str) -> None:
    """WCAG 2.1 asks for a contrast of 3 of lines and large text; the ground is transparent."""
    light, dark = sorted((luminance(color), luminance(page)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3


def luminance(color: str) -> float:
    """Return the relative luminance of an sRGB color as WCAG 2.1 defines it."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

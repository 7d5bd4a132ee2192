"""Panels: only what is recorded, at most four lines each, bands around accuracies, and times that add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tempo_megatron.report.figures import comparison_sections, sections
from tempo_megatron.report.measures import SUBJECTS
from tempo_megatron.report.page import run_page
from tempo_megatron.report.panels import MAXIMUM_LINES, Line, Panel, title_slug
from tempo_megatron.report.png import write_figures
from tempo_megatron.report.reading import RunRecord, read_run
from tempo_megatron.report.timing import phase_uses
from tests.metrics_page import undocumented
from tests.unit.report.run_copy import copy_run, new_run, train_rows, write_evaluation


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """The fixture's run."""
    return read_run(copy_run(tmp_path_factory.mktemp("figures") / "demo"))


def test_no_panel_has_more_lines_than_eyes_can_tell_apart(record: RunRecord) -> None:
    panels = [panel for section in sections(record) for panel in section.panels]
    assert len(panels) > 20
    assert all(1 <= len(panel.lines) <= MAXIMUM_LINES for panel in panels)
    assert all(line.x and len(line.x) == len(line.y) for panel in panels for line in panel.lines)
    with pytest.raises(ValueError, match="has 5 lines, more than 4"):
        Panel("crowd", "", [Line(str(number), [0.0], [0.0]) for number in range(5)])


def test_accuracy_has_bands_that_hold_it(record: RunRecord) -> None:
    accuracy = sections(record)[0]
    right = accuracy.panels[0]
    assert [line.name for line in right.lines] == ["unlabeled", "held-out"]
    for line in right.lines:
        assert line.x == [0, 8, 24] and line.low and line.high
        assert all(low < y < high for low, y, high in zip(line.low, line.y, line.high, strict=True))


def test_more_responses_do_not_look_like_fewer_different_answers(tmp_path: Path) -> None:
    """The log's own figure counts each answer per response, and the last evaluation has twice as many."""
    run = new_run(tmp_path / "run")
    write_evaluation(run, 0, {"q": [1.0, 0.0]})
    write_evaluation(run, 5, {"q": [1.0, 0.0, 1.0, 0.0]})
    (section,) = sections(read_run(run))
    (different,) = (panel for panel in section.panels if panel.title == "Different answers")
    assert "first 2 responses" in different.meaning
    assert (different.lines[0].x, different.lines[0].y) == ([0, 5], [1.0, 1.0])


def test_only_what_is_recorded_is_drawn(tmp_path: Path) -> None:
    """A run without a critic has no empty panels of one."""
    record = read_run(new_run(tmp_path / "run", train_rows(policy__entropy=[0.5, 0.4])))
    assert [(section.title, [panel.title for panel in section.panels]) for section in sections(record)] == [
        ("Policy", ["Entropy"])
    ]
    assert sections(read_run(new_run(tmp_path / "empty"))) == []


def test_the_critics_start_counts_up_to_zero(record: RunRecord) -> None:
    critic = next(section for section in sections(record) if section.title == "Critic")
    loss = next(panel for panel in critic.panels if panel.title == "Critic's loss")
    assert loss.lines[0].x[0] < 0 < loss.lines[0].x[-1] and loss.lines[0].x == sorted(loss.lines[0].x)


def test_every_metric_that_is_drawn_is_documented() -> None:
    """A renamed metric would silently lose its panel."""
    keys = [key for subject in SUBJECTS for measure in subject.measures for key in measure.keys.values()]
    assert len(keys) > 35 and undocumented(keys) == []


def test_runs_are_overlaid_one_line_each(record: RunRecord) -> None:
    for section in comparison_sections([record, record]):
        assert all(len(panel.lines) == 2 for panel in section.panels)


def test_a_run_has_one_color_in_the_whole_page(tmp_path: Path) -> None:
    """Also in panels of what another run does not record."""
    first = read_run(new_run(tmp_path / "first", train_rows(policy__entropy=[0.5])))
    second = read_run(new_run(tmp_path / "second", train_rows(policy__entropy=[0.5], critic__loss=[0.1])))
    (loss,), (entropy,) = (section.panels for section in comparison_sections([first, second]))
    assert [(line.name, line.color) for line in entropy.lines] == [("first", 1), ("second", 2)]
    assert [(line.name, line.color) for line in loss.lines] == [("second", 2)]
    assert len(loss.legend) == 1  # the only line has to be named
    assert sections(second)[0].panels[0].legend == []


def test_seconds_of_an_iteration_add_up(tmp_path: Path) -> None:
    """The selection of a checkpoint contains generating and scoring, which are counted once."""
    rows = train_rows(
        seconds__generate=[4.0, 6.0],
        seconds__e_step=[1.0, 1.0],
        seconds__m_step=[2.0, 2.0],
        seconds__select_checkpoint=[9.0, 9.0],
        seconds__offload=[9.0, 9.0],
        memory__generate__host_peak_gib=[1.5, 2.5],
    )
    record = read_run(new_run(tmp_path / "run", rows))
    (section,) = sections(record)
    bars = section.panels[0]
    assert bars.stacked
    assert {line.name: line.y for line in bars.lines} == {
        "generating": [4.0, 6.0],
        "critic": [1.0, 1.0],
        "policy": [2.0, 2.0],
    }
    uses, memory = phase_uses(record)
    assert [(use.name, use.seconds, use.share, use.peak_gib) for use in uses] == [
        ("generate", 10.0, 0.625, 2.5),
        ("m_step", 4.0, 0.25, None),
        ("e_step", 2.0, 0.125, None),
    ]
    assert (memory.kind, memory.total_gib) == ("host", None)


def test_the_plan_stands_beside_what_was_measured(tmp_path: Path) -> None:
    """Seconds of a usual iteration, and memory of the device. A run on CPUs has no plan, and the page no column."""
    rows = train_rows(
        seconds__generate=[4.0, 6.0, 90.0],
        seconds__grade=[1.0, 1.0, 1.0],
        memory__generate__device_peak_gib=[60.0, 61.0, 62.0],
        memory__device_peak_gib=[60.0, 61.0, 62.0],
        policy__response_tokens=[100.0, 200.0, 300.0],
    )
    run = new_run(tmp_path / "run", rows)
    assert ">planned<" not in run_page(read_run(run))
    plan = {"response_tokens": 150.0, "seconds": {"generate": 5.0}, "device_gib": {"generate": 64.0}}
    (run / "plan.json").write_text(json.dumps(plan))
    generate, grade = phase_uses(read_run(run))[0]
    assert (generate.iteration_seconds, generate.planned_seconds, generate.planned_gib) == (6.0, 5.0, 64.0)
    assert (grade.planned_seconds, grade.planned_gib) == (None, None)
    page = run_page(read_run(run))
    assert page.count(">planned<") == 2 and "for responses of 150 tokens on average. They had 200." in page


def test_speed_leaves_out_lines_whose_tokens_are_not_trainings(tmp_path: Path) -> None:
    rows = train_rows(seconds__generate=[2.0, 2.0], generation__tokens=[100.0, 900.0])
    rows[1]["seconds/evaluate"] = 5.0
    run = new_run(tmp_path / "run", rows)
    (run / "environment.json").write_text('{"device": "2 x NVIDIA H200, 140 GiB"}')
    record = read_run(run)
    speed = sections(record)[0].panels[-1]
    assert speed.title == "Speed of generation of a GPU or rank"
    assert (speed.lines[0].x, speed.lines[0].y) == ([1.0], [25.0])
    assert phase_uses(record)[1].total_gib == 140


def test_each_panel_is_a_picture(record: RunRecord, tmp_path: Path) -> None:
    """Stacked bars and bands among them."""
    chosen = [section for section in sections(record) if section.title in ("Time and memory", "Evidence bound")]
    paths = write_figures(chosen, tmp_path)
    assert [path.name for path in paths][:1] == ["evidence-bound-bound.png"]
    assert len(paths) == sum(len(section.panels) for section in chosen)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_titles_become_names_of_links() -> None:
    assert title_slug("Critic's loss, 95%?") == "critic-s-loss-95"

"""What the page shows token by token, and the critic's calibration."""

from __future__ import annotations

from pathlib import Path

import pytest

from tempo_megatron.report import token_samples as module
from tempo_megatron.report.figures import sections
from tempo_megatron.report.page import run_page
from tempo_megatron.report.questions import question_rows
from tempo_megatron.report.reading import read_run
from tempo_megatron.report.token_samples import token_samples
from tests.unit.report.run_copy import new_run, train_rows, write_evaluation, write_lines, write_tokens


def test_a_question_is_followed_over_iterations(tmp_path: Path) -> None:
    """Labeled questions come last, and within a set those first that can be stepped through longest."""
    run = new_run(tmp_path / "run")
    for iteration in (0, 5, 10):
        write_tokens(run, iteration, {"always": ["a", "b"]} | ({"once": ["c"]} if iteration == 5 else {}))
        write_tokens(run, iteration, {f"labeled {iteration}": ["x"]}, set="labeled")
    questions = token_samples(read_run(run)).questions
    assert [(question.id, len(question.responses)) for question in questions] == [
        ("always", 3),
        ("once", 1),
        ("labeled 0", 1),
        ("labeled 5", 1),
        ("labeled 10", 1),
    ]
    followed = questions[0]
    assert (followed.question_set, followed.text) == ("unlabeled", "question always")
    assert [response["iteration"] for response in followed.responses] == [0, 5, 10]
    assert followed.responses[0]["texts"] == ["a", "b"] and followed.responses[0]["values"] == [0.0, 0.1]


def test_samples_of_a_discarded_future_are_left_out(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", train_rows(policy__reward=[0.1, 0.2]))
    for iteration in (2, 4):
        write_tokens(run, iteration, {"q": ["a"]})
    (question,) = token_samples(read_run(run)).questions
    assert [response["iteration"] for response in question.responses] == [2]


@pytest.mark.parametrize(("budget", "shown"), [(9, list(range(9))), (5, [0, 2, 4, 6, 8]), (3, [0, 4, 8]), (1, [0, 8])])
def test_a_heavy_page_shows_fewer_evaluations(
    budget: int, shown: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first and the last stay, whatever they weigh."""
    run = new_run(tmp_path / "run")
    for iteration in range(9):
        write_tokens(run, iteration, {"q": ["a"] * 100})
    size = (run / "token_samples" / "evaluated-000000.jsonl").stat().st_size
    monkeypatch.setattr(module, "_BUDGET_BYTES", size * budget)
    samples = token_samples(read_run(run))
    assert [response["iteration"] for response in samples.questions[0].responses] == shown
    assert samples.evaluations_left_out == 9 - len(shown)


def test_a_page_that_is_still_too_heavy_shows_fewer_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each set keeps its first questions: of three, two and one question four fit."""
    run = new_run(tmp_path / "run")
    write_tokens(run, 0, {name: ["a"] * 100 for name in ("u1", "u2", "u3")})
    path = run / "token_samples" / "evaluated-000000.jsonl"
    size, unlabeled = path.stat().st_size / 3, path.read_text()
    write_tokens(run, 0, {name: ["a"] * 100 for name in ("h1", "h2")}, set="held_out")
    path.write_text(unlabeled + path.read_text())
    write_tokens(run, 0, {"l1": ["a"] * 100}, set="labeled")
    assert token_samples(read_run(run)).questions_left_out == 0
    monkeypatch.setattr(module, "_BUDGET_BYTES", int(4.5 * size))
    samples = token_samples(read_run(run))
    assert [question.id for question in samples.questions] == ["u1", "u2", "h1", "l1"]
    assert (samples.questions_left_out, samples.evaluations_left_out) == (2, 0)
    assert "2 questions are left out" in run_page(read_run(run))
    monkeypatch.setattr(module, "_BUDGET_BYTES", 1)
    assert [question.id for question in token_samples(read_run(run)).questions] == ["u1"]


def test_the_reliability_diagram_has_a_frame_for_each_iteration(tmp_path: Path) -> None:
    """A moment keeps its color where others are missing. Of lines that a resumed run repeated the last counts."""
    run = new_run(tmp_path / "run", train_rows(critic__loss=[0.3, 0.2]))
    bins = {"before": [[3, 0.2, 0.25], [1, 0.8, 1.0]]}
    rows = [
        {"iteration": 1, "bins": {"after": [[4, 0.5, 0.5]]}, "values": {}},
        {"iteration": 2, "bins": {}, "values": {"q": 0.9}},
        {"iteration": 1, "bins": bins | {"after": [[4, 0.5, 0.75]]}, "values": {"q": 0.2, "r": 0.3}},
        {"iteration": 3, "bins": bins, "values": {}},
    ]
    write_lines(run / "critic.jsonl", rows)
    record = read_run(run)
    panel = next(panel for section in sections(record) for panel in section.panels if panel.frames)
    (frame,) = panel.frames
    assert frame.iteration == 1 and panel.diagonal
    assert [(line.x, line.y, line.counts) for line in frame.lines] == [
        ([0.2, 0.8], [0.25, 1.0], [3, 1]),
        ([0.5], [0.75], [4]),
    ]
    assert [line.color for line in frame.lines] == [2, 3] == [line.color for line in panel.legend]


def test_a_frozen_critic_is_measured_after_no_e_step(tmp_path: Path) -> None:
    """The log has one place for measurements; a reader of the page would look for E-steps that there are none of."""
    config = "method: frozen_critic\ncritic: {training: frozen}\n"
    run = new_run(tmp_path / "run", train_rows(calibration__after__brier=[0.3]), config)
    write_lines(run / "critic.jsonl", [{"iteration": 1, "bins": {"after": [[4, 0.5, 0.5]]}, "values": {}}])
    (section,) = sections(read_run(run))
    assert [line.name for panel in section.panels for line in panel.lines] == ["questions set aside", "critic"]


def test_a_question_has_the_critics_last_mean_value(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    for iteration in (0, 4):
        write_evaluation(run, iteration, {"q": [1.0], "unseen": [0.0]})
    write_lines(
        run / "critic.jsonl",
        [{"iteration": iteration, "bins": {}, "values": {"q": iteration / 10}} for iteration in (1, 3)],
    )
    assert {row.id: row.critic_value for row in question_rows(read_run(run))} == {"q": 0.3, "unseen": None}

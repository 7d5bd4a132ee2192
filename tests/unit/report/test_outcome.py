"""The outcome of a run: what its first sentences claim, and that they claim no more than the intervals allow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tempo_megatron.report.outcome import Verdict, changes, checkpoint_sentence, headline, outcome_sentences
from tempo_megatron.report.reading import read_run
from tempo_megatron.report.words import duration, percent, plural, points
from tests.unit.report.run_copy import copy_run, new_run, train_rows, write_evaluation

QUESTIONS = [f"q{number}" for number in range(20)]


def sentences(run: Path) -> list[str]:
    """Return the sentences of a run directory."""
    record = read_run(run)
    return outcome_sentences(record, changes(record))


def first_words(run: Path) -> tuple[str, Verdict | None]:
    """Return the headline of a run directory, and its verdict."""
    record = read_run(run)
    return headline(record, changes(record))


def test_a_clear_rise_is_better(tmp_path: Path) -> None:
    """Every question has one of two responses right before, and both after but for two questions."""
    run = new_run(tmp_path / "run", train_rows(policy__reward=[0.1] * 10))
    write_evaluation(run, 0, {question: [0.0, 1.0] for question in QUESTIONS})
    write_evaluation(run, 10, {question: [float(index > 1), 1.0] for index, question in enumerate(QUESTIONS)})
    record = read_run(run)
    average, at_least_one = changes(record)
    assert (average.before.value, average.after.value) == (0.5, 0.95)
    assert average.difference.value == pytest.approx(0.45)
    assert average.verdict is Verdict.better
    assert average.difference.interval is not None and 0.3 < average.difference.interval[0] < 0.45
    assert (at_least_one.measure, at_least_one.k, at_least_one.difference.value) == ("pass", 2, 0.0)
    assert at_least_one.verdict is Verdict.unclear
    assert headline(record, changes(record)) == (
        "Better so far on unlabeled questions: 50% to 95.0% right",
        Verdict.better,
    )
    sentence = outcome_sentences(record, changes(record))[1]
    assert sentence.startswith(
        "On unlabeled questions the share of right responses rose from 50% to 95.0% between iterations 0 and 10 "
        "(+45.0 points, 95% interval +"
    )


def test_a_fall_is_worse(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write_evaluation(run, 0, {question: [1.0, 1.0] for question in QUESTIONS})
    write_evaluation(run, 4, {question: [0.0, float(index > 1)] for index, question in enumerate(QUESTIONS)})
    assert first_words(run)[1] is Verdict.worse
    assert "fell from 100% to 45%" in sentences(run)[1]


def test_a_change_within_its_interval_is_not_claimed(tmp_path: Path) -> None:
    """Three questions get better and two get worse: that is chance."""
    run = new_run(tmp_path / "run")
    write_evaluation(run, 0, {question: [float(index in (0, 1))] for index, question in enumerate(QUESTIONS)})
    write_evaluation(run, 4, {question: [float(index in (2, 3, 4))] for index, question in enumerate(QUESTIONS)})
    record = read_run(run)
    assert headline(record, changes(record)) == ("No clear change so far on unlabeled questions", Verdict.unclear)
    assert "did not clearly change: 10% to 15%" in outcome_sentences(record, changes(record))[1]


def test_only_questions_of_both_evaluations_are_compared(tmp_path: Path) -> None:
    """Evaluations between the ends may have a part of the questions: easier ones are no progress."""
    run = new_run(tmp_path / "run")
    write_evaluation(run, 0, {"easy": [1.0], "hard": [0.0]})
    write_evaluation(run, 2, {"easy": [1.0]})
    (average,) = changes(read_run(run))
    assert (average.questions, average.before.value, average.after.value) == (1, 1.0, 1.0)
    assert average.difference.interval is None and average.verdict is Verdict.unclear


@pytest.mark.parametrize(("count", "verdict"), [(5, Verdict.unclear), (6, Verdict.better)])
def test_few_questions_tell_nothing(tmp_path: Path, count: int, verdict: Verdict) -> None:
    """Five changes in one direction are chance in one case of 16."""
    run = new_run(tmp_path / "run")
    for iteration in (0, 1):
        write_evaluation(run, iteration, {question: [float(iteration)] for question in QUESTIONS[:count]})
    assert first_words(run)[1] is verdict
    assert ("5 questions, too few questions to tell." in sentences(run)[1]) == (count < 6)
    assert ("95% interval" in sentences(run)[1]) == (count == 6)
    assert first_words(run)[0].startswith("Too few unlabeled questions to tell") == (count < 6)


def test_an_unfinished_run_is_told_as_such(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", train_rows(policy__reward=[0.1] * 3))
    assert sentences(run) == [
        "The run ended before it finished, after 3 of 10 iterations of TEMPO (a critic that learns from labeled "
        "questions rewards responses to unlabeled ones). It recorded no error.",
        "No evaluation has been recorded, so nothing is known about accuracy.",
    ]
    assert first_words(run) == ("No outcome yet", None)
    assert checkpoint_sentence(read_run(run)) == ""
    write_evaluation(run, 0, {"q": [1.0, 0.0]})
    (run / "interrupted").write_text("signal SIGTERM\n")
    status, accuracy = sentences(run)
    assert status.startswith("The run was interrupted after 3 of 10 iterations")
    assert status.endswith("signal SIGTERM. The same command resumes it.")
    assert accuracy == (
        "There is one evaluation, at iteration 0: 50% on unlabeled questions right. No other to compare with."
    )


def test_a_running_run_is_in_progress(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", train_rows(policy__reward=[0.1]), "method: mine.Own\nloop: {iterations: 10}\n")
    (run / "running-1").touch()
    assert sentences(run)[0] == "The run is in progress: 1 of 10 iterations of the method mine.Own."


def test_a_control_run_is_called_one(tmp_path: Path) -> None:
    record = read_run(copy_run(tmp_path / "run"))
    assert headline(record, changes(record))[0] == "Worse on unlabeled questions: 66% to 58% right"
    assert outcome_sentences(record, changes(record))[-1].startswith("This is a control run")


def test_figures_of_another_iteration_are_not_taken_for_the_checkpoint(tmp_path: Path) -> None:
    """The run of the fixture chose iteration 8 of 24."""
    sentence = checkpoint_sentence(read_run(copy_run(tmp_path / "run")))
    assert sentence.startswith("The checkpoint of iteration 8 was chosen for export (highest critic value")
    assert "The figures above are those of iteration 24, not of this checkpoint." in sentence
    assert sentence.endswith("59% on unlabeled and 48% on held-out questions right.")


def test_a_checkpoint_that_answered_fewer_questions_says_so(tmp_path: Path) -> None:
    """Its share is that of a part, which may be the easier one."""
    run = new_run(tmp_path / "run", [{"stage": "train", "iteration": 4, "selection/best": 2, "selection/reason": "x"}])
    write_evaluation(run, 2, {"q0": [1.0]})
    write_evaluation(run, 4, {question: [1.0] for question in QUESTIONS})
    sentence = checkpoint_sentence(read_run(run))
    assert sentence.endswith("That is over 1 question, while iteration 4 has 20.")


def test_questions_that_a_method_does_not_learn_from_are_said_to_be(tmp_path: Path) -> None:
    """PPO and GRPO learn from labeled questions alone: a rise on unlabeled ones is no test-time training."""
    run = new_run(tmp_path / "run", config="method: ppo\npolicy: {learns_from: labeled}\n")
    for iteration in (0, 1):
        write_evaluation(run, iteration, {"q": [1.0]})
    assert sentences(run)[1].startswith("On unlabeled questions, which the run never learns from, ")


def test_a_text_from_right_to_left_turns_no_sentence(tmp_path: Path) -> None:
    """An override in a reason would show the page's own words backward."""
    run = new_run(tmp_path / "run", config="method: tempo\n")
    (run / "interrupted").write_text("\u202etxet")
    assert "\u2068\u202etxet\u2069. The same command resumes it." in sentences(run)[0]


def test_a_run_that_stopped_early_says_why(tmp_path: Path) -> None:
    run = copy_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"stopped": "2 candidates were not better"}))
    sentence = sentences(run)[0]
    assert sentence.startswith("The run stopped early, after 24 of 24 iterations")
    assert sentence.endswith(": 2 candidates were not better.")


def test_numbers_in_words() -> None:
    assert [percent(share) for share in (0.0, 0.042, 0.5, 0.951, 1.0)] == ["0%", "4.2%", "50%", "95.1%", "100%"]
    assert [points(0.031), points(-0.2)] == ["+3.1 points", "-20.0 points"]
    assert [plural(1, "run"), plural(2, "run")] == ["1 run", "2 runs"]
    assert [duration(seconds) for seconds in (8.25, 720, 12240)] == ["8.2 s", "12.0 min", "3.4 h"]

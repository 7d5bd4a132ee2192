"""Any run directory can be read: finished, in progress, interrupted, crashed, resumed, or damaged."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tempo_megatron.report.facts import run_facts
from tempo_megatron.report.reading import RunStatus, read_run
from tests.unit.report.run_copy import copy_run, new_run, train_rows, write_evaluation, write_lines


def test_a_finished_run_is_read_whole(tmp_path: Path) -> None:
    record = read_run(copy_run(tmp_path / "demo"))
    assert (record.name, record.status, record.iteration, record.starts) == ("demo", RunStatus.finished, 24, 1)
    assert [evaluation.iteration for evaluation in record.evaluations] == [0, 8, 24]
    assert {name: len(questions) for name, questions in record.evaluations[0].sets.items()} == {
        "unlabeled": 30,
        "held_out": 30,
    }
    assert record.setting("critic.labels") == "shuffled"
    assert record.setting("critic.no_such", "default") == "default"
    assert record.environment["layout"] == "TP 1 x CP 1 x PP 1 x DP 2"
    assert all(text.startswith("Spell this word backward") for text in record.questions.values())
    assert record.unreadable == []


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no run directory"):
        read_run(tmp_path)


def test_a_run_that_has_just_begun_has_nothing_yet(tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    (run / "config.yaml").write_text("method: tempo\n")
    record = read_run(run)
    assert (record.rows, record.evaluations, record.summary) == ([], [], None)
    assert (record.status, record.iteration) == (RunStatus.stopped, 0)


def test_a_touched_lock_means_in_progress_and_an_old_one_does_not(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    lock = run / "running-2"
    lock.touch()
    assert read_run(run).status is RunStatus.running
    os.utime(lock, (time.time() - 3600,) * 2)
    assert read_run(run).status is RunStatus.stopped


def test_a_finishing_run_is_finished_though_it_holds_its_lock(tmp_path: Path) -> None:
    """It makes its report before it leaves its directory."""
    run = copy_run(tmp_path / "run")
    (run / "running-1").touch()
    assert read_run(run).status is RunStatus.finished


def test_the_summary_of_an_earlier_end_does_not_finish_a_run_that_goes_on(tmp_path: Path) -> None:
    run = copy_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "train", "iteration": 25}\n')
    (run / "interrupted").write_text("signal SIGTERM\n")
    record = read_run(run)
    assert (record.status, record.ending) == (RunStatus.interrupted, "signal SIGTERM")


def test_a_crashed_run_names_the_last_line_of_a_traceback(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    (run / "failures").mkdir()
    (run / "failures" / "rank-1.txt").write_text("Traceback\n  File x\nRuntimeError: out of memory\n")
    record = read_run(run)
    assert (record.status, record.ending) == (RunStatus.stopped, "RuntimeError: out of memory")


def test_each_start_measures_its_own_building(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", train_rows(policy__reward=[0.1, 0.2]))
    write_lines(run / "metrics.jsonl", [row | {"seconds/start": 3.0} for row in train_rows(policy__reward=[0.1, 0.2])])
    assert read_run(run).starts == 2


def test_evaluations_of_a_discarded_future_are_left_out(tmp_path: Path) -> None:
    """A run that resumed from iteration 2 has not reached iteration 4 again: its old samples are another policy's."""
    run = new_run(tmp_path / "run")
    for iteration in (0, 2, 4):
        write_evaluation(run, iteration, {"q": [1.0]})
    assert [evaluation.iteration for evaluation in read_run(run).evaluations] == [0, 2, 4]
    write_lines(run / "metrics.jsonl", train_rows(policy__reward=[0.1, 0.2]))
    evaluations = read_run(run).evaluations
    assert [evaluation.iteration for evaluation in evaluations] == [0, 2]
    assert evaluations[-1].text(evaluations[-1].sets["unlabeled"]["q"][0]) == "response 0"


def test_a_torn_line_is_left_out_and_told(tmp_path: Path) -> None:
    """A run that writes, or was killed, may leave a part of a line."""
    run = new_run(tmp_path / "run", train_rows(policy__reward=[0.1, 0.2]))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "train", "itera')
    record = read_run(run)
    assert record.iteration == 2
    assert record.unreadable == ["metrics.jsonl: 1 line left out, which could not be read."]
    (run / "running-1").touch()
    assert read_run(run).unreadable == []  # its other part is on its way
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n")
    assert len(read_run(run).unreadable) == 1


def test_curves_leave_out_what_is_not_finite(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", train_rows(policy__reward=[0.1, float("nan"), 0.3]))
    record = read_run(run)
    assert record.curve("policy/reward") == [(1, 0.1), (3, 0.3)]
    assert record.curve("policy/entropy") == []
    assert record.last("policy/reward") == 0.3


def test_a_response_without_a_grade_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    (run / "samples").mkdir()
    row = {
        "set": "unlabeled",
        "prompt": "p",
        "sample": 0,
        "correct": float("nan"),
        "tokens": 1,
        "finish_reason": "length",
    }
    write_lines(run / "samples" / "iteration-000000.jsonl", [row | {"response": "x"}])
    (response,) = read_run(run).evaluations[0].sets["unlabeled"]["p"]
    assert (response.correct, response.truncated) == (None, True)


def test_the_time_so_far_counts_no_phase_twice(tmp_path: Path) -> None:
    """Replicas idle while others generate."""
    run = new_run(tmp_path / "run", train_rows(seconds__generate=[8.0], seconds__replica_idle=[3.0]))
    assert ("Time", "8.0 s so far") in run_facts(read_run(run))

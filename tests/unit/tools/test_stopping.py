"""tools/comparison/stopping.py: where rules would have stopped a run, and what they cost against the truth."""

from __future__ import annotations

from pathlib import Path

import pytest
from comparison import stopping
from comparison.samples import Rows

from tests.unit.tools.finished_runs import selection, write_clusters, write_lines

AVG = "evaluation/unlabeled/avg@4"
UNANIMOUS_AND_WRONG = {f"unlabeled.jsonl:{number}": [(0, 0)] * 4 for number in range(3)}
ONE_OF_FOUR = {f"unlabeled.jsonl:{number}": [(0, 1), (1, 0), (2, 0), (3, 0)] for number in range(3)}


def responses(*clusters_and_grades: tuple[int | None, int], prompt: str = "a") -> Rows:
    return [{"prompt": prompt, "cluster": cluster, "correct": grade} for cluster, grade in clusters_and_grades]


def test_reward_accuracy_counts_responses_that_the_vote_rewards_as_the_truth_does() -> None:
    """A wrong majority pays its three responses falsely and denies the right one: no agreement. Rare wrong answers
    beside a wrong majority agree, since both say 0. A response without an answer has no vote and no reward."""
    assert stopping.reward_accuracy(responses((7, 0), (7, 0), (7, 0), (2, 1))) == 0
    assert stopping.reward_accuracy(responses((7, 1), (7, 1), (1, 0), (None, 0))) == 1
    assert stopping.reward_accuracy(responses((7, 0), (7, 0), (1, 0), (2, 0))) == 0.5
    assert stopping.reward_accuracy(responses((None, 0), (None, 0), (None, 0), (4, 1))) == 1
    assert stopping.reward_accuracy(responses((None, 0), (None, 0))) == 1


def test_reward_accuracy_votes_on_each_question_by_itself() -> None:
    """Clusters are numbered within a question. One vote over both questions would reward cluster 0 alone."""
    both = responses((0, 1), (0, 1), (1, 0)) + responses((1, 1), (1, 1), (0, 0), prompt="b")
    assert stopping.reward_accuracy(both) == 1


def test_the_collapse_step_is_the_first_accuracy_under_one_percent() -> None:
    assert stopping.collapse_step({0: 0.5, 40: 0.002, 20: 0.0099, 60: 0.7}) == 20
    assert stopping.collapse_step({0: 0.5, 20: stopping.COLLAPSE}) is None


def test_patience_stops_where_a_run_with_that_setting_would() -> None:
    """The best is chosen anew at each line, and candidates whose checkpoints are gone do not count."""
    log = [
        {"stage": "train", "iteration": 5, AVG: 0.1},
        selection(0, [0], 0),
        selection(20, [0, 20], 0),
        selection(40, [0, 20, 40], 20),
        selection(60, [20, 40, 60], 20),
        selection(80, [20, 40, 60, 80], 80),
    ]
    assert stopping.patience_stop(log, 2) == (60, 20)
    assert stopping.patience_stop(log, 1) == (20, 0)
    assert stopping.patience_stop(log, 3) == (None, 80)
    assert stopping.patience_stop(log[:1], 2) is None


def test_a_collapsed_run_has_what_each_rule_loses_and_saves(tmp_path: Path) -> None:
    """The truth rises to iteration 20 and falls to 0. The collapse step comes too late, and patience keeps the best."""
    run = tmp_path / "ttrl-0"
    for iteration in (0, 20, 40):
        write_clusters(run, iteration, ONE_OF_FOUR)
    for iteration in (60, 80):
        write_clusters(run, iteration, UNANIMOUS_AND_WRONG)
    truth = {0: 0.25, 20: 0.5, 40: 0.25, 60: 0.125, 80: 0.0}
    lines = [{"stage": "train", "iteration": iteration, AVG: value} for iteration, value in truth.items()]
    chosen = [selection(20, [0, 20], 20), selection(40, [0, 20, 40], 20), selection(60, [20, 40, 60], 20)]
    write_lines(run / "metrics.jsonl", [*lines, *chosen])
    row = stopping.stopping_row(run, 4)
    assert (row.best, row.best_avg, row.last_avg) == (20, 0.5, 0.0)
    assert row.lowest_accuracy == 0
    assert row.collapse == stopping.RuleOutcome(60, 60, lost=0.375, saved=0.125)
    assert row.patience == stopping.RuleOutcome(60, 20, lost=0.0, saved=0.5)


def test_a_run_that_no_rule_stops_loses_against_its_best(tmp_path: Path) -> None:
    """Without a selection in the log there is no rule of patience. A policy that was not evaluated has no figures."""
    run, other = tmp_path / "tempo-0", tmp_path / "tempo-1"
    for directory in (run, other):
        for iteration in (0, 20):
            write_clusters(directory, iteration, ONE_OF_FOUR)
    write_lines(run / "metrics.jsonl", [{"iteration": 0, AVG: 0.25}, {"iteration": 20, AVG: 0.125}])
    write_lines(
        other / "metrics.jsonl",
        [{"iteration": 0, AVG: 0.25}, {"iteration": 20, AVG: 0.5}, selection(10, [0, 10], 10)],
    )
    row, unevaluated = stopping.stopping_row(run, 4), stopping.stopping_row(other, 4)
    assert row.collapse == stopping.RuleOutcome(None, 20, lost=0.125, saved=0.0)
    assert row.patience is None
    assert unevaluated.patience == stopping.RuleOutcome(None, 10, lost=None, saved=None)
    table = stopping.stopping_table({"tempo": [row, unevaluated]}, 4)
    assert "| tempo | 37.5 | 0, 20 | 31.2 | 100%, 100% | never | 6.2 | 0.0 | not selected |" in table
    assert "| never | 10 |  |  |" in stopping.stopping_table({"tempo": [unevaluated]}, 4)


def test_the_rules_are_the_projects_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The rule read from a log stops where `CheckpointSelector` stops for the same candidates."""
    from tempo_megatron.config import CheckpointConfig
    from tempo_megatron.metrics.checkpoint_choice import Candidate
    from tempo_megatron.training.phases.select_checkpoint import CheckpointSelector, Selection

    log = [selection(20, [0, 20], 20), selection(40, [20, 40], 20), selection(60, [20, 40, 60], 20)]
    selector = CheckpointSelector(tmp_path, [], CheckpointConfig(patience=2))
    stops = []
    for line in log:
        candidates = [Candidate(row["iteration"], 0.5, 0.1) for row in line["selection/candidates"]]
        selector.restore(Selection(candidates, line["selection/best"]))
        if selector.has_stopped:
            stops.append(line["iteration"])
    assert stopping.patience_stop(log, 2) == (stops[0], 20)

"""Rules that stop a run, held against the truth: where each would have stopped, and what that costs or saves.

- Model collapse step (arXiv 2603.08660): the first step at which the accuracy of a majority vote's rewards is below 1%.
  The paper measures how long a model lasts under such rewards. The accuracy needs the answers, so the rule is a
  diagnosis and cannot stop a run in practice.
- Patience (`checkpoint.patience`): the run stops once so many candidates have followed the best one, and its best
  checkpoint is exported. The rule reads labeled answers and the critic, and no answer of an unlabeled question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from comparison.samples import Rows, curve, evaluations, json_lines

COLLAPSE = 0.01
"""The reward accuracy below which the paper calls a run collapsed."""
PATIENCE = 2
"""Candidates after the best one. It is the most that `checkpoint.keep: 3` of the recipes allows."""


@dataclass(frozen=True)
class RuleOutcome:
    """What a rule does with a run."""

    stopped: int | None
    """The iteration at which the rule stops the run. None: it lets the run end."""
    kept: int
    """The iteration of the policy that remains."""
    lost: float | None
    """avg@k of the truly best policy minus that of the one kept. None where the kept one was not evaluated."""
    saved: float | None
    """avg@k of the policy kept minus that of the last one. None where the kept one was not evaluated."""


@dataclass(frozen=True)
class StoppingRow:
    """A run's truth and rules, on the iterations that were evaluated."""

    best: int
    """The iteration with the highest avg@k on unlabeled questions, the earliest of several."""
    best_avg: float
    last_avg: float
    lowest_accuracy: float
    """The lowest reward accuracy of all evaluations."""
    collapse: RuleOutcome
    patience: RuleOutcome | None
    """None for a run that selects no checkpoint."""


def reward_accuracy(responses: Rows) -> float:
    """Returns the share of responses whose reward by a majority vote equals their grade.

    `responses` has the records of one set's responses. The most frequent answer to a question gets 1, the earliest of
    several, and every other response 0. A response without an answer has no vote.
    """
    by_question: dict[str, Rows] = {}
    for row in responses:
        by_question.setdefault(row["prompt"], []).append(row)
    agreements = 0
    for rows in by_question.values():
        votes = Counter(row["cluster"] for row in rows if row["cluster"] is not None)
        majority = votes.most_common(1)[0][0] if votes else None
        rewards = [majority is not None and row["cluster"] == majority for row in rows]
        agreements += sum(reward == bool(row["correct"]) for reward, row in zip(rewards, rows, strict=True))
    return agreements / len(responses)


def collapse_step(accuracies: Mapping[int, float]) -> int | None:
    """Returns the first iteration whose reward accuracy is below `COLLAPSE`; None where there is none."""
    return next((iteration for iteration, accuracy in sorted(accuracies.items()) if accuracy < COLLAPSE), None)


def patience_stop(log: Rows, patience: int) -> tuple[int | None, int] | None:
    """Returns where `checkpoint.patience` stops a run, None for its end, and the iteration of its best checkpoint.

    `log` has the lines of a run that went on to its end. A line with a selection names the candidates and the best
    one. Returns None for a log without a selection.
    """
    selections = [line for line in log if line.get("selection/best") is not None]
    for line in selections:
        best = line["selection/best"]
        if sum(candidate["iteration"] > best for candidate in line["selection/candidates"]) >= patience:
            return line["iteration"], best
    return (None, selections[-1]["selection/best"]) if selections else None


def stopping_row(run: Path, k: int) -> StoppingRow:
    """Returns what is best for a run, and what each rule does with it. avg@`k` is that of unlabeled questions."""
    truth = dict(curve(run, f"evaluation/unlabeled/avg@{k}"))
    best, last = max(truth, key=lambda iteration: (truth[iteration], -iteration)), max(truth)

    def outcome(stopped: int | None, kept: int) -> RuleOutcome:
        kept_avg = truth.get(kept)
        if kept_avg is None:
            return RuleOutcome(stopped, kept, None, None)
        return RuleOutcome(stopped, kept, truth[best] - kept_avg, kept_avg - truth[last])

    accuracies = {
        iteration: reward_accuracy([row for row in json_lines(file) if row["set"] == "unlabeled"])
        for iteration, file in evaluations(run).items()
    }
    collapse, stop = collapse_step(accuracies), patience_stop(json_lines(run / "metrics.jsonl"), PATIENCE)
    return StoppingRow(
        best,
        truth[best],
        truth[last],
        min(accuracies.values()),
        outcome(collapse, last if collapse is None else collapse),
        outcome(*stop) if stop else None,
    )


def stopping_rows(runs: Mapping[str, Sequence[Path]], k: int) -> dict[str, list[StoppingRow]]:
    """Returns the row of each seed's run by name."""
    return {name: [stopping_row(run, k) for run in paths] for name, paths in runs.items()}


def to_json(rows: Mapping[str, Sequence[StoppingRow]]) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows as JSON values."""
    return {name: [asdict(row) for row in seeds] for name, seeds in rows.items()}


def stopping_table(rows: Mapping[str, Sequence[StoppingRow]], k: int) -> str:
    """Returns a table with a row for each name. A cell lists its seeds; points of avg@k are means over seeds."""
    lines = [
        f"| run | best avg@{k} | at | last | lowest reward accuracy | collapse step | lost | saved "
        f"| patience {PATIENCE} stops | keeps | lost | saved |",
        f"|{'---|' * 12}",
    ]
    for name, seeds in rows.items():
        cells = [
            _points([row.best_avg for row in seeds]),
            _listed([row.best for row in seeds]),
            _points([row.last_avg for row in seeds]),
            ", ".join(f"{100 * row.lowest_accuracy:.0f}%" for row in seeds),
        ]
        collapses, selections = [row.collapse for row in seeds], [row.patience for row in seeds]
        cells += [_listed([rule.stopped for rule in collapses]), *_costs(collapses)]
        if all(selections):
            cells += [
                _listed([rule.stopped for rule in selections]),
                _listed([rule.kept for rule in selections]),
                *_costs(selections),
            ]
        else:
            cells += ["not selected", "", "", ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _costs(rules: Sequence[RuleOutcome]) -> list[str]:
    return [_points([rule.lost for rule in rules]), _points([rule.saved for rule in rules])]


def _points(shares: Sequence[float | None]) -> str:
    """Returns the mean in percentage points; "" where a share is unknown."""
    known = [share for share in shares if share is not None]
    return f"{100 * sum(known) / len(known):.1f}" if len(known) == len(shares) else ""


def _listed(iterations: Sequence[int | None]) -> str:
    """Returns the iterations with commas; "never" where all are None."""
    if not any(iteration is not None for iteration in iterations):
        return "never"
    return ", ".join("never" if iteration is None else str(iteration) for iteration in iterations)

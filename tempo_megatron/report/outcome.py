"""The outcome of a run: the first evaluation against the last, question by question, as figures and as sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.metrics.bootstrap import confidence_interval
from tempo_megatron.metrics.pass_at_k import pass_at_k
from tempo_megatron.metrics.question_metrics import mean
from tempo_megatron.report.reading import Evaluation, Response, RunRecord, RunStatus
from tempo_megatron.report.words import METHODS, isolated, percent, plural, points, set_name

SETS = ("unlabeled", "held_out")
FEWEST_QUESTIONS = 6
"""A sign test finds nothing below this: 5 changes in one direction are chance in 6% of cases, 6 in 3%."""
Interval = tuple[float, float] | None
"""A 95% interval over questions; None for fewer than two."""


class Verdict(StrEnum):
    """What the interval of a difference says."""

    better = "better"
    worse = "worse"
    unclear = "unclear"
    """The interval includes 0, or there are too few questions."""


@dataclass(frozen=True)
class Estimate:
    """A mean over questions with its 95% interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Change:
    """A measure of one set of questions at two evaluations, over the questions that both have."""

    question_set: str
    measure: str
    """`avg`, the share of right responses, or `pass`, the chance that one of k responses is right."""
    k: int
    questions: int
    before: Estimate
    after: Estimate
    difference: Estimate
    first_iteration: int
    last_iteration: int

    @property
    def verdict(self) -> Verdict:
        """Whether the difference is above or below 0 with its whole interval, over at least FEWEST_QUESTIONS."""
        if self.questions < FEWEST_QUESTIONS:
            return Verdict.unclear
        low, high = self.difference.interval or (0.0, 0.0)
        return Verdict.better if low > 0 else Verdict.worse if high < 0 else Verdict.unclear


def question_values(responses: dict[str, list[Response]], measure: str, k: int) -> dict[str, float]:
    """Return the measure of each question that has graded responses."""
    values = {}
    for question, rows in responses.items():
        grades = [row.correct for row in rows if row.correct is not None]
        if not grades:
            continue
        right, count = round(sum(grades)), len(grades)
        values[question] = sum(grades) / count if measure == "avg" else pass_at_k(right, count, min(k, count))
    return values


def estimate(values: Sequence[float], *name: str, resamples: int = 10_000) -> Estimate:
    """Return the mean of one value per question, with a bootstrap interval whose seed is hashed from `name`."""
    interval = confidence_interval(values, seed=derive_seed("report", *name), resamples=resamples)
    return Estimate(mean(values), interval)


def change(before: Evaluation, after: Evaluation, question_set: str, measure: str, k: int) -> Change | None:
    """Return the change of a measure between two evaluations; None where they share no question of the set."""
    first = question_values(before.sets.get(question_set, {}), measure, k)
    last = question_values(after.sets.get(question_set, {}), measure, k)
    shared = [question for question in first if question in last]
    if not shared:
        return None
    pairs = [(first[question], last[question]) for question in shared]
    return Change(
        question_set,
        measure,
        k,
        len(shared),
        estimate([value for value, _ in pairs], question_set, measure),
        estimate([value for _, value in pairs], question_set, measure),
        estimate([value - earlier for earlier, value in pairs], question_set, measure, "difference"),
        before.iteration,
        after.iteration,
    )


def changes(record: RunRecord) -> list[Change]:
    """Return the changes of both measures on both sets between the first and the last evaluation; [] before two."""
    if len(record.evaluations) < 2:
        return []
    k = evaluation_k(record)
    first, last = record.evaluations[0], record.evaluations[-1]
    rows = [change(first, last, name, measure, k) for name in SETS for measure in shown_measures(k)]
    return [row for row in rows if row]


def shown_measures(k: int) -> tuple[str, ...]:
    """Return the measures of `Change` to show: pass@1 is avg."""
    return ("avg", "pass") if k > 1 else ("avg",)


def evaluation_k(record: RunRecord) -> int:
    """Return the k of pass@k: the setting, or the fewest responses that a question has."""
    counts = [
        len(responses)
        for evaluation in record.evaluations
        for questions in evaluation.sets.values()
        for responses in questions.values()
    ]
    return min([int(record.setting("evaluation.k", 8)), *counts])


def outcome_sentences(record: RunRecord, all_changes: Sequence[Change]) -> list[str]:
    """Return what happened, in one to four plain sentences: how far the run is, and what became of accuracy."""
    rows = {row.question_set: row for row in all_changes if row.measure == "avg"}
    sentences = [_status_sentence(record)]
    if not rows:
        return [*sentences, _without_comparison(record)]
    never_learned = {"held_out"} | ({"unlabeled"} if record.setting("policy.learns_from") == "labeled" else set())
    sentences += [_change_sentence(rows[name], name not in never_learned) for name in SETS if name in rows]
    labels = record.setting("critic.labels", "graded")
    if labels == "shuffled":
        sentences.append("This is a control run: its critic learned from shuffled grades, so it could learn nothing.")
    return sentences


def headline(record: RunRecord, all_changes: Sequence[Change]) -> tuple[str, Verdict | None]:
    """Return the outcome in a few words, and the verdict that it rests on: unlabeled questions first."""
    rows = [row for row in all_changes if row.measure == "avg"]
    if not rows:
        return "No outcome yet", None
    until = "" if record.status is RunStatus.finished else " so far"
    words = {Verdict.better: "Better", Verdict.worse: "Worse", Verdict.unclear: "No clear change"}
    target = rows[0]
    if target.questions < FEWEST_QUESTIONS:
        return f"Too few {set_name(target.question_set)} questions to tell", target.verdict
    text = f"{words[target.verdict]}{until} on {set_name(target.question_set)} questions"
    if target.verdict is not Verdict.unclear:
        text += f": {percent(target.before.value)} to {percent(target.after.value)} right"
    return text, target.verdict


def checkpoint_sentence(record: RunRecord) -> str:
    """Return which checkpoint was chosen, and why; empty where none was chosen yet."""
    if record.status is RunStatus.finished and record.summary and record.summary.get("chosen_iteration") is not None:
        iteration, reason = record.summary["chosen_iteration"], record.summary.get("chosen_because")
        sentence = f"The checkpoint of iteration {iteration} was chosen for export ({reason})."
    elif (iteration := record.last("selection/best")) is not None:
        sentence = f"The best checkpoint so far is iteration {iteration}: {record.last('selection/reason')}."
    else:
        return ""
    last = record.evaluations[-1].iteration if record.evaluations else iteration
    if iteration != last:
        sentence += f" The figures above are those of iteration {last}, not of this checkpoint."
        if evaluation := next((item for item in record.evaluations if item.iteration == iteration), None):
            sentence += f" The checkpoint itself has {_shares(evaluation)} right."
            count, whole = _question_count(evaluation), _question_count(record.evaluations[-1])
            if count != whole:
                sentence += f" That is over {plural(count, 'question')}, while iteration {last} has {whole}."
    return sentence


def _status_sentence(record: RunRecord) -> str:
    planned = int(record.setting("loop.iterations", 0))
    name, ending = str(record.setting("method", "")), isolated(record.ending)
    method = METHODS.get(name, f"the method {isolated(name)}")
    iteration = record.iteration
    length = f"{iteration} of {planned} iterations"
    match record.status:
        case RunStatus.finished:
            stopped = (record.summary or {}).get("stopped")
            if stopped:
                return f"The run stopped early, after {length} of {method}: {stopped}."
            return f"The run finished {plural(iteration, 'iteration')} of {method}."
        case RunStatus.running:
            return f"The run is in progress: {length} of {method}."
        case RunStatus.interrupted:
            return (
                f"The run was interrupted after {length} of {method}: {ending or 'no reason was recorded'}. "
                "The same command resumes it."
            )
        case RunStatus.stopped:
            why = f"The last error it recorded: {ending}" if ending else "It recorded no error."
            return f"The run ended before it finished, after {length} of {method}. {why}"


def _change_sentence(row: Change, is_learned_from: bool) -> str:
    name = f"{set_name(row.question_set)} questions"
    if not is_learned_from:
        name += ", which the run never learns from,"
    what = f"{percent(row.before.value)} to {percent(row.after.value)}"
    span = f"between iterations {row.first_iteration} and {row.last_iteration}"
    if row.questions < FEWEST_QUESTIONS or row.difference.interval is None:
        return (
            f"On {name} the share of right responses went from {what} {span} ({points(row.difference.value)}): "
            f"{plural(row.questions, 'question')}, too few questions to tell."
        )
    low, high = row.difference.interval
    size = f"{points(row.difference.value)}, 95% interval {100 * low:+.1f} to {100 * high:+.1f}"
    match row.verdict:
        case Verdict.better:
            return f"On {name} the share of right responses rose from {what} {span} ({size})."
        case Verdict.worse:
            return f"On {name} the share of right responses fell from {what} {span} ({size})."
        case Verdict.unclear:
            return f"On {name} the share of right responses did not clearly change: {what} {span} ({size})."


def _without_comparison(record: RunRecord) -> str:
    if not record.evaluations:
        return "No evaluation has been recorded, so nothing is known about accuracy."
    first = record.evaluations[0]
    return f"There is one evaluation, at iteration {first.iteration}: {_shares(first)} right. No other to compare with."


def _question_count(evaluation: Evaluation) -> int:
    return sum(len(question_values(evaluation.sets.get(name, {}), "avg", 1)) for name in SETS)


def _shares(evaluation: Evaluation) -> str:
    """Return the shares of right responses of an evaluation: `60% on unlabeled and 55% on held-out questions`."""
    parts = []
    for name in SETS:
        if values := question_values(evaluation.sets.get(name, {}), "avg", 1):
            parts.append(f"{percent(mean(list(values.values())))} on {set_name(name)}")
    return f"{' and '.join(parts)} questions" if parts else "no graded response"

"""The table of questions: how each one fared over the evaluations, and samples of the first and the last one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tempo_megatron.report.outcome import question_values
from tempo_megatron.report.reading import Evaluation, Response, RunRecord
from tempo_megatron.report.words import set_name

_CLEAR = 0.25
"""A question is gained or lost if its share of right responses changes by at least so much."""
_TEXT_BUDGET = 6_000_000
"""Characters of all questions and samples together. Longer ones are cut in their middle: the page stays light."""
_SHORTEST = 200
_LONGEST = 6_000


@dataclass(frozen=True)
class Sample:
    """One response as the page shows it."""

    text: str
    correct: bool | None
    answer: str
    tokens: int
    truncated: bool
    count: int = 1
    """How many responses of the evaluation are exactly this one."""


@dataclass(frozen=True)
class QuestionRow:
    """One question of the table."""

    question_set: str
    id: str
    text: str
    """The question as the model reads it; its id for a run that did not record it."""
    label: str
    start: float
    """The share of right responses in the first evaluation that has the question."""
    end: float
    """The same in the last one."""
    first_iteration: int
    last_iteration: int
    shares: list[tuple[int, float]]
    """(iteration, share of right responses) of each evaluation that has the question."""
    vote_share: float
    """The share of the responses of the last evaluation that gave its most frequent answer."""
    votes: str
    """The same as a text, and whether that answer is right."""
    samples: dict[str, list[Sample]]
    """Title -> responses of an evaluation."""
    critic_value: float | None = None
    """The critic's mean value of the last responses to it that the policy learned from; None where none is recorded."""
    answer: str = ""
    """The hidden answer. It is empty unless the command asks for answers."""


def question_rows(record: RunRecord, answers: Mapping[str, str] | None = None) -> list[QuestionRow]:
    """Return a row for each evaluated question, those whose share changed most first.

    `answers` has hidden answers by question id, where the command asks for them.
    """
    shares: dict[tuple[str, str], list[tuple[int, float]]] = {}
    evaluations: dict[tuple[str, str], dict[int, Evaluation]] = {}
    for evaluation in record.evaluations:
        for name, questions in evaluation.sets.items():
            for question, value in question_values(questions, "avg", 1).items():
                shares.setdefault((name, question), []).append((evaluation.iteration, value))
                evaluations.setdefault((name, question), {})[evaluation.iteration] = evaluation
    shown = sum(
        len(by_iteration[number].sets[name][question])
        for (name, question), by_iteration in evaluations.items()
        for number in {min(by_iteration), max(by_iteration)}
    )
    limit = max(_SHORTEST, min(_LONGEST, _TEXT_BUDGET // max(1, shown + len(evaluations))))
    values = last_values(record)
    rows = []
    for (name, question), points in shares.items():
        first, last = points[0], points[-1]
        samples = {
            f"iteration {number}": _samples(evaluations[name, question][number], name, question, limit)
            for number in sorted({first[0], last[0]})
        }
        rows.append(
            QuestionRow(
                set_name(name),
                question,
                _shorten(record.questions.get(question, question), limit),
                _label([value for _, value in points]),
                first[1],
                last[1],
                first[0],
                last[0],
                points,
                *_votes(evaluations[name, question][last[0]].sets[name][question]),
                samples,
                values.get(question),
                (answers or {}).get(question, ""),
            )
        )
    return sorted(rows, key=lambda row: -abs(row.end - row.start))


def _label(shares: list[float]) -> str:
    """Return what became of a question, in a word or two."""
    if len(shares) == 1:
        return "evaluated once"
    if not any(shares):
        return "never solved"
    if all(share == 1 for share in shares):
        return "always solved"
    difference = shares[-1] - shares[0]
    if abs(difference) >= _CLEAR:
        return "gained" if difference > 0 else "lost"
    return "little change"


def _votes(responses: list[Response]) -> tuple[float, str]:
    """Return the share of the largest group of equal answers, and its size and whether it is right as a text."""
    counts = Counter(response.cluster for response in responses if response.cluster is not None)
    if not counts:
        return 0.0, "no answer"
    number, count = counts.most_common(1)[0]
    grades = [response.correct for response in responses if response.cluster == number]
    verdict = "" if grades[0] is None else ", right" if grades[0] else ", wrong"
    return count / len(responses), f"{count} of {len(responses)}{verdict}"


def last_values(record: RunRecord) -> dict[str, float]:
    """Return the critic's last recorded mean value of each unlabeled question, by question id."""
    values: dict[str, float] = {}
    for _, row in sorted(record.critic_lines.items()):
        values |= row.get("values", {})
    return values


def _samples(evaluation: Evaluation, question_set: str, question: str, limit: int) -> list[Sample]:
    """Return the different samples with their counts, the most frequent first. One text is in memory at a time."""
    responses = evaluation.sets[question_set][question]
    counts = Counter(_sample(response, evaluation.text(response), limit) for response in responses)
    return [replace(sample, count=count) for sample, count in counts.most_common()]


def _sample(response: Response, text: str, limit: int) -> Sample:
    return Sample(
        _shorten(text, limit),
        None if response.correct is None else bool(response.correct),
        _shorten(response.answer, 200),
        response.tokens,
        response.truncated,
    )


def _shorten(text: str, limit: int) -> str:
    """Return the text, or its beginning and end and how many characters are left out between them."""
    if len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end]} […{len(text) - limit} characters left out…] {text[-end:]}"

"""Grades that all ranks share.

A grader may time out on one rank and not on another, so one rank grades each response for all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tempo_megatron.data.sources import Answers
from tempo_megatron.data.types import Rollout
from tempo_megatron.grading import RolloutGrader
from tempo_megatron.utils.distributed import map_over_ranks, rank_and_ranks


@dataclass(frozen=True)
class GradedAnswer:
    """The grade and the final answer of a response."""

    correct: float
    answer: str
    cluster: int | None
    """A number that is equal for equivalent answers to one prompt. It is None without an answer."""


def graded(grader: RolloutGrader, rollouts: Sequence[Rollout], answers: Answers) -> list[float]:
    """Return the correctness in {0, 1} of each rollout; row i is graded on rank i modulo the ranks. Collective."""
    owners = range(len(rollouts))
    return _on_owners(grader, owners, lambda rows: grader.grade([rollouts[row] for row in rows], answers))


def extracted(grader: RolloutGrader, rollouts: Sequence[Rollout]) -> list[str]:
    """Return the text of each rollout's final answer, "" for none; row i on rank i modulo the ranks. Collective."""
    owners = range(len(rollouts))
    return _on_owners(grader, owners, lambda rows: grader.extract([rollouts[row] for row in rows]))


def clustered(grader: RolloutGrader, rollouts: Sequence[Rollout]) -> list[int]:
    """Return equal numbers for equivalent answers to one prompt. Collective.

    One rank clusters all rollouts of a prompt. Numbers of different prompts do not compare.
    """
    prompts: dict[str, int] = {}
    owners = [prompts.setdefault(rollout.prompt.id, len(prompts)) for rollout in rollouts]
    return _on_owners(grader, owners, lambda rows: grader.cluster([rollouts[row] for row in rows]))


def graded_answers(grader: RolloutGrader, rollouts: Sequence[Rollout], answers: Answers) -> list[GradedAnswer]:
    """Return grade, answer and cluster of each rollout. Collective.

    A truncated rollout has grade 0 and no answer. A prompt's clusters are numbered from 0 in order of appearance, so
    that the numbers do not depend on what else is graded.
    """
    texts = extracted(grader, rollouts)
    numbers_by_prompt: dict[str, dict[int, int]] = {}
    graded_rollouts = []
    columns = zip(rollouts, graded(grader, rollouts, answers), texts, clustered(grader, rollouts), strict=True)
    for rollout, correct, text, cluster in columns:
        if rollout.truncated or not text:
            graded_rollouts.append(GradedAnswer(correct, "", None))
        else:
            numbers = numbers_by_prompt.setdefault(rollout.prompt.id, {})
            graded_rollouts.append(GradedAnswer(correct, text, numbers.setdefault(cluster, len(numbers))))
    return graded_rollouts


def _on_owners[Result](
    grader: RolloutGrader, owners: Sequence[int], work: Callable[[list[int]], Sequence[Result]]
) -> list[Result]:
    """Return the results of `work` on the rows of each rank; give every rank the grader's counts of all ranks."""
    errors, timeouts = grader.errors, grader.timeouts
    results = map_over_ranks(owners, work)
    counts = map_over_ranks(
        range(rank_and_ranks()[1]), lambda rows: [(grader.errors - errors, grader.timeouts - timeouts) for _ in rows]
    )
    grader.errors = errors + sum(rank_errors for rank_errors, _ in counts)
    grader.timeouts = timeouts + sum(rank_timeouts for _, rank_timeouts in counts)
    return results

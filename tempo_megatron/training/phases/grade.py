"""Grades that all ranks agree on: a grader may time out on one rank and not on another, so one rank asks it for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tempo_megatron.data.sources import Answers
from tempo_megatron.data.types import Rollout
from tempo_megatron.grading import Grader
from tempo_megatron.utils.distributed import map_over_ranks, rank_and_ranks


@dataclass(frozen=True)
class GradedAnswer:
    """What is known of a response: `cluster` is equal for equivalent answers to one prompt, None without an answer."""

    correct: float
    answer: str
    cluster: int | None


def graded(grader: Grader, rollouts: Sequence[Rollout], answers: Answers) -> list[float]:
    """Correctness in {0, 1} of each rollout; row i is graded on rank i modulo the ranks. Collective."""
    rows = range(len(rollouts))
    return _counted(grader, rows, lambda mine: grader.grade([rollouts[row] for row in mine], answers))


def extracted(grader: Grader, rollouts: Sequence[Rollout]) -> list[str]:
    """The text of each rollout's final answer, "" for none; row i on rank i modulo the ranks. Collective."""
    rows = range(len(rollouts))
    return _counted(grader, rows, lambda mine: grader.extract([rollouts[row] for row in mine]))


def clustered(grader: Grader, rollouts: Sequence[Rollout]) -> list[int]:
    """Equal numbers for equivalent answers to one prompt, a prompt's rollouts all on one rank; numbers of different
    prompts mean nothing to each other. Collective."""
    prompts: dict[str, int] = {}
    owners = [prompts.setdefault(rollout.prompt.id, len(prompts)) for rollout in rollouts]
    return _counted(grader, owners, lambda mine: grader.cluster([rollouts[row] for row in mine]))


def verdicts(grader: Grader, rollouts: Sequence[Rollout], answers: Answers) -> list[GradedAnswer]:
    """All three of each rollout. A truncated one has no answer, as it has no grade but 0. Collective.

    A prompt's clusters are numbered from 0 as they appear, so that they do not depend on what else is graded.
    """
    texts = extracted(grader, rollouts)
    found: dict[str, dict[int, int]] = {}
    made = []
    columns = zip(rollouts, graded(grader, rollouts, answers), texts, clustered(grader, rollouts), strict=True)
    for rollout, correct, text, cluster in columns:
        if rollout.truncated or not text:
            made.append(GradedAnswer(correct, "", None))
        else:
            numbers = found.setdefault(rollout.prompt.id, {})
            made.append(GradedAnswer(correct, text, numbers.setdefault(cluster, len(numbers))))
    return made


def _counted[Result](
    grader: Grader, owners: Sequence[int], work: Callable[[list[int]], Sequence[Result]]
) -> list[Result]:
    """The results; the grader's counts become those of all ranks, on all ranks."""
    errors, timeouts = grader.errors, grader.timeouts
    results = map_over_ranks(owners, work)
    added = map_over_ranks(
        range(rank_and_ranks()[1]), lambda mine: [(grader.errors - errors, grader.timeouts - timeouts) for _ in mine]
    )
    grader.errors = errors + sum(one for one, _ in added)
    grader.timeouts = timeouts + sum(one for _, one in added)
    return results

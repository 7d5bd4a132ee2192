"""Rollouts in; grades, final answers and clusters of equivalent answers out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from threading import Lock
from types import TracebackType
from typing import Any

from tempo_megatron.config import ClusterBy, GradingConfig
from tempo_megatron.data.sources import Answers
from tempo_megatron.data.types import Rollout
from tempo_megatron.grading import proxy
from tempo_megatron.grading.judge import Judge, VerdictError
from tempo_megatron.grading.pool import GradingTask, Outcome, Pool
from tempo_megatron.grading.scorers import cluster, scorer

__all__ = ["Grader", "grading_problems", "scorer"]

_DEFAULTS = GradingConfig()
_log = logging.getLogger(__name__)


class Grader:
    """Grades in worker processes, and by the judge model where a prompt's grader is `judge`.

    Each response has the time limit to itself; one that exceeds it is wrong, and the others are not affected. Grades
    do not depend on the number of workers. Workers start with the first call and live until `close`.
    """

    errors: int
    """responses on which a scorer raised, a worker died, or the judge gave no verdict; they are wrong"""
    timeouts: int
    """responses whose grading, and groups whose clustering, ran past the limit"""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], config: GradingConfig = _DEFAULTS, pool: Pool | None = None
    ) -> None:
        self._decode = decode
        self._config = config
        self._pool = pool or worker_pool(config)
        self._judge: Judge | None = None
        self._counting = Lock()
        self.errors = 0
        self.timeouts = 0

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def twin(self) -> Grader:
        """A grader with counts of its own that uses the same workers."""
        return Grader(self._decode, self._config, self._pool)

    def close(self) -> None:
        """End the workers and the judge's connections; a later call would start them again."""
        self._pool.close()
        if self._judge:
            self._judge.close()
            self._judge = None

    def grade(self, rollouts: Sequence[Rollout], answers: Answers) -> list[float]:
        """Correctness in {0, 1} of each rollout; a truncated one is wrong. `answers` by prompt id.

        Raises GradingError when a worker does not start, a grader is unknown or the judge cannot be reached.
        """
        grades = [0.0] * len(rollouts)
        whole = [index for index, rollout in enumerate(rollouts) if not rollout.truncated]
        judged = [index for index in whole if rollouts[index].prompt.grader == "judge"]
        ruled = [index for index in whole if rollouts[index].prompt.grader != "judge"]
        given = [(answers[rollouts[index].prompt.id],) for index in ruled]
        for index, right in zip(ruled, self._call("grade", [rollouts[i] for i in ruled], given), strict=True):
            grades[index] = float(bool(right))
        for index, right in zip(judged, self._ask([rollouts[i] for i in judged], answers), strict=True):
            grades[index] = float(right)
        return grades

    def extract(self, rollouts: Sequence[Rollout]) -> list[str]:
        """The final answer's text of each rollout, by its prompt's grader; "" for none and for a truncated one."""
        whole = [index for index, rollout in enumerate(rollouts) if not rollout.truncated]
        found = self._call("extract", [rollouts[index] for index in whole], [()] * len(whole))
        extracted = dict(zip(whole, found, strict=True))
        return [extracted.get(index) or "" for index in range(len(rollouts))]

    def cluster(self, rollouts: Sequence[Rollout]) -> list[int]:
        """Cluster numbers, 0, 1, 2, ... in order of first appearance. No label is used.

        Equal numbers mean equivalent answers to the same prompt. A response without an answer is alone in its cluster.
        A group that runs past its limit, or whose clustering fails, is clustered by its answers' texts.
        """
        extracted = self.extract(rollouts)
        groups: dict[str, list[int]] = {}
        for index, rollout in enumerate(rollouts):
            if extracted[index]:
                groups.setdefault(rollout.prompt.id, []).append(index)
        members = list(groups.values())
        found = self._cluster([rollouts[group[0]] for group in members], [[extracted[i] for i in g] for g in members])
        keys: list[tuple[Any, ...]] = [("alone", index) for index in range(len(rollouts))]
        for group, local in zip(members, found, strict=True):
            for index, number in zip(group, local, strict=True):
                keys[index] = (rollouts[index].prompt.id, number)
        numbers: dict[tuple[Any, ...], int] = {}
        return [numbers.setdefault(key, len(numbers)) for key in keys]

    def _cluster(self, firsts: Sequence[Rollout], answers: Sequence[list[str]]) -> list[list[int]]:
        """Cluster numbers within each group, given one rollout of each and the answers of all."""
        if self._config.cluster_by is ClusterBy.judge:
            return self._judge_model().map(
                lambda group: self._judged_clusters(*group), zip(firsts, answers, strict=True)
            )
        limit = self._config.group_time_limit_seconds
        tasks = [GradingTask(r.prompt.grader, "cluster", (a,), limit) for r, a in zip(firsts, answers, strict=True)]
        outcomes = self._counted(firsts, self._pool.run(tasks))
        return [
            cluster(group, _never) if found is None else found for group, found in zip(answers, outcomes, strict=True)
        ]

    def _judged_clusters(self, first: Rollout, answers: list[str]) -> list[int]:
        question = self._decode(first.prompt.token_ids)

        def equivalent(one: str, other: str) -> bool:
            return self._verdict(first, lambda: self._judge_model().same(question, one, other))

        return cluster(answers, equivalent)

    def _ask(self, rollouts: Sequence[Rollout], answers: Answers) -> list[bool]:
        """The judge's verdicts. Its calls wait on the network, so they have threads and no worker."""
        if not rollouts:
            return []
        judge = self._judge_model()

        def ask(pair: tuple[Rollout, str]) -> bool:
            rollout, final = pair
            prompt = rollout.prompt
            question, reference = self._decode(prompt.token_ids), str(answers[prompt.id]["answer"])
            return bool(final) and self._verdict(rollout, lambda: judge.right(question, reference, final))

        return judge.map(ask, zip(rollouts, self.extract(rollouts), strict=True))

    def _verdict(self, rollout: Rollout, ask: Callable[[], bool]) -> bool:
        try:
            return ask()
        except VerdictError as error:
            self._count_error(rollout, str(error))
            return False

    def _judge_model(self) -> Judge:
        if self._judge is None:
            self._judge = Judge(self._config)
        return self._judge

    def _call(self, method: str, rollouts: Sequence[Rollout], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """A method of each rollout's scorer, of the response's text and further arguments; None where it failed."""
        limit = self._config.time_limit_seconds
        tasks = [
            GradingTask(rollout.prompt.grader, method, (self._decode(rollout.response_ids), *more), limit)
            for rollout, more in zip(rollouts, arguments, strict=True)
        ]
        return self._counted(rollouts, self._pool.run(tasks))

    def _counted(self, rollouts: Sequence[Rollout], outcomes: Sequence[Outcome]) -> list[Any]:
        for rollout, outcome in zip(rollouts, outcomes, strict=True):
            if outcome.timed_out:
                self.timeouts += 1
            elif outcome.failure:
                self._count_error(rollout, outcome.failure)
        return [outcome.value for outcome in outcomes]

    def _count_error(self, rollout: Rollout, why: str) -> None:
        with self._counting:  # the judge's threads count too
            self.errors += 1
            if self.errors == 1:
                _log.warning("grader %s failed on prompt %s: %s", rollout.prompt.grader, rollout.prompt.id, why)


def grading_problems(config: GradingConfig, graders: Mapping[str, str]) -> list[str]:
    """What is wrong with the settings for these graders, one line each; empty when grading can start. The graders'
    names are given with where each is named."""
    found: list[str] = []
    if "judge" in graders or config.cluster_by is ClusterBy.judge:
        why = graders.get("judge") or "grading.cluster_by"
        absent = [key for key in ("judge_url", "judge_model") if not getattr(config, key)]
        found += [f"grading.{key}: required: {why} names the judge" for key in absent]
        if not find_spec("openai"):
            found.append(f"{why}: names the judge, and the package openai is not installed")
        found += proxy.proxy_problems(config.judge_url)
    for name, where in sorted(graders.items()):
        try:
            scorer(name)
        except ValueError as error:
            found.append(f"{where}: {error}")
    return found


def worker_pool(config: GradingConfig) -> Pool:
    """Workers as the settings say, none of which has started."""
    return Pool(config.workers or _share_of_cores(), int(config.memory_limit_gib * 2**30))


def _share_of_cores() -> int:
    """Cores of this machine for each of the ranks that torchrun or srun started on it, at most 8."""
    return max(1, min(8, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _never(one: str, other: str) -> bool:
    return False

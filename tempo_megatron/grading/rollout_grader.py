"""Computes grades, final answers and clusters of equivalent answers for rollouts."""

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
from tempo_megatron.grading.graders import cluster, grader_functions
from tempo_megatron.grading.judge import Judge, VerdictError
from tempo_megatron.grading.pool import GradingTask, Outcome, Pool

_DEFAULTS = GradingConfig()
_log = logging.getLogger(__name__)


class RolloutGrader:
    """Grades responses in worker processes, or by the judge model if a prompt's grader is `judge`.

    The time limit applies to each response. A response that exceeds it is wrong, and no other is affected. Grades do
    not depend on the number of workers. Workers start with the first call and live until `close`.
    """

    errors: int
    """Number of responses on which a grader raised, a worker died, or the judge gave no verdict. They are wrong."""
    timeouts: int
    """Number of responses whose grading, and of groups whose clustering, exceeded the time limit."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], config: GradingConfig = _DEFAULTS, pool: Pool | None = None
    ) -> None:
        self._decode = decode
        self._config = config
        self._pool = pool or worker_pool(config)
        self._judge: Judge | None = None
        self._count_lock = Lock()
        self.errors = 0
        self.timeouts = 0

    def __enter__(self) -> RolloutGrader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def twin(self) -> RolloutGrader:
        """Returns a grader with its own counts that shares these workers."""
        return RolloutGrader(self._decode, self._config, self._pool)

    def close(self) -> None:
        """Ends the workers and the judge's connections. A later call starts them again."""
        self._pool.close()
        if self._judge:
            self._judge.close()
            self._judge = None

    def grade(self, rollouts: Sequence[Rollout], answers: Answers) -> list[float]:
        """Returns the grade, 0 or 1, of each rollout. A truncated rollout is wrong. `answers` has prompt ids as keys.

        Raises GradingError if a worker does not start, a grader is unknown, or the judge cannot be reached.
        """
        grades = [0.0] * len(rollouts)
        complete = [index for index, rollout in enumerate(rollouts) if not rollout.truncated]
        judged = [index for index in complete if rollouts[index].prompt.grader == "judge"]
        scored = [index for index in complete if rollouts[index].prompt.grader != "judge"]
        labels = [(answers[rollouts[index].prompt.id],) for index in scored]
        for index, is_right in zip(scored, self._call("grade", [rollouts[i] for i in scored], labels), strict=True):
            grades[index] = float(bool(is_right))
        for index, is_right in zip(judged, self._ask_judge([rollouts[i] for i in judged], answers), strict=True):
            grades[index] = float(is_right)
        return grades

    def extract(self, rollouts: Sequence[Rollout]) -> list[str]:
        """Returns the final answer of each rollout, by its prompt's grader; "" for none and for a truncated rollout."""
        complete = [index for index, rollout in enumerate(rollouts) if not rollout.truncated]
        final_answers = self._call("extract", [rollouts[index] for index in complete], [()] * len(complete))
        extracted = dict(zip(complete, final_answers, strict=True))
        return [extracted.get(index) or "" for index in range(len(rollouts))]

    def cluster(self, rollouts: Sequence[Rollout]) -> list[int]:
        """Returns a cluster number for each rollout: 0, 1, 2 and so on, in order of first appearance. It uses no label.

        Equal numbers mean equivalent answers to the same prompt. A response without an answer has its own cluster. A
        group whose clustering fails or exceeds its time limit is clustered by its answers' texts.
        """
        extracted = self.extract(rollouts)
        groups: dict[str, list[int]] = {}
        for index, rollout in enumerate(rollouts):
            if extracted[index]:
                groups.setdefault(rollout.prompt.id, []).append(index)
        members = list(groups.values())
        local_numbers = self._cluster_groups(
            [rollouts[group[0]] for group in members], [[extracted[i] for i in group] for group in members]
        )
        keys: list[tuple[Any, ...]] = [("alone", index) for index in range(len(rollouts))]
        for group, group_numbers in zip(members, local_numbers, strict=True):
            for index, number in zip(group, group_numbers, strict=True):
                keys[index] = (rollouts[index].prompt.id, number)
        numbers: dict[tuple[Any, ...], int] = {}
        return [numbers.setdefault(key, len(numbers)) for key in keys]

    def _cluster_groups(self, firsts: Sequence[Rollout], answers: Sequence[list[str]]) -> list[list[int]]:
        """Returns cluster numbers within each group, from one rollout and all answers of each group."""
        if self._config.cluster_by is ClusterBy.judge:
            return self._judge_model().map(
                lambda group: self._judged_clusters(*group), zip(firsts, answers, strict=True)
            )
        limit = self._config.group_time_limit_seconds
        tasks = [GradingTask(r.prompt.grader, "cluster", (a,), limit) for r, a in zip(firsts, answers, strict=True)]
        outcomes = self._counted(firsts, self._pool.run(tasks))
        return [
            cluster(group, _never_equivalent) if numbers is None else numbers
            for group, numbers in zip(answers, outcomes, strict=True)
        ]

    def _judged_clusters(self, first: Rollout, answers: list[str]) -> list[int]:
        question = self._decode(first.prompt.token_ids)

        def equivalent(answer: str, other: str) -> bool:
            return self._verdict(first, lambda: self._judge_model().is_same(question, answer, other))

        return cluster(answers, equivalent)

    def _ask_judge(self, rollouts: Sequence[Rollout], answers: Answers) -> list[bool]:
        """Returns the judge's verdicts. Its calls wait for the network, so they run in threads and not in workers."""
        if not rollouts:
            return []
        judge = self._judge_model()

        def ask(pair: tuple[Rollout, str]) -> bool:
            rollout, final_answer = pair
            prompt = rollout.prompt
            question, reference = self._decode(prompt.token_ids), str(answers[prompt.id]["answer"])
            return bool(final_answer) and self._verdict(
                rollout, lambda: judge.is_right(question, reference, final_answer)
            )

        return judge.map(ask, zip(rollouts, self.extract(rollouts), strict=True))

    def _verdict(self, rollout: Rollout, ask: Callable[[], bool]) -> bool:
        """Returns the verdict of a call to the judge. A reply without one counts as an error and gives False."""
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
        """Calls a function of each rollout's grader with the response and `arguments`. A failed call gives None."""
        limit = self._config.time_limit_seconds
        tasks = [
            GradingTask(rollout.prompt.grader, method, (self._decode(rollout.response_ids), *others), limit)
            for rollout, others in zip(rollouts, arguments, strict=True)
        ]
        return self._counted(rollouts, self._pool.run(tasks))

    def _counted(self, rollouts: Sequence[Rollout], outcomes: Sequence[Outcome]) -> list[Any]:
        """Counts timeouts and errors. Returns the outcomes' values."""
        for rollout, outcome in zip(rollouts, outcomes, strict=True):
            if outcome.timed_out:
                self.timeouts += 1
            elif outcome.failure:
                self._count_error(rollout, outcome.failure)
        return [outcome.value for outcome in outcomes]

    def _count_error(self, rollout: Rollout, reason: str) -> None:
        with self._count_lock:  # the judge's threads count too
            self.errors += 1
            if self.errors == 1:
                _log.warning("grader %s failed on prompt %s: %s", rollout.prompt.grader, rollout.prompt.id, reason)


def grading_problems(config: GradingConfig, graders: Mapping[str, str]) -> list[str]:
    """Returns what is wrong with the settings for these graders, one line each; an empty list if grading can start.

    `graders` maps each grader's name to the place that names it.
    """
    problems: list[str] = []
    if "judge" in graders or config.cluster_by is ClusterBy.judge:
        source = graders.get("judge") or "grading.cluster_by"
        missing = [key for key in ("judge_url", "judge_model") if not getattr(config, key)]
        problems += [f"grading.{key}: required: {source} names the judge" for key in missing]
        if not find_spec("openai"):
            problems.append(f"{source}: names the judge, and the package openai is not installed")
        problems += proxy.proxy_problems(config.judge_url)
    for name, source in sorted(graders.items()):
        try:
            grader_functions(name)
        except ValueError as error:
            problems.append(f"{source}: {error}")
    return problems


def worker_pool(config: GradingConfig) -> Pool:
    """Returns a pool with the settings' number of workers and memory limit. No worker has started."""
    return Pool(config.workers or _share_of_cores(), int(config.memory_limit_gib * 2**30))


def _share_of_cores() -> int:
    """Returns this machine's cores per rank that torchrun or srun started on it, at most 8."""
    return max(1, min(8, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _never_equivalent(answer: str, other: str) -> bool:
    return False

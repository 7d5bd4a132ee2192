"""Runs of a real recipe with other generators and factories as `build_run` takes them, and what runs say."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tempo_megatron.config import Config, GradingConfig
from tempo_megatron.generation.requests import Completion, Request
from tempo_megatron.grading.rollout_grader import RolloutGrader, worker_pool
from tempo_megatron.training import reporting
from tempo_megatron.training import run as run_module
from tempo_megatron.training.build import build_run
from tempo_megatron.training.run import Run
from tools.killing.recorded import Parity, Recorded


def build_recorded(config: Config, generator: Any = None, **factories: Any) -> Run:
    """Return a run with this generator; by default one whose responses depend on the requests alone.

    A grader without processes grades by the length of a response, unless `factories` has another.
    """
    return build_run(config, make_generator=lambda *_: generator or Recorded(), **{"make_grader": Parity, **factories})


def lasting_graders() -> Callable[[Any, GradingConfig], RolloutGrader]:
    """Return what makes the graders of several runs of this process. They share workers, which end with the process.

    A worker takes up to two seconds to import what grades.
    """
    pools: list[Any] = []

    def make_grader(decode: Any, config: GradingConfig) -> RolloutGrader:
        if not pools:
            pools.append(worker_pool(config))
            pools[0].close = lambda: None
        return RolloutGrader(decode, config, pools[0])

    return make_grader


class Disagreeing(Recorded):
    """A generator whose log-probs are up to 0.6 above and below those of a policy that has learned nothing."""

    def _respond(self, request: Request) -> Completion:
        completion = super()._respond(request)
        log_probs = tuple(-4.1 + 0.3 * (7 * token % 5 - 2) for token in completion.response_ids)
        return replace(completion, log_probs=log_probs)


def make_no_reports() -> None:
    """Let runs of this process end without a report, which a Python of its own takes a second to make."""
    run_module.report_in_subprocess = lambda run_dir: ""


@contextlib.contextmanager
def lines_of_runs() -> Iterator[list[str]]:
    """Keep what runs tell their user in this process, which only the first rank does, without time and level."""
    lines: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        lines.append(record.getMessage())
        return True

    reporting.logger.addFilter(keep)
    try:
        yield lines
    finally:
        reporting.logger.removeFilter(keep)

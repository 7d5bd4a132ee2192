"""Which layouts a number of GPUs offers, which of them fit, and which is fastest."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tempo_megatron.config import Recompute
from tempo_megatron.planning.fit import plan_problems
from tempo_megatron.planning.memory import GIB
from tempo_megatron.planning.phases import PlannedRun, total
from tempo_megatron.planning.schedule import Load, Schedule

ALIKE = 0.08
"""times that differ by less are taken to be the same: the estimate is no better"""
_TENSOR, _PIPELINE, _CONTEXT = (1, 2, 4, 8), (1, 2, 4), (1, 2)


@dataclass(frozen=True)
class Choice:
    """A layout with its recomputation, the seconds of an iteration, and the GiB of its highest phase."""

    run: PlannedRun
    seconds: float
    peak_gib: float

    def __str__(self) -> str:
        return f"{self.run.layout}, recompute {self.run.config.model.recompute}"


def ranked(run: PlannedRun, load: Load) -> list[Choice]:
    """All layouts of the run's model on its machine that fit. First those about as fast as the fastest, the simplest
    before the others: what pipeline and context parallelism cost has not been measured at size."""
    fitting = [made for made in _layouts(run) if not plan_problems(made)]
    choices = [Choice(made, Schedule(made, load).iteration(), _peak(made)) for made in fitting]
    fastest = min((choice.seconds for choice in choices), default=0.0)

    def order(choice: Choice) -> tuple[bool, int, float]:
        layout = choice.run.layout
        near = choice.seconds <= fastest * (1 + ALIKE)
        return not near, layout.pipeline * layout.context if near else 0, choice.seconds

    return sorted(choices, key=order)


def _layouts(run: PlannedRun) -> Iterator[PlannedRun]:
    """The least recomputation first, smaller sizes first."""
    for recompute in Recompute:
        for pipeline in _PIPELINE:
            for context in _CONTEXT:
                for tensor in _TENSOR:
                    config = copy.deepcopy(run.config)
                    config.model.recompute = recompute
                    config.generation.tensor_parallel_size = run.layout.replica
                    config.parallel = replace(
                        config.parallel,
                        tensor_model_parallel_size=tensor,
                        pipeline_model_parallel_size=pipeline,
                        context_parallel_size=context,
                        sequence_parallel=tensor > 1,
                    )
                    yield PlannedRun(run.settings, config, run.machine)


def _peak(run: PlannedRun) -> float:
    return max(map(total, run.phases().values())) / GIB

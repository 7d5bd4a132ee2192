"""Searches the layouts and the generator's sizes that fit a number of GPUs, and orders them by speed."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tempo_megatron.config import Recompute
from tempo_megatron.planning.decoding import Decoding, DecodingTime
from tempo_megatron.planning.fit import plan_problems
from tempo_megatron.planning.memory import GIB
from tempo_megatron.planning.phases import PlannedRun, total_bytes
from tempo_megatron.planning.schedule import Schedule
from tempo_megatron.planning.workload import Workload

EQUAL_SPEED_MARGIN = 0.08
"""Times that differ by a smaller share count as equal, because the estimate is no more precise."""
GENERATOR_SPEED_MARGIN = 0.05
"""The same for generating alone, whose steps are predicted better."""
_TENSOR_SIZES, _CONTEXT_SIZES, _EXPERT_SIZES = (1, 2, 4, 8), (1, 2), (1, 2, 4, 8)
_PIPELINE_SIZES = ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2))
"""The stages, and the chunks of each."""


@dataclass(frozen=True)
class LayoutChoice:
    """A layout with its recomputation, the seconds of an iteration, and the GiB of its highest phase."""

    run: PlannedRun
    seconds: float
    peak_gib: float

    def __str__(self) -> str:
        return f"{self.run.layout}, recompute {self.run.config.model.recompute}"


def rank_layouts(run: PlannedRun, workload: Workload) -> list[LayoutChoice]:
    """Return all layouts of the run's model on its machine that fit, the best first.

    Layouts about as fast as the fastest come first, ordered by simplicity: the cost of pipeline and context parallelism
    has not been measured at size. The others follow by speed.
    """
    fitting = [candidate for candidate in _layouts(run) if not plan_problems(candidate)]
    choices = [
        LayoutChoice(candidate, Schedule(candidate, workload).iteration_seconds(), _peak_gib(candidate))
        for candidate in fitting
    ]
    fastest = min((choice.seconds for choice in choices), default=0.0)

    def order(choice: LayoutChoice) -> tuple[bool, int, float]:
        layout = choice.run.layout
        is_fast = choice.seconds <= fastest * (1 + EQUAL_SPEED_MARGIN)
        simplicity = layout.pipeline * layout.chunks * layout.context
        return not is_fast, simplicity if is_fast else 0, choice.seconds

    return sorted(choices, key=order)


@dataclass(frozen=True)
class GeneratorChoice:
    """A tensor parallel size of the generator, and the time of an iteration's first generate call."""

    tensor_size: int
    time: DecodingTime


def rank_generator_sizes(run: PlannedRun, workload: Workload) -> list[GeneratorChoice]:
    """Return the tensor parallel sizes of the generator that fit in the run's layout, the best first.

    Sizes about as fast as the fastest come first, the smallest of them at the head. The others follow by speed.
    """
    choices = []
    for size in _TENSOR_SIZES:
        config = copy.deepcopy(run.config)
        config.generation.tensor_parallel_size = size
        candidate = PlannedRun(run.settings, config, run.machine)
        if size <= run.machine.gpus_per_node and not plan_problems(candidate):
            rollouts = Schedule(candidate, workload).rollouts
            requests = rollouts.labeled + rollouts.unlabeled
            choices.append(GeneratorChoice(size, Decoding(candidate, workload).time(requests)))
    fastest = min((choice.time.seconds for choice in choices), default=0.0)

    def order(choice: GeneratorChoice) -> tuple[bool, float]:
        is_fast = choice.time.seconds <= fastest * (1 + GENERATOR_SPEED_MARGIN)
        return not is_fast, choice.tensor_size if is_fast else choice.time.seconds

    return sorted(choices, key=order)


def _layouts(run: PlannedRun) -> Iterator[PlannedRun]:
    """Yield all layouts, less recomputation first, then smaller sizes first."""
    for recompute in Recompute:
        for pipeline, chunks in _PIPELINE_SIZES:
            for context in _CONTEXT_SIZES:
                for tensor, expert in itertools.product(_TENSOR_SIZES, _expert_sizes(run)):
                    config = copy.deepcopy(run.config)
                    config.model.recompute = recompute
                    config.generation.tensor_parallel_size = run.layout.replica
                    config.parallel = replace(
                        config.parallel,
                        tensor_model_parallel_size=tensor,
                        pipeline_model_parallel_size=pipeline,
                        virtual_pipeline_model_parallel_size=chunks,
                        context_parallel_size=context,
                        expert_model_parallel_size=expert,
                        sequence_parallel=tensor > 1,
                    )
                    yield PlannedRun(run.settings, config, run.machine)


def _expert_sizes(run: PlannedRun) -> tuple[int, ...]:
    return _EXPERT_SIZES if run.settings.experts else (1,)


def _peak_gib(run: PlannedRun) -> float:
    return max(map(total_bytes, run.phase_memory().values())) / GIB

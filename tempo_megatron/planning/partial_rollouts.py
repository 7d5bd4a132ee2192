"""Simulates how many engine steps an iteration takes with partial rollouts (`loop.partial_rollouts`)."""

from __future__ import annotations

import random
from functools import cache

from tempo_megatron.config import LoopConfig
from tempo_megatron.planning.workload import Workload

_ITERATIONS, _WARM_UP = 40, 8
"""The simulated iterations, and the first of them, which are left out: nothing is carried over at the start."""


def steps_until_paused(loop: LoopConfig, workload: Workload) -> float:
    """Return the mean number of engine steps of a generate call without labeled rollouts.

    Every response in flight has a slot. A call lasts until `loop.unlabeled_prompts` groups are whole, and until groups
    with tokens of the largest age are. Lengths are drawn from the workload, independently.
    """
    samples = max(loop.samples_per_prompt, loop.votes_per_prompt)
    return _simulate(workload.lengths, loop.unlabeled_prompts, loop.prompts_in_flight, samples, loop.staleness)


@cache
def _simulate(lengths: tuple[int, ...], trained: int, in_flight: int, samples: int, staleness: int) -> float:
    generator = random.Random(0)
    carried: list[tuple[float, int]] = []  # the steps that a group still needs, and its age
    total = 0.0
    for iteration in range(_ITERATIONS):
        new = [(max(generator.choices(lengths, k=samples)), 0) for _ in range(in_flight - len(carried))]
        due = [steps for steps, age in carried if age >= staleness]
        others = [group for group in [*carried, *new] if group[1] < staleness]
        others.sort()
        enough = trained - len(due)
        pause = others[enough - 1][0] if enough > 0 else 0.0
        carried = [(steps - pause, age + (pause > 0)) for steps, age in others[max(0, enough) :]]
        if iteration >= _WARM_UP:
            total += max([pause, *due])
    return total / (_ITERATIONS - _WARM_UP)

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

    Every response in flight has a slot. A call lasts until `loop.unlabeled_prompts` groups are whole, among them those
    with tokens of the largest age. Lengths are drawn from the workload, independently.
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
        groups = sorted([*carried, *new])
        last = max(groups[trained - 1][0], *(steps for steps, age in groups if age >= staleness), 0.0)
        whole = sorted((group for group in groups if group[0] <= last), key=lambda group: -group[1])
        left = [*whole[trained:], *(group for group in groups if group[0] > last)]
        carried = [(max(0.0, steps - last), age + (last > 0)) for steps, age in left]
        if iteration >= _WARM_UP:
            total += last
    return total / (_ITERATIONS - _WARM_UP)

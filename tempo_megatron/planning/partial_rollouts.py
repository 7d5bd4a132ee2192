"""Simulates the generate calls of a run with partial rollouts (`loop.partial_rollouts`)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from tempo_megatron.config import LoopConfig
from tempo_megatron.planning.workload import Workload

_ITERATIONS, _WARM_UP = 40, 8
"""The simulated iterations, and the first of them, which are left out: nothing is carried over at the start."""


@dataclass(frozen=True)
class PartialCall:
    """A generate call that ends when enough groups are whole."""

    steps: int
    """The number of engine steps."""
    tokens: int
    """The tokens that all responses in flight sample in the call."""
    resumed: int
    """The number of responses that continue from an earlier call."""
    resumed_tokens: int
    """The tokens that they have at the start of the call. The engine reads them again."""


def simulate_calls(group_lengths: Iterable[Sequence[int]], loop: LoopConfig) -> Iterator[PartialCall]:
    """Yield the calls of a run that takes these groups in order, as long as there are enough of them.

    A group is given by the tokens of its responses, of which every group has as many. Every response in flight has a
    slot. A call lasts until `loop.unlabeled_prompts` groups are whole, among them those with tokens of the largest age.
    The oldest whole groups train.
    """
    waiting = iter(group_lengths)
    missing = np.zeros((0, 0), dtype=int)  # the tokens that each response of a group in flight still needs
    sampled, ages = missing, np.zeros(0, dtype=int)  # the tokens that it has; the age of a group's oldest token
    while True:
        new = np.array(list(itertools.islice(waiting, loop.prompts_in_flight - len(ages))), dtype=int)
        if len(ages) + len(new) < loop.prompts_in_flight:
            return
        if len(new):
            missing = np.concatenate([missing.reshape(-1, new.shape[1]), new])
            sampled = np.concatenate([sampled.reshape(-1, new.shape[1]), np.zeros_like(new)])
            ages = np.concatenate([ages, np.zeros(len(new), dtype=int)])
        group_steps = missing.max(axis=1)
        last = max(np.sort(group_steps)[loop.unlabeled_prompts - 1], *group_steps[ages >= loop.staleness], 0)
        resumes = (sampled > 0) & (missing > 0)
        gained = np.minimum(missing, last)
        yield PartialCall(int(last), int(gained.sum()), int(resumes.sum()), int(sampled[resumes].sum()))
        missing, sampled = missing - gained, sampled + gained
        whole = np.flatnonzero(group_steps <= last)
        trained = whole[np.argsort(-ages[whole], kind="stable")][: loop.unlabeled_prompts]
        left = np.delete(np.arange(len(ages)), trained)
        missing, sampled = missing[left], sampled[left]
        ages = ages[left] + sampled.any(axis=1)


def typical_calls(loop: LoopConfig, workload: Workload) -> tuple[PartialCall, ...]:
    """Return calls without labeled rollouts, of a run whose lengths are drawn from the workload, independently.

    Single calls differ much: few long responses decide when one ends. A mean needs many of them.
    """
    samples = max(loop.samples_per_prompt, loop.votes_per_prompt)
    numbers = (loop.unlabeled_prompts, loop.partial_rollouts, loop.staleness)
    return _typical_calls(workload.lengths, samples, *numbers)


@cache
def _typical_calls(
    lengths: tuple[int, ...], samples: int, unlabeled_prompts: int, share: float, staleness: int
) -> tuple[PartialCall, ...]:
    generator = random.Random(0)
    loop = LoopConfig(unlabeled_prompts=unlabeled_prompts, partial_rollouts=share, staleness=staleness)
    groups = (generator.choices(lengths, k=samples) for _ in itertools.count())
    return tuple(itertools.islice(simulate_calls(groups, loop), _WARM_UP, _ITERATIONS))

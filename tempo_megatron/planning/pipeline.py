"""The passes of a pipeline stage under megatron-core's schedules, one-forward-one-backward and interleaved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator


def passes_in_flight(stage: int, stages: int, chunks: int, micro_batches: int) -> Iterator[Counter[int]]:
    """Yield, for each backward pass of a stage, how many forward passes of each chunk wait for their backward pass.

    The stage begins with forward passes alone. These are stages - stage - 1 of them, or with several chunks
    2 (stages - stage - 1) + (chunks - 1) stages. Then a forward and a backward pass take turns. With several chunks,
    `micro_batches` is a multiple of `stages`: groups of as many micro-batches as stages pass one chunk after the other.
    """
    behind = stages - stage - 1
    warm_up = behind if chunks == 1 else 2 * behind + (chunks - 1) * stages
    forward = [number // stages % chunks for number in range(micro_batches * chunks)]
    waiting = Counter(forward[:warm_up])
    for number, chunk in enumerate(forward):
        waiting.update(forward[warm_up + number : warm_up + number + 1])
        yield Counter(waiting)
        waiting[chunks - 1 - chunk] -= 1


def bubble_share(stages: int, chunks: int, micro_batches: float) -> float:
    """Return the time that a stage waits in a step, as a share of the time that it works."""
    return (stages - 1) / (micro_batches * chunks)

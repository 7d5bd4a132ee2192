"""Polls for a request to stop generation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest

from tempo_megatron.generation import stopping
from tempo_megatron.generation.stopping import StopPoll


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    return now


def polled_steps(clock: list[float], durations: Iterable[float]) -> list[int]:
    """Returns the steps before which a replica of one rank polls, for steps of these durations in seconds."""
    polled: list[int] = []
    step = 0

    def never() -> bool:
        polled.append(step)
        return False

    poll = StopPoll(never, lambda numbers: numbers)
    for step, seconds in enumerate(durations):  # noqa: B007 (read by never)
        assert not poll.must_stop()
        clock[0] += seconds
    return polled


def differences(numbers: list[int]) -> list[int]:
    return [later - earlier for earlier, later in pairwise(numbers)]


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [(0.005, 16), (0.1, 16), (0.3, 6), (0.39, 5), (1.5, 1), (8.0, 1)],
)
def test_polls_are_at_most_two_seconds_or_one_step_apart(clock: list[float], seconds: float, steps: int) -> None:
    """Fast steps have a poll every sixteenth time, slow ones every time. The number of steps grows from one."""
    intervals = differences(polled_steps(clock, [seconds] * 200))
    assert intervals[0] == 1 and max(intervals) == intervals[-1] == steps
    assert all(count * seconds <= max(2.0, seconds) for count in intervals)


def test_the_duration_of_prefill_limits_all_later_steps(clock: list[float]) -> None:
    """Asynchronous scheduling returns from the first step at once. Later prefills take no longer than the first ones,
    so they delay no poll."""
    polled = polled_steps(clock, [0.001, *[0.39] * 10, *[0.02] * 100, *[0.39] * 20])
    assert max(differences(polled)) == 5


def test_tensor_parallel_ranks_poll_at_the_same_steps_whatever_their_clocks_say(clock: list[float]) -> None:
    """The second of two ranks takes the first one's answer and number of steps. Its own poll still runs."""
    sent: list[list[int]] = []
    polled: list[str] = []

    def rank(name: str, stop: Callable[[], bool], broadcast: Callable[[list[int]], list[int]]) -> StopPoll:
        return StopPoll(lambda: polled.append(name) or stop(), broadcast)

    first = rank("first", lambda: len(polled) > 7, lambda numbers: sent.append(numbers) or numbers)
    second = rank("second", lambda: True, lambda numbers: sent[-1])
    answers = []
    while not answers or not answers[-1][0]:
        answers.append((first.must_stop(), second.must_stop()))
        clock[0] += 0.3 if len(answers) % 2 else 0.7
    assert all(first_answer == second_answer for first_answer, second_answer in answers)
    assert polled == ["first", "second"] * 5

"""When generation asks whether it shall stop."""

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


def questions(clock: list[float], steps: Iterable[float]) -> list[int]:
    """The steps, of so many seconds, before which a replica of one rank asks."""
    asked: list[int] = []
    at = 0

    def never() -> bool:
        asked.append(at)
        return False

    poll = StopPoll(never, lambda numbers: numbers)
    for at, seconds in enumerate(steps):  # noqa: B007 (read by never)
        assert not poll.must_stop()
        clock[0] += seconds
    return asked


def between(numbers: list[int]) -> list[int]:
    return [later - earlier for earlier, later in pairwise(numbers)]


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [(0.005, 16), (0.1, 16), (0.3, 6), (0.39, 5), (1.5, 1), (8.0, 1)],
)
def test_a_question_comes_within_two_seconds_or_a_step(clock: list[float], seconds: float, steps: int) -> None:
    """Fast steps are asked for every sixteenth time, slow ones every time; the number grows from one."""
    found = between(questions(clock, [seconds] * 200))
    assert found[0] == 1 and max(found) == found[-1] == steps
    assert all(count * seconds <= max(2.0, seconds) for count in found)


def test_prompts_are_the_measure_of_all_steps_after_them(clock: list[float]) -> None:
    """Asynchronous scheduling returns from the first at once. Later prompts take no longer than the first ones, so that
    no question waits for them."""
    asked = questions(clock, [0.001, *[0.39] * 10, *[0.02] * 100, *[0.39] * 20])
    assert max(between(asked)) == 5


def test_tensor_ranks_ask_at_the_same_steps_whatever_their_clocks_say(clock: list[float]) -> None:
    """The second of two ranks takes the first one's answer and its number of steps; its own request is not lost."""
    told: list[list[int]] = []
    asked: list[str] = []

    def rank(name: str, stop: Callable[[], bool], share: Callable[[list[int]], list[int]]) -> StopPoll:
        return StopPoll(lambda: asked.append(name) or stop(), share)

    first = rank("first", lambda: len(asked) > 7, lambda numbers: told.append(numbers) or numbers)
    second = rank("second", lambda: True, lambda numbers: told[-1])
    answers = []
    while not answers or not answers[-1][0]:
        answers.append((first.must_stop(), second.must_stop()))
        clock[0] += 0.3 if len(answers) % 2 else 0.7
    assert all(one == other for one, other in answers)
    assert asked == ["first", "second"] * 5

"""Requests to stop by a signal, by a deadline and by another rank."""

from __future__ import annotations

import contextlib
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from tempo_megatron.config import Config
from tempo_megatron.supervision import interruption
from tempo_megatron.supervision.interruption import Interrupted, InterruptionRequest, catch_stop_signals
from tempo_megatron.training import lifecycle, loop
from tempo_megatron.training.lifecycle import Lifecycle
from tempo_megatron.training.state import RunState
from tests.clock import Clock


class Store(dict):
    """The part of a process group's store that interruption requests use."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def get(self, key: str) -> bytes:
        return self[key]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the time that a run and its deadline see. It begins at 0."""
    clock = Clock()
    monkeypatch.setattr(interruption, "time", clock)
    monkeypatch.setattr(lifecycle, "time", clock)
    return clock


def test_a_signal_to_one_rank_reaches_the_others_and_ends_nothing() -> None:
    """SIGUSR1 and SIGTERM are recorded within `catch_stop_signals`, for later runs too. Afterwards the old handlers
    are back."""
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        store = Store()
        earlier, other_rank = InterruptionRequest(store), InterruptionRequest(store)
        with catch_stop_signals():
            assert not earlier.is_requested()
            os.kill(os.getpid(), number)
            assert earlier.is_requested() and InterruptionRequest().is_requested()
        assert not InterruptionRequest().is_requested()
        assert other_rank.is_requested() and store["tempo/interrupted"].decode() == number.name
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_models_are_built_is_a_request_to_stop() -> None:
    """A preemption before the first iteration ends the run as one that has saved."""
    reasons: list[str] = []

    def start(stage: str) -> bool:
        raise Interrupted(InterruptionRequest().agree())

    def build(config: Config, watched: bool) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        lifecycle, watchdog = SimpleNamespace(in_stages=True, is_in=start), SimpleNamespace(stop=lambda: None)
        return SimpleNamespace(lifecycle=lifecycle, watchdog=watchdog, save_interrupted=reasons.append)

    assert not loop.train(Config(), build) and reasons == ["SIGTERM"]


def test_the_deadline_leaves_room_for_a_save(clock: Clock) -> None:
    """The lead is twice the last save, a minute, and the longest time in which a run cannot be saved."""
    request = InterruptionRequest(deadline=2000)
    assert not request.is_requested()
    request.set_lead(save_seconds=30, uninterruptible_seconds=70)
    assert request.lead_seconds == 190 and not request.is_requested()
    request.set_lead(save_seconds=30, uninterruptible_seconds=90)
    assert request.lead_seconds == 210
    clock.now = 1790
    assert not request.is_requested()
    clock.now = 1791
    assert request.is_requested() and request.agree() == "the deadline"


def test_before_a_measured_save_the_lead_is_as_long_as_slurms_warning(clock: Clock) -> None:
    """The first save of a large model takes longer than a minute. A short job keeps half of its time."""
    assert InterruptionRequest(deadline=5000).lead_seconds == 600
    assert InterruptionRequest(deadline=200).lead_seconds == 100
    assert InterruptionRequest(deadline=10).lead_seconds == 60


def test_the_lead_is_at_most_half_of_the_job(clock: Clock) -> None:
    """A lead longer than the job would have it requeued forever without progress."""
    request = InterruptionRequest(deadline=4 * 3600)
    request.set_lead(save_seconds=60, uninterruptible_seconds=6 * 3600)
    assert request.lead_seconds == 7200 and not request.is_requested()


def test_the_lead_counts_grading_but_not_generation(clock: Clock) -> None:
    """Of 1,000 s of generation, 900 s of a judge and 300 s of learning, only generation can be interrupted."""
    saver: Any = SimpleNamespace(seconds=0.0)
    generator: Any = SimpleNamespace(ended=0.0, stop_when=lambda should_stop: None)
    models: Any = None
    request = InterruptionRequest(deadline=1e6)
    run_lifecycle = Lifecycle(saver, models, request, contextlib.nullcontext)
    run_lifecycle.begin_iteration(RunState(iteration=1))
    with run_lifecycle.interruptible(generator):
        clock.sleep(1000)
        generator.ended = clock.now
        clock.sleep(900)
    clock.sleep(300)
    run_lifecycle.end_learning(RunState(iteration=1), {})
    assert request.lead_seconds == 600 + 1200

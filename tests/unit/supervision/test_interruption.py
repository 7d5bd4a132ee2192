"""Requests to stop: a signal, a deadline, another rank's word."""

from __future__ import annotations

import contextlib
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from tempo_megatron.config import Config
from tempo_megatron.supervision import interruption
from tempo_megatron.supervision.interruption import Interrupted, InterruptionRequest, listening
from tempo_megatron.training import lifecycle, loop
from tempo_megatron.training.lifecycle import Lifecycle
from tempo_megatron.training.state import RunState
from tests.clock import Clock


class Store(dict):
    """The part of a process group's store that a request travels through."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def get(self, key: str) -> bytes:
        return self[key]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that a run and its deadline see; it begins at 0."""
    made = Clock()
    monkeypatch.setattr(interruption, "time", made)
    monkeypatch.setattr(lifecycle, "time", made)
    return made


def test_a_signal_to_one_rank_reaches_the_others_and_ends_nothing() -> None:
    """SIGUSR1 and SIGTERM are noted while this process listens, by runs that begin later too; afterwards they mean what
    they meant before."""
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        store = Store()
        before_it, other = InterruptionRequest(store), InterruptionRequest(store)
        with listening():
            assert not before_it.asked()
            os.kill(os.getpid(), number)
            assert before_it.asked() and InterruptionRequest().asked()
        assert not InterruptionRequest().asked()
        assert other.asked() and store["tempo/interrupted"].decode() == number.name
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_models_are_built_is_a_request_to_stop() -> None:
    """A preemption may come in the minutes before the first iteration: the run ends there as one that has saved."""
    reasons: list[str] = []

    def start(stage: str) -> bool:
        raise Interrupted(InterruptionRequest().agreed())

    def build(config: Config, watched: bool) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        lifecycle, watchdog = SimpleNamespace(in_stages=True, is_in=start), SimpleNamespace(stop=lambda: None)
        return SimpleNamespace(lifecycle=lifecycle, watchdog=watchdog, save_interrupted=reasons.append)

    assert not loop.train(Config(), build) and reasons == ["SIGTERM"]


def test_the_deadline_leaves_room_for_a_save(clock: Clock) -> None:
    """Twice the last save and a minute, and the longest stretch in which a run cannot be saved."""
    soon = InterruptionRequest(deadline=2000)
    assert not soon.asked()
    soon.allow(save_seconds=30, stretch_seconds=70)
    assert soon.lead_seconds == 190 and not soon.asked()
    soon.allow(save_seconds=30, stretch_seconds=90)
    assert soon.lead_seconds == 210
    clock.now = 1790
    assert not soon.asked()
    clock.now = 1791
    assert soon.asked() and soon.agreed() == "the deadline"


def test_before_a_save_was_measured_the_deadline_leaves_as_much_as_slurms_warning(clock: Clock) -> None:
    """A stage's first save may come just then, and a minute is too little for a large model; a short job keeps half."""
    assert InterruptionRequest(deadline=5000).lead_seconds == 600
    assert InterruptionRequest(deadline=200).lead_seconds == 100
    assert InterruptionRequest(deadline=10).lead_seconds == 60


def test_a_stretch_longer_than_the_job_leaves_it_half(clock: Clock) -> None:
    """One that a stall made long: a lead of more than the job would have it requeued for ever without progress."""
    job = InterruptionRequest(deadline=4 * 3600)
    job.allow(save_seconds=60, stretch_seconds=6 * 3600)
    assert job.lead_seconds == 7200 and not job.asked()


def test_grading_counts_as_a_stretch_that_cannot_be_interrupted_and_generation_does_not(clock: Clock) -> None:
    """1,000 s of generation, 900 of a judge and 300 of learning: the deadline leaves room for the last two."""
    saver: Any = SimpleNamespace(seconds=0.0)
    generator: Any = SimpleNamespace(ended=0.0, stop_when=lambda asked: None)
    models: Any = None
    job = InterruptionRequest(deadline=1e6)
    made = Lifecycle(saver, models, job, contextlib.nullcontext)
    made.begin_iteration(RunState(iteration=1))
    with made.interruptible(generator):
        clock.sleep(1000)
        generator.ended = clock.now
        clock.sleep(900)
    clock.sleep(300)
    made.end_learning(RunState(iteration=1), {})
    assert job.lead_seconds == 600 + 1200

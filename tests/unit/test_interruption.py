"""Requests to stop: a signal, a deadline, another rank's word."""

from __future__ import annotations

import os
import signal
import time

from tempo_megatron.supervision.interruption import Interruption


class Store(dict):
    """The part of a process group's store that a request travels through."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def get(self, key: str) -> bytes:
        return self[key]


def test_a_signal_to_one_rank_reaches_the_others_and_ends_nothing() -> None:
    """SIGUSR1 and SIGTERM are noted while the run listens; afterwards they mean what they meant before."""
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        store = Store()
        one, other = Interruption(store), Interruption(store)
        with one.listening():
            assert not one.asked() and not other.asked()
            os.kill(os.getpid(), number)
            assert one.asked()
        assert other.asked() and store["tempo/interrupted"].decode() == number.name
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_deadline_leaves_room_for_a_save() -> None:
    """Twice the last save and a minute, and the longest stretch in which a run cannot be saved."""
    soon = Interruption(deadline=time.time() + 200)
    assert not soon.asked()
    soon.allow(save_seconds=30, stretch_seconds=70)
    assert soon.lead_seconds == 190 and not soon.asked()
    soon.allow(save_seconds=30, stretch_seconds=90)
    assert soon.asked() and soon.agreed() == "the deadline"


def test_before_a_save_was_measured_the_deadline_leaves_as_much_as_slurms_warning() -> None:
    """A stage's first save may come just then, and a minute is too little for a large model; a short job keeps half."""
    assert Interruption(deadline=time.time() + 5000).lead_seconds == 600
    assert 99 < Interruption(deadline=time.time() + 200).lead_seconds <= 100
    assert Interruption(deadline=time.time() + 10).lead_seconds == 60

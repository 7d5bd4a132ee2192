"""Which ranks hang, judged by what every rank says of itself every few seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    works = "works"
    alone = "alone"
    """works on what no other rank's work can hold up"""
    waits = "waits"
    """for other ranks, in a collective"""
    between = "between"
    """phases, and does not wait"""
    untimed = "untimed"
    """in a step of unknown length"""


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself."""

    entered: int
    """phases so far"""
    ticks: int
    """of the present phase"""
    state: State
    patience: float
    """seconds that the ticks of this phase may rest"""

    def __str__(self) -> str:
        return f"{self.entered} {self.ticks} {self.state} {self.patience}"

    @classmethod
    def parse(cls, text: str) -> Beat:
        entered, ticks, state, patience = text.split()
        return cls(int(entered), int(ticks), State(state), float(patience))


@dataclass(frozen=True)
class Hang:
    ranks: list[int]
    """that hang, the likeliest first"""
    why: str


class Hangs:
    """The rules, over the beats of all ranks in time. A rank hangs that

    - stays a phase behind the others for `lag_limit_seconds` in which it neither ticks nor is untimed,
    - works alone and does not tick for its patience,
    - does not wait while no rank has ticked for its patience, all being in one phase. Where all wait, nobody will do
      what they wait for: all hang.
    """

    def __init__(self, lag_limit_seconds: float) -> None:
        self._lag_limit = lag_limit_seconds
        self._beats: Sequence[Beat] = ()
        self._moved: list[float] = []
        """when each rank last did, or was untimed"""
        self._foremost, self._ahead_since = 0, 0.0

    def found(self, beats: Sequence[Beat], now: float) -> Hang | None:
        """The hang that these beats, one a rank, show at `now` seconds of any clock."""
        self._note(beats, now)
        return self._behind(beats, now) or self._alone(beats, now) or self._together(beats, now)

    def _note(self, beats: Sequence[Beat], now: float) -> None:
        rest = [
            (was.entered, was.ticks) == (present.entered, present.ticks) and present.state is not State.untimed
            for was, present in zip(self._beats or beats, beats, strict=True)
        ]
        before = self._moved or [now] * len(beats)
        self._moved = [since if rests else now for since, rests in zip(before, rest, strict=True)]
        self._beats = beats
        foremost = max(beat.entered for beat in beats)
        if foremost > self._foremost:
            self._foremost, self._ahead_since = foremost, now

    def _behind(self, beats: Sequence[Beat], now: float) -> Hang | None:
        late = [
            rank
            for rank, beat in enumerate(beats)
            if beat.entered < self._foremost and now - max(self._ahead_since, self._moved[rank]) > self._lag_limit
        ]
        return _hang(late, beats, f"a phase behind the others for {self._lag_limit:.0f} s")

    def _alone(self, beats: Sequence[Beat], now: float) -> Hang | None:
        stuck = [rank for rank in self._still(beats, now) if beats[rank].state is State.alone]
        return _hang(stuck, beats, "where it waits for nobody and has done nothing for {patience:.0f} s")

    def _together(self, beats: Sequence[Beat], now: float) -> Hang | None:
        one_phase = all(beat.entered == self._foremost and beat.state is not State.between for beat in beats)
        if not one_phase or len(self._still(beats, now)) < len(beats):
            return None
        busy = [rank for rank, beat in enumerate(beats) if beat.state is not State.waits]
        return _hang(busy or range(len(beats)), beats, "where no rank has done anything for {patience:.0f} s")

    def _still(self, beats: Sequence[Beat], now: float) -> list[int]:
        return [rank for rank, beat in enumerate(beats) if now - self._moved[rank] > beat.patience]


def _hang(ranks: Sequence[int], beats: Sequence[Beat], why: str) -> Hang | None:
    if not ranks:
        return None
    order = sorted(ranks, key=lambda rank: (beats[rank].entered, beats[rank].ticks))
    return Hang(order, why.format(patience=beats[order[0]].patience))

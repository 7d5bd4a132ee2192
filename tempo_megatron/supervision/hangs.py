"""Which ranks hang, judged by what every rank says of itself every few seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

SILENCE_SECONDS = 300.0
"""A beat is missed while something holds the interpreter: pages of a file that is mapped, on a slow file system."""


class RankState(StrEnum):
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
    state: RankState
    patience: float
    """seconds that the ticks of this phase may rest"""
    number: int
    """of this beat: those of a rank that is alive differ"""

    def __str__(self) -> str:
        return f"{self.entered} {self.ticks} {self.state} {self.patience} {self.number}"

    @classmethod
    def parse(cls, text: str) -> Beat:
        entered, ticks, state, patience, number = text.split()
        return cls(int(entered), int(ticks), RankState(state), float(patience), int(number))


@dataclass(frozen=True)
class Hang:
    ranks: list[int]
    """that hang, the likeliest first"""
    why: str


class Hangs:
    """The rules, over the beats of all ranks in time. A rank hangs that

    - stays a phase behind the others for `lag_limit_seconds`, or its patience if that is longer, in which it neither
      ticks nor is untimed,
    - works alone and does not tick for its patience,
    - does not wait while no rank has ticked for its patience, all being in one phase. Where all wait, nobody will do
      what they wait for: all hang,
    - does not beat for `SILENCE_SECONDS`: its process is gone, or stands still altogether.
    """

    def __init__(self, lag_limit_seconds: float) -> None:
        self._lag_limit = lag_limit_seconds
        self._beats: Sequence[Beat] = ()
        self._moved: list[float] = []
        """when each rank last did, or was untimed"""
        self._heard: list[float] = []
        """when each rank's beat was last another one"""
        self._foremost, self._ahead_since = 0, 0.0

    def found(self, beats: Sequence[Beat], now: float) -> Hang | None:
        """The hang that these beats, one a rank, show at `now` seconds of any clock."""
        self._note(beats, now)
        rules = (self._silent, self._behind, self._alone, self._together)
        return next((hang for rule in rules if (hang := rule(beats, now))), None)

    def _note(self, beats: Sequence[Beat], now: float) -> None:
        rest = [
            (was.entered, was.ticks) == (present.entered, present.ticks) and present.state is not RankState.untimed
            for was, present in zip(self._beats or beats, beats, strict=True)
        ]
        same = [was.number == present.number for was, present in zip(self._beats or beats, beats, strict=True)]
        self._moved = _since(self._moved, rest, now)
        self._heard = _since(self._heard, same, now)
        self._beats = beats
        foremost = max(beat.entered for beat in beats)
        if foremost > self._foremost:
            self._foremost, self._ahead_since = foremost, now

    def _silent(self, beats: Sequence[Beat], now: float) -> Hang | None:
        gone = [rank for rank, heard in enumerate(self._heard) if now - heard > SILENCE_SECONDS]
        return _hang(gone, beats, f"not heard of for {SILENCE_SECONDS:.0f} s")

    def _behind(self, beats: Sequence[Beat], now: float) -> Hang | None:
        patience = [max(self._lag_limit, beat.patience) for beat in beats]
        late = [
            rank
            for rank, beat in enumerate(beats)
            if beat.entered < self._foremost and now - max(self._ahead_since, self._moved[rank]) > patience[rank]
        ]
        longest = max((patience[rank] for rank in late), default=0.0)
        return _hang(late, beats, f"a phase behind the others for {longest:.0f} s")

    def _alone(self, beats: Sequence[Beat], now: float) -> Hang | None:
        stuck = [rank for rank in self._still(beats, now) if beats[rank].state is RankState.alone]
        return _hang(stuck, beats, "where it waits for nobody and has done nothing for {patience:.0f} s")

    def _together(self, beats: Sequence[Beat], now: float) -> Hang | None:
        one_phase = all(beat.entered == self._foremost and beat.state is not RankState.between for beat in beats)
        if not one_phase or len(self._still(beats, now)) < len(beats):
            return None
        busy = [rank for rank, beat in enumerate(beats) if beat.state is not RankState.waits]
        return _hang(busy or range(len(beats)), beats, "where no rank has done anything for {patience:.0f} s")

    def _still(self, beats: Sequence[Beat], now: float) -> list[int]:
        return [rank for rank, beat in enumerate(beats) if now - self._moved[rank] > beat.patience]


def _since(before: Sequence[float], unchanged: Sequence[bool], now: float) -> list[float]:
    """When what each rank says last changed."""
    return [since if rests else now for since, rests in zip(before or [now] * len(unchanged), unchanged, strict=True)]


def _hang(ranks: Sequence[int], beats: Sequence[Beat], why: str) -> Hang | None:
    if not ranks:
        return None
    order = sorted(ranks, key=lambda rank: (beats[rank].entered, beats[rank].ticks))
    return Hang(order, why.format(patience=beats[order[0]].patience))

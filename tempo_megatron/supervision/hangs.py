"""Decides which ranks hang, from the heartbeat that each rank sends every few seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

SILENCE_SECONDS = 300.0
"""A rank that sends no heartbeat for this long hangs. A healthy rank can miss heartbeats while something holds the
interpreter, such as reads of a mapped file on a slow file system."""


class RankState(StrEnum):
    """What a rank does as it sends a heartbeat."""

    working = "working"
    """The rank works and does not wait for other ranks."""
    independent = "independent"
    """The rank works on something that no other rank can hold up."""
    waiting = "waiting"
    """The rank waits for other ranks in a collective."""
    between_phases = "between_phases"
    """The rank is between two phases and does not wait."""
    untimed = "untimed"
    """The rank is in a step of unknown length."""


@dataclass(frozen=True)
class Heartbeat:
    """What a rank reports of itself."""

    phases_entered: int
    """The number of phases that the rank has entered so far."""
    ticks: int
    """The units of work done in the present phase."""
    state: RankState
    patience: float
    """The seconds for which the tick count of this phase may stand still."""
    number: int
    """The number of this heartbeat. It rises as long as the rank is alive."""

    def __str__(self) -> str:
        return f"{self.phases_entered} {self.ticks} {self.state} {self.patience} {self.number}"

    @classmethod
    def parse(cls, text: str) -> Heartbeat:
        phases_entered, ticks, state, patience, number = text.split()
        return cls(int(phases_entered), int(ticks), RankState(state), float(patience), int(number))


@dataclass(frozen=True)
class Hang:
    """A hang that the rules have detected."""

    ranks: list[int]
    """The ranks that hang, the most likely culprit first."""
    reason: str


class HangDetector:
    """Applies the rules to the heartbeats of all ranks over time. A rank hangs if one of these holds:

    - Silent: it sends no heartbeat for `SILENCE_SECONDS`. Its process is gone or stands still.
    - Behind: it stays a phase behind the others for `lag_limit_seconds`, or for its patience if that is longer. In that
      time it neither ticks nor is untimed.
    - Independent: its state is `independent` and it does not tick for its patience.
    - Together: all ranks are in one phase, no rank has ticked for its patience, and it does not wait. If all ranks
      wait, all hang: nobody is left to do what they wait for.
    """

    def __init__(self, lag_limit_seconds: float) -> None:
        self._lag_limit = lag_limit_seconds
        self._heartbeats: Sequence[Heartbeat] = ()
        self._last_progress: list[float] = []
        """The times at which each rank last ticked, changed its phase or was untimed."""
        self._last_heard: list[float] = []
        """The times at which a new heartbeat of each rank last came."""
        self._latest_phase, self._latest_phase_since = 0, 0.0

    def detect(self, heartbeats: Sequence[Heartbeat], now: float) -> Hang | None:
        """Return the hang that these heartbeats show, or None.

        `heartbeats` has one entry per rank. `now` is in seconds of any clock that does not run backwards.
        """
        self._update(heartbeats, now)
        rules = (self._silent, self._behind, self._independent, self._together)
        return next((hang for rule in rules if (hang := rule(heartbeats, now))), None)

    def _update(self, heartbeats: Sequence[Heartbeat], now: float) -> None:
        pairs = list(zip(self._heartbeats or heartbeats, heartbeats, strict=True))
        without_progress = [
            (last.phases_entered, last.ticks) == (present.phases_entered, present.ticks)
            and present.state is not RankState.untimed
            for last, present in pairs
        ]
        self._last_progress = _last_change(self._last_progress, without_progress, now)
        same_heartbeat = [last.number == present.number for last, present in pairs]
        self._last_heard = _last_change(self._last_heard, same_heartbeat, now)
        self._heartbeats = heartbeats
        latest_phase = max(heartbeat.phases_entered for heartbeat in heartbeats)
        if latest_phase > self._latest_phase:
            self._latest_phase, self._latest_phase_since = latest_phase, now

    def _silent(self, heartbeats: Sequence[Heartbeat], now: float) -> Hang | None:
        silent = [rank for rank, heard in enumerate(self._last_heard) if now - heard > SILENCE_SECONDS]
        return _hang(silent, heartbeats, f"not heard of for {SILENCE_SECONDS:.0f} s")

    def _behind(self, heartbeats: Sequence[Heartbeat], now: float) -> Hang | None:
        limits = [max(self._lag_limit, heartbeat.patience) for heartbeat in heartbeats]
        behind = [
            rank
            for rank, heartbeat in enumerate(heartbeats)
            if heartbeat.phases_entered < self._latest_phase
            and now - max(self._latest_phase_since, self._last_progress[rank]) > limits[rank]
        ]
        longest = max((limits[rank] for rank in behind), default=0.0)
        return _hang(behind, heartbeats, f"a phase behind the others for {longest:.0f} s")

    def _independent(self, heartbeats: Sequence[Heartbeat], now: float) -> Hang | None:
        hanging = [
            rank for rank in self._without_ticks(heartbeats, now) if heartbeats[rank].state is RankState.independent
        ]
        return _hang(hanging, heartbeats, "where it waits for nobody and has done nothing for {patience:.0f} s")

    def _together(self, heartbeats: Sequence[Heartbeat], now: float) -> Hang | None:
        in_one_phase = all(
            heartbeat.phases_entered == self._latest_phase and heartbeat.state is not RankState.between_phases
            for heartbeat in heartbeats
        )
        if not in_one_phase or len(self._without_ticks(heartbeats, now)) < len(heartbeats):
            return None
        not_waiting = [rank for rank, heartbeat in enumerate(heartbeats) if heartbeat.state is not RankState.waiting]
        reason = "where no rank has done anything for {patience:.0f} s"
        return _hang(not_waiting or range(len(heartbeats)), heartbeats, reason)

    def _without_ticks(self, heartbeats: Sequence[Heartbeat], now: float) -> list[int]:
        """Return the ranks whose tick count has stood still for longer than their patience."""
        return [
            rank for rank, heartbeat in enumerate(heartbeats) if now - self._last_progress[rank] > heartbeat.patience
        ]


def _last_change(last_change: Sequence[float], unchanged: Sequence[bool], now: float) -> list[float]:
    """Return the time at which each rank's value last changed."""
    before = last_change or [now] * len(unchanged)
    return [since if same else now for since, same in zip(before, unchanged, strict=True)]


def _hang(ranks: Sequence[int], heartbeats: Sequence[Heartbeat], reason: str) -> Hang | None:
    """Return the hang of these ranks, the least advanced first; None without ranks."""
    if not ranks:
        return None
    order = sorted(ranks, key=lambda rank: (heartbeats[rank].phases_entered, heartbeats[rank].ticks))
    return Hang(order, reason.format(patience=heartbeats[order[0]].patience))

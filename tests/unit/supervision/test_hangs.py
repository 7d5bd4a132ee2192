"""The rules by which ranks are detected to hang, over the heartbeats of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tempo_megatron.supervision.hangs import SILENCE_SECONDS, Hang, HangDetector, Heartbeat, RankState

WORKING = Heartbeat(phases_entered=5, ticks=7, state=RankState.working, patience=45.0, number=0)
WAITING = replace(WORKING, state=RankState.waiting)
UNTIMED = replace(WORKING, state=RankState.untimed)
INDEPENDENT = replace(WORKING, state=RankState.independent)


def hang_after(
    heartbeats: Sequence[Heartbeat], seconds: int, ticking: Sequence[int] = (), silent: Sequence[int] = ()
) -> Hang | None:
    """Return the hang that is detected within `seconds` if the ranks stay in these states.

    Ranks in `ticking` tick every 30 seconds. Ranks in `silent` send no further heartbeat.
    """
    detector = HangDetector(45.0)
    for now in range(seconds + 1):
        present = [
            replace(
                heartbeat,
                ticks=heartbeat.ticks + now // 30 * (rank in ticking),
                number=now * (rank not in silent),
            )
            for rank, heartbeat in enumerate(heartbeats)
        ]
        hang = detector.detect(present, float(now))
        if hang:
            return hang
    return None


def test_if_no_rank_progresses_the_rank_that_does_not_wait_is_named() -> None:
    """The other ranks wait for it in a collective. They are not the cause."""
    heartbeats = [WAITING, WAITING, WORKING, WAITING]
    assert hang_after(heartbeats, 45) is None
    hang = hang_after(heartbeats, 46)
    assert hang and hang.ranks == [2] and "no rank has done anything for 45 s" in hang.reason


def test_one_rank_that_ticks_keeps_the_job_from_hanging() -> None:
    """At the end of a generation all other ranks may wait an hour for one replica's last response."""
    assert hang_after([WAITING, WAITING, WORKING, WAITING], 3600, ticking=[2]) is None


def test_a_step_of_unknown_length_keeps_the_job_from_hanging() -> None:
    """A rank that writes to a slow file system cannot tick. Its full patience begins again afterwards."""
    assert hang_after([UNTIMED, WAITING], 3600) is None
    detector = HangDetector(45.0)
    for now in range(100):
        assert not detector.detect([UNTIMED, WAITING], float(now))
    assert not detector.detect([WORKING, WAITING], 144.0)
    assert detector.detect([WORKING, WAITING], 145.0)


def test_a_rank_that_is_gone_is_detected_whatever_its_last_state() -> None:
    """The kernel's out-of-memory killer ends a rank that reads a model, while the others wait in NCCL."""
    assert hang_after([UNTIMED, WAITING], int(SILENCE_SECONDS), silent=[0]) is None
    hang = hang_after([UNTIMED, WAITING], int(SILENCE_SECONDS) + 1, silent=[0])
    assert hang and hang.ranks == [0] and "not heard of for 300 s" in hang.reason


def test_ranks_that_all_wait_for_each_other_are_all_named_the_least_advanced_first() -> None:
    """Some ranks have not joined a collective, or a GPU does not answer: every stack is needed."""
    hang = hang_after([WAITING, replace(WAITING, ticks=6), WAITING], 50)
    assert hang and hang.ranks == [1, 0, 2]
    hang = hang_after([WORKING, replace(WORKING, ticks=6), WAITING], 50)
    assert hang and hang.ranks == [1, 0]


def test_an_independent_rank_is_detected_while_other_ranks_tick() -> None:
    """A replica's engine waits for no other replica: it can hang while the others generate."""
    heartbeats = [INDEPENDENT, INDEPENDENT, WAITING]
    hang = hang_after(heartbeats, 50, ticking=[0])
    assert hang and hang.ranks == [1]
    assert hang_after(heartbeats, 3600, ticking=[0, 1]) is None


def test_ranks_between_phases_are_not_timed() -> None:
    """Work between two phases, such as writing a log, has only the limit of a phase. A rank in the phase before that
    hangs is still detected while others wait for it."""
    between_phases = replace(WORKING, state=RankState.between_phases)
    assert hang_after([between_phases, WAITING], 3600) is None
    assert hang_after([WORKING, WAITING], 46) is not None


def test_a_phases_first_time_has_a_patience_of_its_own() -> None:
    """The first time, kernels are compiled and NCCL connects."""
    first_time = [replace(heartbeat, patience=300.0) for heartbeat in (WORKING, WAITING)]
    assert hang_after(first_time, 300) is None
    assert hang_after(first_time, 301) is not None
    ahead = replace(WAITING, phases_entered=6, ticks=0)
    assert hang_after([ahead, first_time[0]], 300) is None
    assert hang_after([ahead, first_time[0]], 301) is not None


def test_a_rank_that_is_a_phase_behind_hangs_unless_it_ticks() -> None:
    """All ranks pass through the same phases. A rank that still works or writes in the one before is waited for."""
    ahead = replace(WAITING, phases_entered=6, ticks=0)
    hang = hang_after([ahead, WORKING], 46)
    assert hang and hang.ranks == [1] and "a phase behind the others for 45 s" in hang.reason
    assert hang_after([ahead, WORKING], 3600, ticking=[1]) is None
    assert hang_after([ahead, UNTIMED], 3600) is None
    assert hang_after([ahead, replace(WORKING, state=RankState.between_phases)], 46) is not None


def test_a_heartbeat_is_parsed_as_it_was_sent() -> None:
    """Heartbeats travel through the store as text."""
    assert Heartbeat.parse(str(UNTIMED)) == UNTIMED

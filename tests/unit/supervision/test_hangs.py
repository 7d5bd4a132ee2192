"""Which ranks are held to hang: the rules, over what all ranks say of themselves in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tempo_megatron.supervision.hangs import SILENCE_SECONDS, Beat, Hang, Hangs, RankState

WORKS = Beat(entered=5, ticks=7, state=RankState.works, patience=45.0, number=0)
WAITS = replace(WORKS, state=RankState.waits)
UNTIMED = replace(WORKS, state=RankState.untimed)
ALONE = replace(WORKS, state=RankState.alone)


def after(beats: Sequence[Beat], seconds: int, moving: Sequence[int] = (), gone: Sequence[int] = ()) -> Hang | None:
    """What is found when the ranks go on like this; those in `moving` tick every 30 seconds, those in `gone` are not
    heard of any more."""
    hangs = Hangs(45.0)
    for now in range(seconds + 1):
        said = [
            replace(beat, ticks=beat.ticks + now // 30 * (rank in moving), number=now * (rank not in gone))
            for rank, beat in enumerate(beats)
        ]
        found = hangs.found(said, float(now))
        if found:
            return found
    return None


def test_a_job_in_which_nobody_moves_hangs_and_the_one_that_does_not_wait_is_named() -> None:
    """The others wait for it in a collective, and are no culprits."""
    assert after([WAITS, WAITS, WORKS, WAITS], 45) is None
    found = after([WAITS, WAITS, WORKS, WAITS], 46)
    assert found and found.ranks == [2] and "no rank has done anything for 45 s" in found.why


def test_one_rank_that_moves_keeps_the_job_from_hanging() -> None:
    """The tail of a generation: all others wait for an hour for one replica's last response."""
    assert after([WAITS, WAITS, WORKS, WAITS], 3600, moving=[2]) is None


def test_a_step_of_unknown_length_keeps_the_job_from_hanging() -> None:
    """One rank writes to a slow file system, where it cannot count. It gets its whole patience again afterwards."""
    assert after([UNTIMED, WAITS], 3600) is None
    hangs = Hangs(45.0)
    for now in range(100):
        assert not hangs.found([UNTIMED, WAITS], float(now))
    assert not hangs.found([WORKS, WAITS], 144.0)
    assert hangs.found([WORKS, WAITS], 145.0)


def test_a_rank_that_is_gone_is_found_whatever_it_said_last() -> None:
    """The kernel's out-of-memory killer takes one while it reads a model, and the others wait in NCCL."""
    assert after([UNTIMED, WAITS], int(SILENCE_SECONDS), gone=[0]) is None
    found = after([UNTIMED, WAITS], int(SILENCE_SECONDS) + 1, gone=[0])
    assert found and found.ranks == [0] and "not heard of for 300 s" in found.why


def test_ranks_that_all_wait_for_each_other_are_all_named_the_least_advanced_first() -> None:
    """A collective that some have not joined, or a GPU that does not answer: every stack is needed."""
    found = after([WAITS, replace(WAITS, ticks=6), WAITS], 50)
    assert found and found.ranks == [1, 0, 2]
    found = after([WORKS, replace(WORKS, ticks=6), WAITS], 50)
    assert found and found.ranks == [1, 0]


def test_a_rank_that_works_alone_is_found_while_others_move() -> None:
    """A replica's engine waits for no other replica: it hangs though the others generate on."""
    found = after([ALONE, ALONE, WAITS], 50, moving=[0])
    assert found and found.ranks == [1]
    assert after([ALONE, ALONE, WAITS], 3600, moving=[0, 1]) is None


def test_between_phases_nobody_counts() -> None:
    """What lies between two phases (a log is written, a model moves to host memory) has no limit but a phase's; who
    waits there for a rank that hangs in the phase is told from it."""
    between = replace(WORKS, state=RankState.between)
    assert after([between, WAITS], 3600) is None
    assert after([WORKS, WAITS], 46) is not None


def test_the_first_time_in_a_phase_has_patience_of_its_own() -> None:
    """Kernels are compiled and NCCL connects."""
    first = [replace(beat, patience=300.0) for beat in (WORKS, WAITS)]
    assert after(first, 300) is None
    assert after(first, 301) is not None
    ahead = replace(WAITS, entered=6, ticks=0)
    assert after([ahead, first[0]], 300) is None
    assert after([ahead, first[0]], 301) is not None


def test_a_rank_that_is_behind_hangs_unless_it_moves() -> None:
    """Ranks pass through the same phases. One that still works, or writes, in the one before is waited for."""
    ahead = replace(WAITS, entered=6, ticks=0)
    found = after([ahead, WORKS], 46)
    assert found and found.ranks == [1] and "a phase behind the others for 45 s" in found.why
    assert after([ahead, WORKS], 3600, moving=[1]) is None
    assert after([ahead, UNTIMED], 3600) is None
    assert after([ahead, replace(WORKS, state=RankState.between)], 46) is not None


def test_a_beat_arrives_as_it_was_sent() -> None:
    """It travels as text through the store."""
    assert Beat.parse(str(UNTIMED)) == UNTIMED

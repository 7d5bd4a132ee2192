"""What nodes are to each other: bandwidth between them, who comes, and what a bad one does to a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tempo_megatron import cli
from tempo_megatron.config import BadNodes, PreflightConfig
from tempo_megatron.preflight import bandwidth, meeting
from tempo_megatron.preflight.bandwidth import Measured
from tempo_megatron.preflight.command import before_training
from tempo_megatron.preflight.conduct import absent, silent
from tempo_megatron.preflight.facts import NodeVerdict
from tempo_megatron.preflight.meeting import Meeting, MeetingError, RankLocation, RankReplies, connect
from tempo_megatron.validation import recipe
from tests.clock import Clock
from tests.unit.preflight.doctor import config, free_port, report, wrong


@pytest.mark.parametrize("nodes", range(2, 8))
def test_pairs_of_a_ring_do_not_overlap(nodes: int) -> None:
    """Every node meets both its neighbors, one at a time."""
    names = [f"n{at}" for at in range(nodes)]
    rounds = bandwidth.ring(names)
    for pairs in rounds:
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy))
    met = [node for pairs in rounds for pair in pairs for node in pair]
    assert all(met.count(node) == (1 if nodes == 2 else 2) for node in names)
    assert bandwidth.ring(["n0"]) == []


def test_the_bad_node_of_a_ring_is_told_from_its_neighbors() -> None:
    """n2 spoils both its pairs; n1 and n3 have another neighbor each."""
    names = [f"n{at}" for at in range(5)]
    pairs = [pair for pairs in bandwidth.ring(names) for pair in pairs]
    failed = [Measured(pair, 0.0, "rank 2: timeout") if "n2" in pair else Measured(pair, 40.0) for pair in pairs]
    slow = [Measured(pair, 3.0 if "n2" in pair else 40.0) for pair in pairs]
    assert wrong(bandwidth.across(failed, 0.0, 0.0)) == [("n2", "all-reduce across", "bad")]
    assert wrong(bandwidth.across(slow, 10.0, 0.0)) == [("n2", "all-reduce across", "bad")]
    assert wrong(bandwidth.across(slow, 0.0, 0.0)) == []


def test_a_node_that_is_slower_than_the_others_is_bad() -> None:
    """Nobody has to know what a link should give; of two nodes neither is the slow one."""
    names = [f"n{at}" for at in range(4)]
    pairs = [Measured(pair, 27.0 if "n2" in pair else 40.0) for pairs in bandwidth.ring(names) for pair in pairs]
    assert wrong(bandwidth.across(pairs, 0.0, 0.7)) == [("n2", "all-reduce across", "bad")]
    assert wrong(bandwidth.across(pairs, 0.0, 0.6)) == []
    alone = [Measured((name,), 270.0 if name == "n1" else 400.0) for name in names[:3]]
    (slow,) = [made for made in bandwidth.within(alone, 0.0, 0.7) if made.verdict is NodeVerdict.bad]
    assert slow.node == "n1" and "the nodes' median is 400" in slow.found
    assert wrong(bandwidth.within(alone[:2], 0.0, 0.7)) == []
    failed = [Measured(("n0",), 0.0, "no answer"), *alone[1:]]
    assert wrong(bandwidth.within(failed, 0.0, 0.7)) == [("n0", "all-reduce within", "bad")]


def test_a_group_is_as_fast_as_its_slowest_rank_and_fails_with_any() -> None:
    groups = {("n1",): [0, 1], ("n2",): [2, 3], ("n3",): [4, 5]}
    made = bandwidth.collected(groups, {0: 9.0, 1: 7.0, 2: 9.0, 4: 8.0}, {3: "NCCL error"})
    assert [round(group.gb_per_second) for group in made] == [7, 0, 0]
    assert made[1].reason == "rank 3: NCCL error" and made[2].reason == "rank 5: no answer"


def test_who_never_came_is_named() -> None:
    """By node where Slurm's list is known, otherwise by rank, beside those that came; a stuck node by its rank."""
    came, limits = {0: "n1", 1: "n1", 4: "n3", 5: "n3"}, PreflightConfig(presence_seconds=30)
    (named,) = absent(came, 6, ["n1", "n2", "n3"], limits)
    assert (named.node, named.check) == ("n2", "presence")
    assert named.found == "never came within preflight.presence_seconds, 30 s"
    (numbered,) = absent(came, 6, [], limits)
    assert numbered.found.startswith("ranks 2, 3 never came") and "ranks beside them are on n1, n3" in numbered.found
    assert absent({0: "n1", 1: "n2"}, 2, ["n1", "n2", "n3"], limits) == []  # n3 has no rank of this run
    (stuck,) = silent(RankReplies(given={0: {}, 1: None, 4: {}}, absent=[5]), came, 20)
    assert stuck.node == "n3" and "rank 5 came and did not describe the node within 20 s" in stuck.found


def test_ranks_may_come_late_as_long_as_it_is_not_long_after_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Healthy nodes read their imports from a cold file system at different speeds: the wait counts from when most have
    come, and all hear of the first rank that it is over."""
    to_come, come_at, port = 150, {1: 100, 2: 190}, free_port()
    others: dict[int, Meeting] = {}

    def meet(rank: int) -> Meeting:
        return Meeting(RankLocation(rank, 0, 3, "localhost", port, False, f"n{rank}"), {}, to_come, seconds=60)

    class Arrivals(Clock):
        """Ranks come when it is their time."""

        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            others.update({rank: meet(rank) for rank, at in come_at.items() if rank not in others and self.now >= at})

    monkeypatch.setattr(meeting, "time", Arrivals())
    monkeypatch.setattr(meeting, "_POLL_SECONDS", 1.0)
    first = meet(0)
    first.wait_for_all()
    first.end([], sorted(first.came()), seconds=60)
    for rank in others.values():
        rank.wait_for_all()
    assert [rank.follow() for rank in others.values()] == [[0, 1, 2]] * 2


def test_what_a_bad_node_does_is_a_setting() -> None:
    """fail: nothing starts. leave_out: the others, as many as the layout divides. report: all of them."""
    made, of = report({"n1": "7 GPUs"}), config()
    assert made.bad_nodes == ["n1"] and made.nodes_to_use(of) == []
    of.preflight.bad_nodes = BadNodes.leave_out
    assert made.nodes_to_use(of) == ["n0", "n2", "n3"]
    of.parallel.pipeline_model_parallel_size = 4  # 16 ranks a model: two nodes
    assert made.nodes_to_use(of) == ["n0", "n2"]
    of.parallel.pipeline_model_parallel_size = 16  # 64 ranks a model: eight nodes
    assert made.nodes_to_use(of) == []
    of.preflight.bad_nodes = BadNodes.report
    assert made.nodes_to_use(of) == ["n0", "n1", "n2", "n3"]
    of.preflight.bad_nodes = BadNodes.leave_out
    assert report({"": "no space"}).nodes_to_use(of) == []


def test_the_table_lists_all_that_is_wrong() -> None:
    table = report({"n1": "7 GPUs", "n3": "6 GPUs"}).table(config())
    for words in ("n1", "7 GPUs", "n3", "6 GPUs", "-> swap it", "2 of 4 nodes good", "training cannot start"):
        assert words in table


def test_a_first_rank_that_is_not_there_is_an_error_in_time() -> None:
    """Not a hang: the address and the reason are said."""
    nobody = RankLocation(
        rank=1, local_rank=0, world_size=2, host="localhost", port=9, launcher_serves=False, node="n2"
    )
    said = r"rank 0 cannot be reached at localhost:9 within preflight.presence_seconds, 0\.2 s: .*refused"
    with pytest.raises(MeetingError, match=f"{said}; localhost is 127.0.0.1 here"):
        connect(nobody, 0.2)


def test_training_does_not_start_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A rank whose first rank is not there says so within the limit; checks that are turned off are not made."""
    place = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "9"}
    for name, value in {**place, "SLURMD_NODENAME": "n7"}.items():
        monkeypatch.setenv(name, value)
    of = config()
    of.preflight.presence_seconds = 0.3
    assert before_training(of) == 69
    assert "rank 1 on n7: rank 0 cannot be reached at localhost:9" in capsys.readouterr().err
    of.preflight.enabled = False
    assert before_training(of) == 0


def test_nodes_that_cannot_train_have_an_exit_code_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch script may ask Slurm for other nodes; a recipe that is wrong stays wrong."""
    place = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "9"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(recipe, "recipe_problems", lambda config: [])
    (tmp_path / "recipe.yaml").touch()
    for command in ("train", "doctor"):
        given = [command, str(tmp_path / "recipe.yaml"), "preflight.presence_seconds=1"]
        assert cli.main(given) == 69
        assert cli.main([*given, "preflight.no_such=1"]) == 2


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("echo 'torch.DistBackendError: NCCL error' >&2; exit 1", "torch.DistBackendError: NCCL error"),
        ("echo 'Timeout (0:01:00)!' >&2; exit 1", "no end within 60 s"),
        ("kill -ABRT $$", "exit code -6"),
    ],
)
def test_a_measurement_that_dies_has_a_reason(
    does: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL may raise, hang or take its process with it: the rank that waits for it is told in one line."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{does}\n")
    python.chmod(0o755)
    monkeypatch.setattr(bandwidth.sys, "executable", str(python))
    with pytest.raises(RuntimeError, match=f"^{reason}$"):
        bandwidth.reduce_in_process("name", [[0, 1], [2, 3]], 60.0, rank=3)


def test_a_measurement_knows_its_place_in_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups that run at the same time have names of their own in the store."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/said\necho 41.5\n')
    python.chmod(0o755)
    monkeypatch.setattr(bandwidth.sys, "executable", str(python))
    assert bandwidth.reduce_in_process("name", [[0, 1], [2, 3, 4]], 60.0, rank=4) == 41.5
    assert "--group=name/1 --rank=2 --size=3 --seconds=60.0" in (tmp_path / "said").read_text()

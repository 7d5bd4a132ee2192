"""Bandwidth between nodes, absent ranks, and what a bad node does to a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tempo_megatron import cli
from tempo_megatron.config import BadNodes, PreflightConfig
from tempo_megatron.preflight import bandwidth, rendezvous
from tempo_megatron.preflight.bandwidth import GroupBandwidth
from tempo_megatron.preflight.check_runner import check_presence, check_replies
from tempo_megatron.preflight.command import before_training
from tempo_megatron.preflight.findings import NodeVerdict
from tempo_megatron.preflight.rendezvous import RankLocation, RankReplies, Rendezvous, RendezvousError, connect
from tempo_megatron.utils.ports import free_ports
from tempo_megatron.validation import recipe
from tests.clock import Clock
from tests.unit.preflight.doctor import make_config, make_report, problems


@pytest.mark.parametrize("nodes", range(2, 8))
def test_pairs_of_a_ring_do_not_overlap(nodes: int) -> None:
    """Each node is paired with both its neighbors, one after the other."""
    names = [f"n{index}" for index in range(nodes)]
    rounds = bandwidth.ring_pairs(names)
    for pairs in rounds:
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy))
    measured_nodes = [node for pairs in rounds for pair in pairs for node in pair]
    assert all(measured_nodes.count(node) == (1 if nodes == 2 else 2) for node in names)
    assert bandwidth.ring_pairs(["n0"]) == []


def test_only_the_bad_node_of_a_ring_is_reported() -> None:
    """n2 spoils both its pairs. n1 and n3 each have a good pair with another neighbor."""
    names = [f"n{index}" for index in range(5)]
    pairs = [pair for pairs in bandwidth.ring_pairs(names) for pair in pairs]
    good = [GroupBandwidth(pair, 40.0) for pair in pairs if "n2" not in pair]
    failed = [*good, *(GroupBandwidth(pair, 0.0, "rank 2: timeout") for pair in pairs if "n2" in pair)]
    slow = [GroupBandwidth(pair, 3.0 if "n2" in pair else 40.0) for pair in pairs]
    assert problems(bandwidth.check_across_nodes(failed, 0.0, 0.0)) == [("n2", "all-reduce across", "bad")]
    assert problems(bandwidth.check_across_nodes(slow, 10.0, 0.0)) == [("n2", "all-reduce across", "bad")]
    assert problems(bandwidth.check_across_nodes(slow, 0.0, 0.0)) == []


def test_a_node_that_is_slower_than_the_others_is_bad() -> None:
    """No absolute limit is needed. Of two nodes neither is reported."""
    names = [f"n{index}" for index in range(4)]
    pairs = [pair for pairs in bandwidth.ring_pairs(names) for pair in pairs]
    results = [GroupBandwidth(pair, 27.0 if "n2" in pair else 40.0) for pair in pairs]
    assert problems(bandwidth.check_across_nodes(results, 0.0, 0.7)) == [("n2", "all-reduce across", "bad")]
    assert problems(bandwidth.check_across_nodes(results, 0.0, 0.6)) == []
    single_nodes = [GroupBandwidth((name,), 270.0 if name == "n1" else 400.0) for name in names[:3]]
    findings = bandwidth.check_within_nodes(single_nodes, 0.0, 0.7)
    (bad,) = [finding for finding in findings if finding.verdict is NodeVerdict.bad]
    assert bad.node == "n1" and "the nodes' median is 400" in bad.message
    assert problems(bandwidth.check_within_nodes(single_nodes[:2], 0.0, 0.7)) == []
    failed = [GroupBandwidth(("n0",), 0.0, "no answer"), *single_nodes[1:]]
    assert problems(bandwidth.check_within_nodes(failed, 0.0, 0.7)) == [("n0", "all-reduce within", "bad")]


def test_a_group_is_as_fast_as_its_slowest_rank_and_fails_with_any() -> None:
    groups = {("n1",): [0, 1], ("n2",): [2, 3], ("n3",): [4, 5]}
    results = bandwidth.group_results(groups, {0: 9.0, 1: 7.0, 2: 9.0, 4: 8.0}, {3: "NCCL error"})
    assert [round(result.gb_per_second) for result in results] == [7, 0, 0]
    assert results[1].reason == "rank 3: NCCL error" and results[2].reason == "rank 5: no answer"


def test_absent_nodes_and_ranks_are_named() -> None:
    """Nodes are named if Slurm's list is known, otherwise ranks and their neighbors. A stuck node is named with its
    rank."""
    nodes, limits = {0: "n1", 1: "n1", 4: "n3", 5: "n3"}, PreflightConfig(presence_seconds=30)
    (node_finding,) = check_presence(nodes, 6, ["n1", "n2", "n3"], limits)
    assert (node_finding.node, node_finding.check) == ("n2", "presence")
    assert node_finding.message == "never came within preflight.presence_seconds, 30 s"
    (rank_finding,) = check_presence(nodes, 6, [], limits)
    assert rank_finding.message.startswith("ranks 2, 3 never came")
    assert "ranks beside them are on n1, n3" in rank_finding.message
    assert check_presence({0: "n1", 1: "n2"}, 2, ["n1", "n2", "n3"], limits) == []  # n3 has no rank of this run
    (stuck,) = check_replies(RankReplies(answers={0: {}, 1: None, 4: {}}, absent=[5]), nodes, 20)
    assert stuck.node == "n3" and "rank 5 came and did not describe the node within 20 s" in stuck.message


def test_the_wait_for_late_ranks_counts_from_when_most_have_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Healthy nodes import from a cold file system at different speeds. The first rank tells all when the wait is
    over."""
    presence_seconds, come_at, port = 150, {1: 100, 2: 190}, free_ports()[0]
    others: dict[int, Rendezvous] = {}

    def join(rank: int) -> Rendezvous:
        location = RankLocation(rank, 0, 3, "localhost", port, False, f"n{rank}")
        return Rendezvous(location, {}, presence_seconds, seconds=60)

    class Arrivals(Clock):
        """Lets each rank come at its time."""

        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            due = [rank for rank, seconds in come_at.items() if rank not in others and self.now >= seconds]
            others.update({rank: join(rank) for rank in due})

    monkeypatch.setattr(rendezvous, "time", Arrivals())
    monkeypatch.setattr(rendezvous, "_POLL_SECONDS", 1.0)
    first = join(0)
    first.wait_for_all()
    first.end([], sorted(first.present_ranks()), seconds=60)
    for other in others.values():
        other.wait_for_all()
    assert [other.follow() for other in others.values()] == [[0, 1, 2]] * 2


def test_what_a_bad_node_does_is_a_setting() -> None:
    """fail: nothing starts. leave_out: the good nodes are used, as many as the layout divides. report: all are used."""
    report, config = make_report({"n1": "7 GPUs"}), make_config()
    assert report.bad_nodes == ["n1"] and report.nodes_to_use(config) == []
    config.preflight.bad_nodes = BadNodes.leave_out
    assert report.nodes_to_use(config) == ["n0", "n2", "n3"]
    config.parallel.pipeline_model_parallel_size = 4  # 16 ranks a model: two nodes
    assert report.nodes_to_use(config) == ["n0", "n2"]
    config.parallel.pipeline_model_parallel_size = 16  # 64 ranks a model: eight nodes
    assert report.nodes_to_use(config) == []
    config.preflight.bad_nodes = BadNodes.report
    assert report.nodes_to_use(config) == ["n0", "n1", "n2", "n3"]
    config.preflight.bad_nodes = BadNodes.leave_out
    assert make_report({"": "no space"}).nodes_to_use(config) == []


def test_the_table_lists_all_problems() -> None:
    table = make_report({"n1": "7 GPUs", "n3": "6 GPUs"}).table(make_config())
    for words in ("n1", "7 GPUs", "n3", "6 GPUs", "-> swap it", "2 of 4 nodes good", "training cannot start"):
        assert words in table


def test_a_missing_first_rank_is_an_error_in_time() -> None:
    """The error names the address and the reason."""
    location = RankLocation(
        rank=1, local_rank=0, world_size=2, host="localhost", port=9, launcher_serves=False, node="n2"
    )
    message = r"rank 0 cannot be reached at localhost:9 within preflight.presence_seconds, 0\.2 s: .*refused"
    with pytest.raises(RendezvousError, match=f"{message}; localhost is 127.0.0.1 here"):
        connect(location, 0.2)


def test_training_does_not_start_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A rank without a first rank reports that within the limit. With preflight.enabled=false nothing is checked."""
    variables = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "9"}
    for name, value in {**variables, "SLURMD_NODENAME": "n7"}.items():
        monkeypatch.setenv(name, value)
    config = make_config()
    config.preflight.presence_seconds = 0.3
    assert before_training(config) == 69
    assert "rank 1 on n7: rank 0 cannot be reached at localhost:9" in capsys.readouterr().err
    config.preflight.enabled = False
    assert before_training(config) == 0


def test_nodes_that_cannot_train_have_an_exit_code_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch script may ask Slurm for other nodes. A wrong recipe is wrong on any nodes."""
    variables = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "9"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(recipe, "recipe_problems", lambda config: [])
    (tmp_path / "recipe.yaml").touch()
    for command in ("train", "doctor"):
        arguments = [command, str(tmp_path / "recipe.yaml"), "preflight.presence_seconds=1"]
        assert cli.main(arguments) == 69
        assert cli.main([*arguments, "preflight.no_such=1"]) == 2


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'torch.DistBackendError: NCCL error' >&2; exit 1", "torch.DistBackendError: NCCL error"),
        ("echo 'Timeout (0:01:00)!' >&2; exit 1", "no end within 60 s"),
        ("kill -ABRT $$", "exit code -6"),
    ],
)
def test_a_failed_measurement_has_a_reason(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL may raise, hang or crash its process. The rank that started it gets the reason in one line."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(bandwidth.sys, "executable", str(python))
    with pytest.raises(RuntimeError, match=f"^{reason}$"):
        bandwidth.measure_in_subprocess("name", [[0, 1], [2, 3]], 60.0, rank=3)


def test_a_measurement_gets_its_group_and_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups that are measured at the same time have different names in the store."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/arguments\necho 41.5\n')
    python.chmod(0o755)
    monkeypatch.setattr(bandwidth.sys, "executable", str(python))
    assert bandwidth.measure_in_subprocess("name", [[0, 1], [2, 3, 4]], 60.0, rank=4) == 41.5
    assert "--group=name/1 --rank=2 --size=3 --seconds=60.0" in (tmp_path / "arguments").read_text()

"""Whether a run has room: on the disk, and by `tempo plan` in the memory of the nodes that came."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tempo_megatron import planning
from tempo_megatron.config import BadNodes, Precision, load_config
from tempo_megatron.preflight import room
from tempo_megatron.preflight.command import examine
from tempo_megatron.preflight.facts import Facts, NodeVerdict
from tempo_megatron.preflight.meeting import RankLocation, RankReplies
from tempo_megatron.preflight.report import Report
from tests.conftest import ROOT
from tests.unit.preflight.doctor import GOOD, config, free_port, gpus, report, wrong


def test_the_disk_has_room_for_the_checkpoints_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 14B one takes some 375 GiB, and a run holds four at a time; those that it has already need no room again."""
    free = 1600.0
    monkeypatch.setattr(room.shutil, "disk_usage", lambda directory: SimpleNamespace(free=free * 2**30))
    of = config()
    of.run_dir, of.model.hf_path, of.checkpoint.keep = str(tmp_path), "models/Qwen3-14B-Base", 2
    size = planning.checkpoint_gib(of, gpus=16)
    assert 350 < size < 400
    assert room.disk(tmp_path, of, 16).verdict is NodeVerdict.good
    free = 1200.0
    short = room.disk(tmp_path, of, 16)
    assert short.verdict is NodeVerdict.bad and f"4 checkpoints take {4 * size:,.1f}, 0.0 of them there" in short.found
    of.loop.iterations = 1  # of which two are made
    assert room.disk(tmp_path, of, 16).verdict is NodeVerdict.good
    of.loop.iterations, of.checkpoint.keep_every = 100, 20
    assert f"9 checkpoints take {9 * size:,.1f}" in room.disk(tmp_path, of, 16).found  # five stay for good
    of.checkpoint.keep_every = 0
    weights = tmp_path / "checkpoints" / "iteration-000001" / "weights"
    weights.parent.mkdir(parents=True)
    with weights.open("wb") as file:
        file.truncate(int(size * 2**30))  # a hole
    assert room.disk(tmp_path, of, 16).verdict is NodeVerdict.good
    of.preflight.free_disk_gib = 100.0
    assert room.disk(tmp_path, of, 16).verdict is NodeVerdict.bad
    of.model.hf_path, free = "models/not-known", 100.5
    assert room.disk(tmp_path, of, 16).verdict is NodeVerdict.good


def test_checkpoints_that_vanish_as_they_are_counted_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run that works in the directory removes its old ones; that it works there is for `occupancy` to say."""
    of, weights = config(), tmp_path / "checkpoints" / "iteration-000001" / "weights"
    weights.parent.mkdir(parents=True)
    weights.touch()
    (weights.parent / "more").mkdir()
    of.run_dir = str(tmp_path)
    lstat = Path.lstat

    def vanishing(path: Path) -> Any:
        shutil.rmtree(weights.parent, ignore_errors=True)
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", vanishing)
    assert room.disk(tmp_path, of, 16).check == "free disk"
    assert not weights.exists()


def test_no_other_nodes_are_asked_for_what_none_has(tmp_path: Path) -> None:
    """A disk that is full is full on any nodes: the exit code is that of a recipe that is wrong."""
    of = config()
    of.model.precision, of.run_dir, of.preflight.free_disk_gib = Precision.fp32, str(tmp_path), 1e9
    _, code = examine(of, RankLocation(0, 0, 1, "localhost", free_port(), False, "n0"), measure=False)
    assert code == 2


def test_a_recipe_that_cannot_fit_is_wrong_on_any_nodes() -> None:
    """`tempo plan`'s figures for the GPUs that are there, before models are built: no other nodes are asked for.
    What is not known, the model or the GPUs, is not judged."""
    of = load_config(ROOT / "recipes" / "qwen3_14b_math.yaml")
    facts = dict.fromkeys(("n1", "n2"), replace(GOOD, gpus=gpus(total_gib=39.6)))
    assert [made.verdict for made in room.memory({"n1": GOOD}, of, 1)] == [NodeVerdict.good]
    small = list(room.memory(facts, of, 2))
    assert wrong(small) == [("", "memory", "bad")] * len(small) and "of a GPU's 39.6" in small[0].found
    assert not Report({}, small, {}, 1.0).other_nodes_may_do
    assert report({"n1": "7 GPUs"}).other_nodes_may_do
    assert list(room.memory({"n1": replace(GOOD, gpus=[])}, of, 1)) == []
    of.model.hf_path = "models/not-known"
    assert list(room.memory(facts, of, 2)) == []


class Attendance:
    """In the place of a Meeting: `facts` are of the nodes that come, to a run of 8 ranks on each of `nodes`. All that
    is asked of them goes well."""

    def __init__(self, facts: Facts, nodes: int) -> None:
        self.place = RankLocation(0, 0, 8 * nodes, "localhost", 9, False, "n1")
        self._facts = facts
        self._came = {8 * int(node[1:]) - 8 + rank: node for node in facts for rank in range(8)}

    def wait_for_all(self) -> None:
        pass

    def came(self) -> dict[int, str]:
        return self._came

    def ask(self, name: str, ranks: Collection[int], seconds: float, arguments: object = None) -> RankReplies:
        def said(rank: int) -> Any:
            facts = None if rank % 8 else asdict(self._facts[self._came[rank]])
            addresses = {"listen": ["127.0.0.1", 1], "reach": {}, "stop listening": None}
            return {"facts": facts, "clock": time.time(), "all-reduce": 100.0, **addresses}[name]

        return RankReplies(given={rank: said(rank) for rank in ranks})

    def end(self, ranks: Collection[int], outcome: Any, seconds: float) -> None:
        pass


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Examines a run of 14B on so many nodes, of which those come whose facts are given; its report and exit code."""

    def examined(facts: Facts, nodes: int, *, bad_nodes: BadNodes, measure: bool) -> tuple[Report, int]:
        of = load_config(ROOT / "recipes" / "qwen3_14b_math.yaml", [f"preflight.bad_nodes={bad_nodes.value}"])
        of.run_dir = ""
        meeting = Attendance(facts, nodes)
        monkeypatch.setattr("tempo_megatron.preflight.command.Meeting", lambda *_: meeting)
        monkeypatch.setenv("TEMPO_NODES", " ".join(f"n{at + 1}" for at in range(nodes)))
        report, code = examine(of, meeting.place, measure=measure)
        assert report
        return report, code

    return examined


SMALL, TINY = replace(GOOD, host_gib=512, host_free_gib=500), replace(GOOD, host_gib=256, host_free_gib=250)
"""14B fits two small ones, not one; it never fits a tiny one"""


@pytest.mark.parametrize("bad_nodes", [BadNodes.fail, BadNodes.leave_out])
@pytest.mark.parametrize("measure", [False, True])
def test_a_node_that_is_absent_does_not_make_the_recipe_wrong(
    bad_nodes: BadNodes, measure: bool, examined: Any
) -> None:
    """The run fits the nodes that it asks for, and would not fit those that came: other nodes are asked for. So they
    are where those that came are not what is usual; once all are there, that is the recipe's."""
    given = {"bad_nodes": bad_nodes, "measure": measure}
    report, code = examined({"n1": SMALL}, 2, **given)
    assert ("n2", "presence", "bad") in wrong(report.findings) and report.bad_nodes == ["n2"]
    assert report.other_nodes_may_do and code == 69
    assert ("", "memory", "bad") not in wrong(report.findings)
    report, code = examined({"n1": TINY}, 2, **given)
    assert ("", "memory", "bad") in wrong(report.findings) and code == 69
    report, code = examined({"n1": TINY, "n2": TINY}, 2, **given)
    assert ("", "memory", "bad") in wrong(report.findings) and code == 2
    report, code = examined({"n1": SMALL, "n2": SMALL}, 2, **given)
    assert report.is_good and code == 0


def test_the_rest_of_the_nodes_must_have_room(examined: Any) -> None:
    """The doctor starts nothing on fewer nodes than the run fits, and says so."""
    given = {"bad_nodes": BadNodes.leave_out, "measure": True}
    report, code = examined({"n1": SMALL}, 2, **given)
    (found,) = {made.found.split(",")[0] for made in report.findings if made.check == "memory of the rest"}
    assert found == "without the bad nodes (left: 1)" and code == 69
    report, code = examined({"n1": GOOD}, 2, **given)
    assert report.bad_nodes == ["n2"] and code == 0


def test_a_node_with_less_memory_than_the_others_is_bad_and_left_out(examined: Any) -> None:
    """A lost DIMM, or a smaller GPU: it is that node's, not the recipe's, though it be one of two."""
    for short in (TINY, replace(GOOD, gpus=gpus(total_gib=39.6))):
        facts = {"n1": GOOD, "n2": short, "n3": GOOD, "n4": GOOD}
        report, code = examined(facts, 4, bad_nodes=BadNodes.leave_out, measure=True)
        assert {made for made in wrong(report.findings) if made[2] == "bad"} == {("n2", "memory", "bad")}
        assert list(report.ranks) == ["n1", "n2", "n3", "n4"] and code == 0
        report, code = examined({"n1": short, "n2": GOOD}, 2, bad_nodes=BadNodes.leave_out, measure=False)
        assert report.bad_nodes == ["n1"] and code == 69

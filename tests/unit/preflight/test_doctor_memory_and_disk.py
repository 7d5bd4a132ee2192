"""Whether a run fits the disk and, by `tempo plan`, the memory of the nodes that came."""

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
from tempo_megatron.preflight import memory_and_disk
from tempo_megatron.preflight.command import run_checks
from tempo_megatron.preflight.findings import NodeVerdict
from tempo_megatron.preflight.memory_and_disk import check_disk, check_memory
from tempo_megatron.preflight.node_facts import Facts
from tempo_megatron.preflight.rendezvous import RankLocation, RankReplies
from tempo_megatron.preflight.report import Report
from tempo_megatron.utils.ports import free_ports
from tests.conftest import ROOT
from tests.unit.preflight.doctor import GOOD, eight_gpus, make_config, make_report, problems


def test_the_disk_must_have_room_for_all_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 14B checkpoint takes some 375 GiB, and a run holds four at a time. Existing ones need no further room."""
    free = 1600.0
    monkeypatch.setattr(memory_and_disk.shutil, "disk_usage", lambda directory: SimpleNamespace(free=free * 2**30))
    config = make_config()
    config.run_dir, config.model.hf_path, config.checkpoint.keep = str(tmp_path), "models/Qwen3-14B-Base", 2
    size = planning.checkpoint_gib(config, gpus=16)
    assert 350 < size < 400
    assert check_disk(tmp_path, config, 16).verdict is NodeVerdict.good
    free = 1200.0
    short = check_disk(tmp_path, config, 16)
    assert (
        short.verdict is NodeVerdict.bad and f"4 checkpoints take {4 * size:,.1f}, 0.0 of them there" in short.message
    )
    config.loop.iterations = 1  # two checkpoints are written
    assert check_disk(tmp_path, config, 16).verdict is NodeVerdict.good
    config.loop.iterations, config.checkpoint.keep_every = 100, 20
    assert f"9 checkpoints take {9 * size:,.1f}" in check_disk(tmp_path, config, 16).message  # five are kept for good
    config.checkpoint.keep_every = 0
    weights = tmp_path / "checkpoints" / "iteration-000001" / "weights"
    weights.parent.mkdir(parents=True)
    with weights.open("wb") as file:
        file.truncate(int(size * 2**30))  # a sparse file
    assert check_disk(tmp_path, config, 16).verdict is NodeVerdict.good
    config.preflight.free_disk_gib = 100.0
    assert check_disk(tmp_path, config, 16).verdict is NodeVerdict.bad
    config.model.hf_path, free = "models/not-known", 100.5
    assert check_disk(tmp_path, config, 16).verdict is NodeVerdict.good


def test_checkpoints_that_vanish_while_they_are_counted_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run in the directory removes its old checkpoints. `run_dir.lock` reports that run."""
    config, weights = make_config(), tmp_path / "checkpoints" / "iteration-000001" / "weights"
    weights.parent.mkdir(parents=True)
    weights.touch()
    (weights.parent / "more").mkdir()
    config.run_dir = str(tmp_path)
    lstat = Path.lstat

    def vanishing(path: Path) -> Any:
        shutil.rmtree(weights.parent, ignore_errors=True)
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", vanishing)
    assert check_disk(tmp_path, config, 16).check == "free disk"
    assert not weights.exists()


def test_a_full_disk_is_not_blamed_on_nodes(tmp_path: Path) -> None:
    """A shared disk is full on any nodes: the exit code is that of a wrong recipe."""
    config = make_config()
    config.model.precision, config.run_dir, config.preflight.free_disk_gib = Precision.fp32, str(tmp_path), 1e9
    location = RankLocation(0, 0, 1, "localhost", free_ports()[0], False, "n0")
    _, code = run_checks(config, location, measure_bandwidth=False)
    assert code == 2


def test_a_recipe_that_cannot_fit_is_wrong_on_any_nodes() -> None:
    """`tempo plan` judges the GPUs before models are built. An unknown model or GPU gives no finding."""
    config = load_config(ROOT / "recipes" / "qwen3_14b_math.yaml")
    facts = dict.fromkeys(("n1", "n2"), replace(GOOD, gpus=eight_gpus(total_gib=39.6)))
    assert [finding.verdict for finding in check_memory({"n1": GOOD}, config, 1)] == [NodeVerdict.good]
    small = list(check_memory(facts, config, 2))
    assert problems(small) == [("", "memory", "bad")] * len(small) and "of a GPU's 39.6" in small[0].message
    assert not Report({}, small, {}, 1.0).other_nodes_may_help
    assert make_report({"n1": "7 GPUs"}).other_nodes_may_help
    assert list(check_memory({"n1": replace(GOOD, gpus=[])}, config, 1)) == []
    config.model.hf_path = "models/not-known"
    assert list(check_memory(facts, config, 2)) == []


class FakeRendezvous:
    """Replaces a Rendezvous. Each task succeeds.

    `facts` are those of the nodes that come. The run has 8 ranks on each of `nodes` nodes.
    """

    def __init__(self, facts: Facts, nodes: int) -> None:
        self.location = RankLocation(0, 0, 8 * nodes, "localhost", 9, False, "n1")
        self._facts = facts
        self._present = {8 * int(node[1:]) - 8 + rank: node for node in facts for rank in range(8)}

    def wait_for_all(self) -> None:
        pass

    def present_ranks(self) -> dict[int, str]:
        return self._present

    def ask(self, task: str, ranks: Collection[int], seconds: float, arguments: object = None) -> RankReplies:
        def answer(rank: int) -> Any:
            facts = None if rank % 8 else asdict(self._facts[self._present[rank]])
            addresses = {"listen": ["127.0.0.1", 1], "reach": {}, "stop listening": None}
            return {"facts": facts, "clock": time.time(), "all-reduce": 100.0, **addresses}[task]

        return RankReplies(answers={rank: answer(rank) for rank in ranks})

    def end(self, ranks: Collection[int], outcome: Any, seconds: float) -> None:
        pass


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Check a 14B run on `nodes` nodes, of which those in `facts` come. Returns the report and the exit code."""

    def checked(facts: Facts, nodes: int, *, bad_nodes: BadNodes, measure: bool) -> tuple[Report, int]:
        config = load_config(ROOT / "recipes" / "qwen3_14b_math.yaml", [f"preflight.bad_nodes={bad_nodes.value}"])
        config.run_dir = ""
        rendezvous = FakeRendezvous(facts, nodes)
        monkeypatch.setattr("tempo_megatron.preflight.command.Rendezvous", lambda *_: rendezvous)
        monkeypatch.setenv("TEMPO_NODES", " ".join(f"n{number}" for number in range(1, nodes + 1)))
        report, code = run_checks(config, rendezvous.location, measure_bandwidth=measure)
        assert report
        return report, code

    return checked


SMALL, TINY = replace(GOOD, host_gib=512, host_free_gib=500), replace(GOOD, host_gib=256, host_free_gib=250)
"""A 14B run fits two small nodes, but not one. It fits no number of tiny nodes."""


@pytest.mark.parametrize("bad_nodes", [BadNodes.fail, BadNodes.leave_out])
@pytest.mark.parametrize("measure", [False, True])
def test_a_node_that_is_absent_does_not_make_the_recipe_wrong(bad_nodes: BadNodes, measure: bool, checked: Any) -> None:
    """A run that fits its nodes, but not those that came, gets exit code 69, so that Slurm gives other nodes.

    The recipe is wrong (exit code 2) only if it does not fit although all nodes came.
    """
    options: dict[str, Any] = {"bad_nodes": bad_nodes, "measure": measure}
    report, code = checked({"n1": SMALL}, 2, **options)
    assert ("n2", "presence", "bad") in problems(report.findings) and report.bad_nodes == ["n2"]
    assert report.other_nodes_may_help and code == 69
    assert ("", "memory", "bad") not in problems(report.findings)
    report, code = checked({"n1": TINY}, 2, **options)
    assert ("", "memory", "bad") in problems(report.findings) and code == 69
    report, code = checked({"n1": TINY, "n2": TINY}, 2, **options)
    assert ("", "memory", "bad") in problems(report.findings) and code == 2
    report, code = checked({"n1": SMALL, "n2": SMALL}, 2, **options)
    assert report.is_good and code == 0


def test_the_run_must_fit_the_remaining_nodes(checked: Any) -> None:
    """The doctor starts no run on fewer nodes than it fits, and reports why."""
    options: dict[str, Any] = {"bad_nodes": BadNodes.leave_out, "measure": True}
    report, code = checked({"n1": SMALL}, 2, **options)
    messages = [finding.message for finding in report.findings if finding.check == "memory of the rest"]
    (reason,) = {message.split(",")[0] for message in messages}
    assert reason == "without the bad nodes (left: 1)" and code == 69
    report, code = checked({"n1": GOOD}, 2, **options)
    assert report.bad_nodes == ["n2"] and code == 0


def test_a_node_with_less_memory_than_the_others_is_bad_and_left_out(checked: Any) -> None:
    """A lost DIMM or a smaller GPU is the node's problem, not the recipe's, even with two nodes."""
    for short in (TINY, replace(GOOD, gpus=eight_gpus(total_gib=39.6))):
        facts = {"n1": GOOD, "n2": short, "n3": GOOD, "n4": GOOD}
        report, code = checked(facts, 4, bad_nodes=BadNodes.leave_out, measure=True)
        assert {problem for problem in problems(report.findings) if problem[2] == "bad"} == {("n2", "memory", "bad")}
        assert list(report.ranks) == ["n1", "n2", "n3", "n4"] and code == 0
        report, code = checked({"n1": short, "n2": GOOD}, 2, bad_nodes=BadNodes.leave_out, measure=False)
        assert report.bad_nodes == ["n1"] and code == 69

"""What facts of nodes mean: each thing that is wrong with one of them is said of that node, and of no other."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tempo_megatron import cli, planning, validate
from tempo_megatron.config import BadNodes, Config, Precision, PreflightConfig, load
from tempo_megatron.preflight import bandwidth, device_checks, exchange, node_checks, room
from tempo_megatron.preflight.bandwidth import Measured
from tempo_megatron.preflight.command import before_training, examine
from tempo_megatron.preflight.conduct import absent, silent
from tempo_megatron.preflight.exchange import ClockReading, Exchange
from tempo_megatron.preflight.facts import Facts, Finding, Gpu, NodeFacts, Verdict
from tempo_megatron.preflight.gpus import parse, read_gpus
from tempo_megatron.preflight.limits import problems
from tempo_megatron.preflight.meeting import Answers, Meeting, MeetingError, Place, connect
from tempo_megatron.preflight.report import Report
from tests.conftest import ROOT

H100 = Gpu("NVIDIA H100 80GB HBM3", 79.6, 0.5)
GOOD = NodeFacts(
    versions={"python": "3.12.3", "torch": "2.11.0", "CUDA of the wheels": "13.0", "source code": "ab12"},
    environment={"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"},
    host_gib=2000,
    host_free_gib=1900,
    ephemeral_ports=(32768, 60999),
    free_ports=1.0,
    gpus=[H100] * 8,
    usable_gpus=8,
    driver="580.82",
    driver_cuda="13.0",
)


def config() -> Config:
    made = Config()
    made.parallel.processes_per_node = 8
    made.parallel.tensor_model_parallel_size = 4
    return made


def found(facts: Facts, of: Config) -> list[Finding]:
    return [*device_checks.check(facts, of), *node_checks.check(facts, of)]


def wrong(findings: Iterable[Finding]) -> list[tuple[str, str, str]]:
    return [(made.node, made.check, made.verdict.value) for made in findings if made.verdict is not Verdict.good]


def three(changes: Mapping[str, object]) -> Facts:
    """Three nodes, the second with changes."""
    return {"n1": GOOD, "n2": replace(GOOD, **changes), "n3": GOOD}  # type: ignore[arg-type]


def gpus(**changes: object) -> list[Gpu]:
    """Eight GPUs, the fourth with changes."""
    return [H100] * 3 + [replace(H100, **changes)] + [H100] * 4  # type: ignore[arg-type]


def test_good_nodes_are_good_in_every_check() -> None:
    made = found({"n1": GOOD, "n2": GOOD}, config())
    assert wrong(made) == []
    checks = {finding.check for finding in made}
    assert checks == {
        "gpus", "device memory", "device health", "driver", "host memory", "versions", "environment", "ports"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "check", "verdict", "words"),
    [
        ({"gpus": [H100] * 7, "usable_gpus": 7}, "gpus", "bad", "7 GPUs that torch can use"),
        ({"gpus": gpus(name="NVIDIA A100")}, "gpus", "warning", "other nodes have NVIDIA H100"),
        (
            {"gpus": gpus(used_gib=41.0, processes=["77 python"])},
            "device memory",
            "bad",
            "GPU 3 41.0 GiB (77 python)",
        ),
        ({"gpus": gpus(slowed_by=["hw_thermal_slowdown"])}, "device health", "bad", "GPU 3 hw_thermal_slowdown"),
        ({"gpus": gpus(uncorrected_errors=2)}, "device health", "bad", "GPU 3 has 2 uncorrected memory errors"),
        ({"gpus": gpus(needs_reset=True)}, "device health", "bad", "GPU 3 has memory rows"),
        ({"driver_cuda": "12.8"}, "driver", "bad", "knows CUDA 12.8, torch was built for 13.0"),
        ({"driver": "581.10"}, "versions", "warning", "driver 581.10, others have 580.82"),
        (
            {"versions": {**GOOD.versions, "torch": "2.10.0"}},
            "versions",
            "bad",
            "torch 2.10.0, others have 2.11.0",
        ),
        (
            {"versions": {**GOOD.versions, "source code": "cd34"}},
            "versions",
            "bad",
            "source code cd34, others have ab12",
        ),
        ({"host_free_gib": 900}, "host memory", "warning", "900 of 2000 GiB free"),
        ({"free_ports": 0.2}, "ports", "bad", "20% of ports 20000-29999"),
        ({"ephemeral_ports": (15000, 60999)}, "ports", "warning", "outgoing connections take ports 15000-60999"),
        (
            {"environment": {**GOOD.environment, "NCCL_P2P_DISABLE": "1"}},
            "environment",
            "warning",
            "NCCL_P2P_DISABLE=1: slows every step",
        ),
        (
            {"environment": {**GOOD.environment, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}},
            "environment",
            "bad",
            "vLLM's sleep mode cannot live with it",
        ),
    ],
)
def test_what_is_wrong_with_one_node_is_said_of_it(
    changes: dict[str, object], check: str, verdict: str, words: str
) -> None:
    made = found(three(changes), config())
    assert {*wrong(made)} >= {("n2", check, verdict)}
    assert {node for node, _, _ in wrong(made)} == {"n2"}
    assert {name for _, name, _ in wrong(made)} == {check}
    said = [finding for finding in made if finding.node == "n2" and words in finding.found]
    assert said and said[0].remedy and said[0].verdict.value == verdict


def test_limits_are_settings() -> None:
    """Memory that others hold is judged by preflight.device_memory_used_gib, host memory by memory.host_gib."""
    facts = three({"gpus": gpus(used_gib=5.0), "host_free_gib": 900})
    lenient = config()
    lenient.preflight.device_memory_used_gib = 6
    lenient.memory.host_gib = 100
    assert wrong(found(facts, lenient)) == []
    lenient.memory.host_gib = 200
    assert wrong(found(facts, lenient)) == [("n2", "host memory", "bad")]


def test_cpu_runs_want_no_gpu() -> None:
    """fp32 on machines without GPUs; bf16 there is bad on every node."""
    facts = {"n1": replace(GOOD, gpus=[], usable_gpus=0, driver="", driver_cuda="", gpu_problem="no nvidia-smi")}
    on_cpu = config()
    on_cpu.model.precision = Precision.fp32
    assert wrong(found(facts, on_cpu)) == []
    assert ("n1", "gpus", "bad") in wrong(found(facts, config()))


def test_sleep_is_what_expandable_segments_break() -> None:
    facts = three({"environment": {**GOOD.environment, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}})
    awake = config()
    awake.generation.sleep = False
    assert ("n2", "environment", "bad") not in wrong(found(facts, awake))


SMI = """<nvidia_smi_log><driver_version>580.82</driver_version><cuda_version>13.0</cuda_version>
<gpu id="a"><product_name>NVIDIA H100</product_name>
<fb_memory_usage><total>81559 MiB</total><used>2048 MiB</used></fb_memory_usage>
<clocks_event_reasons><clocks_event_reason_gpu_idle>Active</clocks_event_reason_gpu_idle>
<clocks_event_reason_hw_slowdown>{slow}</clocks_event_reason_hw_slowdown></clocks_event_reasons>
<ecc_errors><volatile><sram_correctable>9</sram_correctable><dram_uncorrectable>{errors}</dram_uncorrectable></volatile>
<aggregate><dram_uncorrectable>5</dram_uncorrectable></aggregate></ecc_errors>
<remapped_rows><remapped_row_pending>No</remapped_row_pending></remapped_rows>
<processes><process_info><pid>12</pid><process_name>python</process_name></process_info></processes>
</gpu></nvidia_smi_log>"""


def test_nvidia_smi_is_read() -> None:
    """Idle clocks and old errors are no fault; a slowdown that is active and errors since the start are."""
    made = parse(SMI.format(slow="Not Active", errors="N/A"))
    assert (made.driver, made.driver_cuda) == ("580.82", "13.0")
    assert made.gpus == [Gpu("NVIDIA H100", 81559 / 1024, 2.0, processes=["12 python"])]
    made = parse(SMI.format(slow="Active", errors="3"))
    assert made.gpus[0].slowed_by == ["hw_slowdown"]
    assert made.gpus[0].uncorrected_errors == 3


def test_an_nvidia_smi_that_fails_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_gpus({}).problem == "there is no nvidia-smi"
    program.write_text('#!/bin/sh\necho "no driver: $*"\nexit 9\n')
    program.chmod(0o755)
    assert read_gpus({"CUDA_VISIBLE_DEVICES": "2,3"}).problem == (
        "nvidia-smi failed: no driver: --query --xml-format --id=2,3"
    )


def test_clock_skew_is_what_no_delay_explains() -> None:
    """A slow answer is no skew; a time outside the question's and the answer's is."""
    readings = {
        "slow": [ClockReading(100.0, 103.0, 108.0), ClockReading(110.0, 114.0, 119.0)],
        "ahead": [ClockReading(100.0, 160.0, 100.1), ClockReading(101.0, 161.0, 104.0)],
        "behind": [ClockReading(100.0, 60.0, 100.1)],
    }
    made = {finding.node: finding for finding in exchange.clocks(readings, 5.0)}
    assert {node: finding.verdict.value for node, finding in made.items()} == {
        "slow": "good",
        "ahead": "bad",
        "behind": "bad",
    }
    assert made["ahead"].found.startswith("59.9 s ahead of") and made["behind"].found.startswith("40.0 s behind")


def test_a_directory_is_shared_when_both_sides_see(tmp_path: Path) -> None:
    """Where run_dir does not exist yet, its nearest directory is tried, and nothing is made or left."""
    first = Exchange.of(str(tmp_path / "runs" / "mine"), "token")
    first.show("n1")
    same = exchange.answer(first.run_dir, "n2", "n1", first.token, first.levels)
    (tmp_path / "other").mkdir()
    another = exchange.answer(str(tmp_path / "other" / "runs" / "mine"), "n3", "n1", first.token, first.levels)
    made = list(exchange.files({"n2": same, "n3": another}, {"n4": "read-only"}, {"n2"} if first.sees("n2") else set()))
    assert wrong(made) == [("n4", "shared directory", "bad"), ("n3", "shared directory", "bad")]
    assert wrong(exchange.files({"n2": same}, {}, set())) == [("n2", "shared directory", "bad")]
    for name in ("n1", "n2"):
        first.remove(name)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_the_disk_has_room_for_the_checkpoints_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 14B one takes some 375 GiB, and a run holds four at a time; those that it has already need no room again."""
    free = 1600.0
    monkeypatch.setattr(room.shutil, "disk_usage", lambda directory: SimpleNamespace(free=free * 2**30))
    of = config()
    of.run_dir, of.model.hf_path, of.checkpoint.keep = str(tmp_path), "models/Qwen3-14B-Base", 2
    size = planning.checkpoint_gib(of, gpus=16)
    assert 350 < size < 400
    assert room.disk(tmp_path, of, 16).verdict is Verdict.good
    free = 1200.0
    short = room.disk(tmp_path, of, 16)
    assert short.verdict is Verdict.bad and f"4 checkpoints take {4 * size:,.1f}, 0.0 of them there" in short.found
    of.loop.iterations = 1  # of which two are made
    assert room.disk(tmp_path, of, 16).verdict is Verdict.good
    of.loop.iterations = 100
    weights = tmp_path / "checkpoints" / "iteration-000001" / "weights"
    weights.parent.mkdir(parents=True)
    with weights.open("wb") as file:
        file.truncate(int(size * 2**30))  # a hole
    assert room.disk(tmp_path, of, 16).verdict is Verdict.good
    of.preflight.free_disk_gib = 100.0
    assert room.disk(tmp_path, of, 16).verdict is Verdict.bad
    of.model.hf_path, free = "models/not-known", 100.5
    assert room.disk(tmp_path, of, 16).verdict is Verdict.good


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
    _, code = examine(of, Place(0, 0, 1, "localhost", free_port(), False, "n0"), measure=False)
    assert code == 2


def test_a_recipe_that_cannot_fit_is_wrong_on_any_nodes() -> None:
    """`tempo plan`'s figures for the GPUs that are there, before models are built: no other nodes are asked for.
    What is not known, the model or the GPUs, is not judged."""
    of = load(ROOT / "recipes" / "qwen3_14b_math.yaml")
    facts = dict.fromkeys(("n1", "n2"), replace(GOOD, gpus=gpus(total_gib=39.6)))
    assert [made.verdict for made in room.memory({"n1": GOOD}, of, 1)] == [Verdict.good]
    small = list(room.memory(facts, of, 2))
    assert wrong(small) == [("", "memory", "bad")] * len(small) and "of a GPU's 39.6" in small[0].found
    assert not Report({}, small, {}, 1.0).others_may_do
    assert report({"n1": "7 GPUs"}).others_may_do
    assert list(room.memory({"n1": replace(GOOD, gpus=[])}, of, 1)) == []
    of.model.hf_path = "models/not-known"
    assert list(room.memory(facts, of, 2)) == []


class Attendance:
    """In the place of a Meeting: `facts` are of the nodes that come, to a run of 8 ranks on each of `nodes`. All that
    is asked of them goes well."""

    def __init__(self, facts: Facts, nodes: int) -> None:
        self.place = Place(0, 0, 8 * nodes, "localhost", 9, False, "n1")
        self._facts = facts
        self._came = {8 * int(node[1:]) - 8 + rank: node for node in facts for rank in range(8)}

    def wait_for_all(self) -> None:
        pass

    def came(self) -> dict[int, str]:
        return self._came

    def ask(self, name: str, ranks: Collection[int], seconds: float, arguments: object = None) -> Answers:
        def said(rank: int) -> Any:
            facts = None if rank % 8 else asdict(self._facts[self._came[rank]])
            return {"facts": facts, "clock": time.time(), "all-reduce": 100.0}[name]

        return Answers(given={rank: said(rank) for rank in ranks})

    def end(self, ranks: Collection[int], outcome: Any, seconds: float) -> None:
        pass


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Examines a run of 14B on so many nodes, of which those come whose facts are given; its report and exit code."""

    def examined(facts: Facts, nodes: int, *, bad_nodes: BadNodes, measure: bool) -> tuple[Report, int]:
        of = load(ROOT / "recipes" / "qwen3_14b_math.yaml", [f"preflight.bad_nodes={bad_nodes.value}"])
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
    assert report.others_may_do and code == 69
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


@pytest.mark.parametrize("nodes", range(2, 8))
def test_pairs_of_a_ring_do_not_overlap(nodes: int) -> None:
    """Every node meets both its neighbours, one at a time."""
    names = [f"n{at}" for at in range(nodes)]
    rounds = bandwidth.ring(names)
    for pairs in rounds:
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy))
    met = [node for pairs in rounds for pair in pairs for node in pair]
    assert all(met.count(node) == (1 if nodes == 2 else 2) for node in names)
    assert bandwidth.ring(["n0"]) == []


def test_the_bad_node_of_a_ring_is_told_from_its_neighbours() -> None:
    """n2 spoils both its pairs; n1 and n3 have another neighbour each."""
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
    (slow,) = [made for made in bandwidth.within(alone, 0.0, 0.7) if made.verdict is Verdict.bad]
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
    (stuck,) = silent(Answers(given={0: {}, 1: None, 4: {}}, absent=[5]), came, 20)
    assert stuck.node == "n3" and "rank 5 came and did not describe the node within 20 s" in stuck.found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port: int = listener.getsockname()[1]
        return port


def test_ranks_may_come_late_as_long_as_it_is_not_long_after_most() -> None:
    """Healthy nodes read their imports from a cold file system at different speeds: the wait counts from when most have
    come."""
    port = free_port()
    to_come, came_after, met = 1.5, {1: 1.0, 2: 1.9}, []

    def meet(rank: int) -> None:
        time.sleep(came_after.get(rank, 0))
        place = Place(rank, 0, 3, "localhost", port, False, f"n{rank}")
        meeting = Meeting(place, {}, to_come, seconds=1)
        meeting.wait_for_all()
        if rank:
            met.append(meeting.follow())
        else:
            meeting.end(meeting.came(), sorted(meeting.came()), seconds=5)

    ranks = [threading.Thread(target=meet, args=(rank,)) for rank in range(3)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(20)
    assert met == [[0, 1, 2]] * 2


def report(bad: dict[str, str], nodes: int = 4) -> Report:
    findings = [Finding("gpus", node, Verdict.bad, why, "swap it") for node, why in bad.items()]
    good = Finding("driver", "n0", Verdict.good, "580.82")
    return Report({f"n{at}": 8 for at in range(nodes)}, [*findings, good], {}, 3.0)


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


def test_settings_that_cannot_be_meant_are_refused() -> None:
    of = config().preflight
    assert list(problems(of)) == []
    of.time_limit_seconds, of.free_disk_gib = 0, -1.0
    assert [line.split(":")[0] for line in problems(of)] == ["preflight.time_limit_seconds", "preflight.free_disk_gib"]


def test_a_first_rank_that_is_not_there_is_an_error_in_time() -> None:
    """Not a hang: the address and the reason are said."""
    nobody = Place(rank=1, local_rank=0, world_size=2, host="localhost", port=9, launcher_serves=False, node="n2")
    with pytest.raises(MeetingError, match=r"rank 0 cannot be reached at localhost:9 within 0\.2 s: .*refused"):
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
    monkeypatch.setattr(validate, "problems", lambda config: [])
    (tmp_path / "recipe.yaml").touch()
    for command in ("train", "doctor"):
        given = [command, str(tmp_path / "recipe.yaml"), "preflight.presence_seconds=1"]
        assert cli.main(given) == 69
        assert cli.main([*given, "preflight.no_such=1"]) == 2


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("echo 'torch.DistBackendError: NCCL error' >&2; exit 1", "torch.DistBackendError: NCCL error"),
        ("echo 'Timeout (0:00:07)!' >&2; exit 1", "no end within 7 s"),
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
        bandwidth.reduce_in_process("name", [[0, 1], [2, 3]], 7.0, rank=3)


def test_a_measurement_knows_its_place_in_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups that run at the same time have names of their own in the store."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/said\necho 41.5\n')
    python.chmod(0o755)
    monkeypatch.setattr(bandwidth.sys, "executable", str(python))
    assert bandwidth.reduce_in_process("name", [[0, 1], [2, 3, 4]], 7.0, rank=4) == 41.5
    assert "--group=name/1 --rank=2 --size=3 --seconds=7.0" in (tmp_path / "said").read_text()

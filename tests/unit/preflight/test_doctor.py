"""Checks of node facts: each problem is reported for its node and for no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tempo_megatron.config import Config, Precision
from tempo_megatron.preflight import device_checks, node_checks, shared_directory
from tempo_megatron.preflight.clocks import ClockReading, check_clocks
from tempo_megatron.preflight.findings import Finding
from tempo_megatron.preflight.node_facts import Facts, Gpu
from tempo_megatron.preflight.nvidia_smi import parse, read_gpus
from tempo_megatron.preflight.shared_directory import SharedDirectoryProbe
from tests.unit.preflight.doctor import GOOD, H100, eight_gpus, make_config, problems, three_nodes


def check(facts: Facts, config: Config) -> list[Finding]:
    return [*device_checks.check_devices(facts, config), *node_checks.check_node(facts, config)]


def test_good_nodes_are_good_in_every_check() -> None:
    findings = check({"n1": GOOD, "n2": GOOD}, make_config())
    assert problems(findings) == []
    checks = {finding.check for finding in findings}
    assert checks == {
        "gpus", "device memory", "device health", "driver", "host memory", "versions", "environment", "ports"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "check_name", "verdict", "words"),
    [
        ({"gpus": [H100] * 7, "usable_gpus": 7}, "gpus", "bad", "7 GPUs that torch can use"),
        ({"gpus": eight_gpus(name="NVIDIA A100")}, "gpus", "warning", "other nodes have NVIDIA H100"),
        (
            {"gpus": eight_gpus(used_gib=41.0, processes=["77 python"])},
            "device memory",
            "bad",
            "GPU 3 41.0 GiB (77 python)",
        ),
        ({"gpus": eight_gpus(slowed_by=["hw_thermal_slowdown"])}, "device health", "bad", "GPU 3 hw_thermal_slowdown"),
        ({"gpus": eight_gpus(uncorrected_errors=2)}, "device health", "bad", "GPU 3 has 2 uncorrected memory errors"),
        ({"gpus": eight_gpus(needs_reset=True)}, "device health", "bad", "GPU 3 has memory rows"),
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
            "vLLM's sleep mode does not work with it",
        ),
    ],
)
def test_a_problem_is_reported_for_its_node_alone(
    changes: dict[str, object], check_name: str, verdict: str, words: str
) -> None:
    findings = check(three_nodes(changes), make_config())
    assert {*problems(findings)} >= {("n2", check_name, verdict)}
    assert {node for node, _, _ in problems(findings)} == {"n2"}
    assert {name for _, name, _ in problems(findings)} == {check_name}
    matching = [finding for finding in findings if finding.node == "n2" and words in finding.message]
    assert matching and matching[0].remedy and matching[0].verdict.value == verdict


def test_limits_are_settings() -> None:
    """preflight.device_memory_used_gib limits memory that others hold; memory.host_gib sets the host memory needed."""
    facts = three_nodes({"gpus": eight_gpus(used_gib=5.0), "host_free_gib": 900})
    lenient = make_config()
    lenient.preflight.device_memory_used_gib = 6
    lenient.memory.host_gib = 100
    assert problems(check(facts, lenient)) == []
    lenient.memory.host_gib = 200
    assert problems(check(facts, lenient)) == [("n2", "host memory", "bad")]


def test_cpu_runs_need_no_gpu() -> None:
    """fp32 runs on machines without GPUs. bf16 is bad on every such node."""
    facts = {"n1": replace(GOOD, gpus=[], usable_gpus=0, driver="", driver_cuda="", gpu_problem="no nvidia-smi")}
    on_cpu = make_config()
    on_cpu.model.precision = Precision.fp32
    assert problems(check(facts, on_cpu)) == []
    assert ("n1", "gpus", "bad") in problems(check(facts, make_config()))


@pytest.mark.parametrize(
    ("value", "ranks", "words"),
    [
        ("24", 8, ""),
        ("25", 8, "OMP_NUM_THREADS=25: 200 threads for 192 cores"),
        ("64", 1, ""),
        ("193", 1, "OMP_NUM_THREADS=193: 193 threads for 192 cores"),
        ("24,64", 8, ""),
        ("64,1", 8, "OMP_NUM_THREADS=64,1: 512 threads for 192 cores"),
        ("many", 8, "OMP_NUM_THREADS=many: each rank starts one thread per core"),
        ("0", 8, "OMP_NUM_THREADS=0: each rank starts one thread per core"),
        (None, 8, "OMP_NUM_THREADS=: each rank starts one thread per core"),
        (None, 1, ""),
    ],
)
def test_threads_of_all_ranks_are_at_most_the_cores(value: str | None, ranks: int, words: str) -> None:
    """A login shell's value reaches every rank. OpenMP takes the first of several numbers, and ignores other words."""
    others = {name: text for name, text in GOOD.environment.items() if name != "OMP_NUM_THREADS"}
    environment = others if value is None else {**others, "OMP_NUM_THREADS": value}
    config = make_config()
    config.parallel.processes_per_node = ranks
    findings = [*node_checks.check_environment({"n1": replace(GOOD, environment=environment)}, config)]
    assert problems(findings) == ([("n1", "environment", "warning")] if words else [])
    assert words in findings[0].message and bool(findings[0].remedy) == bool(words)


def test_expandable_segments_are_bad_only_with_sleep() -> None:
    facts = three_nodes({"environment": {**GOOD.environment, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}})
    without_sleep = make_config()
    without_sleep.generation.sleep = False
    assert ("n2", "environment", "bad") not in problems(check(facts, without_sleep))


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


def test_nvidia_smi_is_parsed() -> None:
    """Idle clocks and old errors are no fault. An active slowdown and errors since the driver was loaded are."""
    reading = parse(SMI.format(slow="Not Active", errors="N/A"))
    assert (reading.driver, reading.driver_cuda) == ("580.82", "13.0")
    assert reading.gpus == [Gpu("NVIDIA H100", 81559 / 1024, 2.0, processes=["12 python"])]
    reading = parse(SMI.format(slow="Active", errors="3"))
    assert reading.gpus[0].slowed_by == ["hw_slowdown"]
    assert reading.gpus[0].uncorrected_errors == 3


def test_a_failure_of_nvidia_smi_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_gpus({}).problem == "there is no nvidia-smi"
    program.write_text('#!/bin/sh\necho "no driver: $*"\nexit 9\n')
    program.chmod(0o755)
    assert read_gpus({"CUDA_VISIBLE_DEVICES": "2,3"}).problem == (
        "nvidia-smi failed: no driver: --query --xml-format --id=2,3"
    )


def test_clock_skew_is_what_the_delay_cannot_explain() -> None:
    """A slow answer is no skew. A time before the request or after the answer is."""
    readings = {
        "slow": [ClockReading(100.0, 103.0, 108.0), ClockReading(110.0, 114.0, 119.0)],
        "ahead": [ClockReading(100.0, 160.0, 100.1), ClockReading(101.0, 161.0, 104.0)],
        "behind": [ClockReading(100.0, 60.0, 100.1)],
    }
    findings = {finding.node: finding for finding in check_clocks(readings, 5.0)}
    assert {node: finding.verdict.value for node, finding in findings.items()} == {
        "slow": "good",
        "ahead": "bad",
        "behind": "bad",
    }
    assert findings["ahead"].message.startswith("59.9 s ahead of")
    assert findings["behind"].message.startswith("40.0 s behind")


def test_a_directory_is_shared_if_both_nodes_see_the_others_file(tmp_path: Path) -> None:
    """If run_dir does not exist yet, its nearest parent is probed. No file or directory is left."""
    probe = SharedDirectoryProbe.on_first_node(str(tmp_path / "runs" / "mine"), "token")
    probe.write("n1")
    same = shared_directory.answer_probe(probe.run_dir, "n2", "n1", probe.token, probe.levels)
    (tmp_path / "other").mkdir()
    other_run_dir = str(tmp_path / "other" / "runs" / "mine")
    another = shared_directory.answer_probe(other_run_dir, "n3", "n1", probe.token, probe.levels)
    seen_by_first = {"n2"} if probe.sees("n2") else set()
    answers, errors = {"n2": same, "n3": another}, {"n4": "read-only"}
    findings = list(shared_directory.check_shared_directory(answers, errors, seen_by_first))
    assert problems(findings) == [("n4", "shared directory", "bad"), ("n3", "shared directory", "bad")]
    findings = list(shared_directory.check_shared_directory({"n2": same}, {}, set()))
    assert problems(findings) == [("n2", "shared directory", "bad")]
    for name in ("n1", "n2"):
        probe.remove(name)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]

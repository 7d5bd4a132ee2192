"""What facts of nodes mean: each thing that is wrong with one of them is said of that node, and of no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tempo_megatron.config import Config, Precision
from tempo_megatron.preflight import device_checks, exchange, node_checks
from tempo_megatron.preflight.exchange import ClockReading, Exchange
from tempo_megatron.preflight.facts import Facts, Finding, Gpu
from tempo_megatron.preflight.gpus import parse, read_gpus
from tests.unit.preflight.doctor import GOOD, H100, config, gpus, three, wrong


def found(facts: Facts, of: Config) -> list[Finding]:
    return [*device_checks.check_devices(facts, of), *node_checks.check_node(facts, of)]


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

"""Facts of good nodes, and helpers for tests of `tempo doctor`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tempo_megatron.config import Config
from tempo_megatron.preflight.findings import Finding, NodeVerdict
from tempo_megatron.preflight.node_facts import Facts, Gpu, NodeFacts
from tempo_megatron.preflight.report import Report

H100 = Gpu("NVIDIA H100 80GB HBM3", 79.6, 0.5)
GOOD = NodeFacts(
    versions={"python": "3.12.3", "torch": "2.11.0", "CUDA of the wheels": "13.0", "source code": "ab12"},
    environment={"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"},
    cores=192,
    host_gib=2000,
    host_free_gib=1900,
    ephemeral_ports=(32768, 60999),
    free_ports=1.0,
    gpus=[H100] * 8,
    usable_gpus=8,
    driver="580.82",
    driver_cuda="13.0",
)


def make_config() -> Config:
    """Return a config for nodes of eight ranks, with TP4."""
    config = Config()
    config.parallel.processes_per_node = 8
    config.parallel.tensor_model_parallel_size = 4
    return config


def problems(findings: Iterable[Finding]) -> list[tuple[str, str, str]]:
    """Return node, check and verdict of each finding that is not good."""
    return [
        (finding.node, finding.check, finding.verdict.value)
        for finding in findings
        if finding.verdict is not NodeVerdict.good
    ]


def three_nodes(changes: Mapping[str, object]) -> Facts:
    """Return the facts of three nodes, the second one with changes."""
    return {"n1": GOOD, "n2": replace(GOOD, **changes), "n3": GOOD}  # type: ignore[arg-type]


def eight_gpus(**changes: object) -> list[Gpu]:
    """Return eight GPUs, the fourth one with changes."""
    return [H100] * 3 + [replace(H100, **changes)] + [H100] * 4  # type: ignore[arg-type]


def make_report(bad: dict[str, str], nodes: int = 4) -> Report:
    """Return a report in which these nodes are bad, for these reasons."""
    findings = [Finding("gpus", node, NodeVerdict.bad, reason, "swap it") for node, reason in bad.items()]
    good = Finding("driver", "n0", NodeVerdict.good, "580.82")
    return Report({f"n{index}": 8 for index in range(nodes)}, [*findings, good], {}, 3.0)

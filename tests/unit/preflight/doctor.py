"""Facts of good nodes, and what tests of `tempo doctor` do with them."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import replace

from tempo_megatron.config import Config
from tempo_megatron.preflight.facts import Facts, Finding, Gpu, NodeFacts, NodeVerdict
from tempo_megatron.preflight.report import Report

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


def wrong(findings: Iterable[Finding]) -> list[tuple[str, str, str]]:
    return [(made.node, made.check, made.verdict.value) for made in findings if made.verdict is not NodeVerdict.good]


def three(changes: Mapping[str, object]) -> Facts:
    """Three nodes, the second with changes."""
    return {"n1": GOOD, "n2": replace(GOOD, **changes), "n3": GOOD}  # type: ignore[arg-type]


def gpus(**changes: object) -> list[Gpu]:
    """Eight GPUs, the fourth with changes."""
    return [H100] * 3 + [replace(H100, **changes)] + [H100] * 4  # type: ignore[arg-type]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port: int = listener.getsockname()[1]
        return port


def report(bad: dict[str, str], nodes: int = 4) -> Report:
    findings = [Finding("gpus", node, NodeVerdict.bad, why, "swap it") for node, why in bad.items()]
    good = Finding("driver", "n0", NodeVerdict.good, "580.82")
    return Report({f"n{at}": 8 for at in range(nodes)}, [*findings, good], {}, 3.0)

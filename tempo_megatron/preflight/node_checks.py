"""What facts of a node, its memory, software and surroundings, mean for a run: pure functions, one a check."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tempo_megatron.config import SHARE_OF_HOST, Config
from tempo_megatron.preflight.device_checks import on_gpus
from tempo_megatron.preflight.facts import MASTER_PORTS, Facts, Finding, NodeVerdict, usual

_FEWEST_FREE_PORTS = 0.5


def check_node(facts: Facts, config: Config) -> list[Finding]:
    """All checks of this module."""
    return [*host_memory(facts, config), *versions(facts), *environment(facts, config), *ports(facts)]


def host_memory(facts: Facts, config: Config) -> Iterator[Finding]:
    """What offloading may take of host memory is free."""
    memory, ranks = config.memory, config.parallel.processes_per_node
    if not (on_gpus(facts, config) or memory.offload_on_cpu):
        return
    if not (memory.offload_weights or memory.offload_optimizer):
        return
    for node, of in facts.items():
        wanted = memory.budget_gib(of.host_gib, ranks) * ranks
        share = f"{SHARE_OF_HOST:.0%} of its memory, memory.host_gib is 0"
        rule = f"memory.host_gib x {ranks} ranks" if memory.host_gib else share
        found = f"{of.host_free_gib:.0f} of {of.host_gib:.0f} GiB free; models at rest may take {wanted:.0f} ({rule})"
        if of.host_free_gib >= wanted:
            yield Finding("host memory", node, NodeVerdict.good, found)
        else:
            # Without memory.host_gib nobody has said how much of the budget is needed.
            verdict = NodeVerdict.bad if memory.host_gib else NodeVerdict.warning
            yield Finding(
                "host memory",
                node,
                verdict,
                found,
                "ask Slurm for all of it (--mem=0), end what holds it, or set memory.host_gib to what the models need",
            )


def versions(facts: Facts) -> Iterator[Finding]:
    """All nodes run the same software; driver versions may differ."""
    names = list(dict.fromkeys(name for of in facts.values() for name in of.versions))
    common = {name: usual({node: of.versions.get(name, "none") for node, of in facts.items()}) for name in names}
    common_driver = usual({node: of.driver for node, of in facts.items()})
    for node, of in facts.items():
        other = [
            f"{name} {of.versions.get(name, 'none')}, others have {common[name]}"
            for name in names
            if of.versions.get(name, "none") != common[name]
        ]
        if other:
            yield Finding(
                "versions", node, NodeVerdict.bad, "; ".join(other), "one environment or container image for all nodes"
            )
        elif of.driver != common_driver:
            yield Finding(
                "versions",
                node,
                NodeVerdict.warning,
                f"driver {of.driver or 'none'}, others have {common_driver or 'none'}",
                "speed may differ; ask for an update",
            )
        else:
            told = ("python", "torch", "megatron-core", "source code")
            shown = ", ".join(f"{name} {of.versions[name]}" for name in told if name in of.versions)
            yield Finding("versions", node, NodeVerdict.good, shown)


def environment(facts: Facts, config: Config) -> Iterator[Finding]:
    """No environment variable that breaks or slows a run, and the same on all nodes."""
    used = on_gpus(facts, config)
    names = sorted({name for of in facts.values() for name in of.environment})
    common = {name: usual({node: of.environment.get(name, "unset") for node, of in facts.items()}) for name in names}
    for node, of in facts.items():
        found = [*_environment(node, of.environment, config, used)]
        found += [
            Finding(
                "environment",
                node,
                NodeVerdict.warning,
                f"{name} is {of.environment.get(name, 'unset')}, elsewhere {common[name]}",
                "export it in the batch script, and let srun pass it on (--export=ALL)",
            )
            for name in names
            if of.environment.get(name, "unset") != common[name]
        ]
        yield from found or [Finding("environment", node, NodeVerdict.good, "no variable that breaks or slows a run")]


def _environment(node: str, variables: Mapping[str, str], config: Config, used: bool) -> Iterator[Finding]:
    def finding(verdict: NodeVerdict, name: str, found: str, remedy: str) -> Finding:
        return Finding("environment", node, verdict, f"{name}={variables.get(name, '')}: {found}", remedy)

    if used:
        for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
            if "expandable_segments:true" in variables.get(name, "").lower() and config.generation.sleep:
                yield finding(
                    NodeVerdict.bad,
                    name,
                    "vLLM's sleep mode cannot live with it",
                    f"unset {name}, or set generation.sleep=false where the models fit beside vLLM",
                )
        shared = config.parallel.tensor_model_parallel_size > 1 or config.parallel.context_parallel_size > 1
        if shared and variables.get("CUDA_DEVICE_MAX_CONNECTIONS") != "1":
            yield finding(
                NodeVerdict.warning,
                "CUDA_DEVICE_MAX_CONNECTIONS",
                "TP and CP overlap communication in the order that one queue gives",
                "export CUDA_DEVICE_MAX_CONNECTIONS=1",
            )
        for name in ("CUDA_LAUNCH_BLOCKING", "NCCL_IB_DISABLE", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE"):
            if variables.get(name, "0") != "0":
                yield finding(NodeVerdict.warning, name, "slows every step", f"unset {name}, if it was for debugging")
    if config.parallel.processes_per_node > 1 and "OMP_NUM_THREADS" not in variables:
        yield finding(
            NodeVerdict.warning,
            "OMP_NUM_THREADS",
            "each rank starts a thread a core, and they fight for them",
            "export OMP_NUM_THREADS=1, or cores / ranks",
        )


def ports(facts: Facts) -> Iterator[Finding]:
    """Ports for the rendezvous are free, and the kernel does not give them to others."""
    span = f"{MASTER_PORTS.start}-{MASTER_PORTS.stop - 1}"
    for node, of in facts.items():
        first, last = of.ephemeral_ports
        if of.free_ports < _FEWEST_FREE_PORTS:
            yield Finding(
                "ports",
                node,
                NodeVerdict.bad,
                f"{of.free_ports:.0%} of ports {span}, which a rendezvous is chosen from, can be taken",
                "end what holds them (`ss -ltnp`)",
            )
        elif first < MASTER_PORTS.stop and last >= MASTER_PORTS.start:
            yield Finding(
                "ports",
                node,
                NodeVerdict.warning,
                f"outgoing connections take ports {first}-{last}, a rendezvous is chosen from {span}",
                "set MASTER_PORT to a port outside, or net.ipv4.ip_local_port_range",
            )
        else:
            yield Finding("ports", node, NodeVerdict.good, f"{of.free_ports:.0%} of {span} free")

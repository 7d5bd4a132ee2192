"""Checks of the facts about a node's memory, software, environment and ports. Each check is a pure function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tempo_megatron.config import SHARE_OF_HOST, Config
from tempo_megatron.preflight.device_checks import runs_on_gpus
from tempo_megatron.preflight.findings import Finding, NodeVerdict, most_common
from tempo_megatron.preflight.node_facts import Facts, NodeFacts
from tempo_megatron.utils.ports import RENDEZVOUS_PORTS

_MIN_FREE_PORTS = 0.5
"""The smallest share of the rendezvous ports that must be free."""


def check_node(facts: Facts, config: Config) -> list[Finding]:
    """Return the findings of all checks of this module."""
    return [
        *check_host_memory(facts, config),
        *check_versions(facts),
        *check_environment(facts, config),
        *check_ports(facts),
    ]


def check_host_memory(facts: Facts, config: Config) -> Iterator[Finding]:
    """Check that the host memory which offloading may take is free."""
    memory, ranks = config.memory, config.parallel.processes_per_node
    if not (runs_on_gpus(facts, config) or memory.offload_on_cpu):
        return
    if not (memory.offload_weights or memory.offload_optimizer):
        return
    for node, node_facts in facts.items():
        budget = memory.budget_gib(node_facts.host_gib, ranks) * ranks
        share = f"{SHARE_OF_HOST:.0%} of its memory, memory.host_gib is 0"
        rule = f"memory.host_gib x {ranks} ranks" if memory.host_gib else share
        free = f"{node_facts.host_free_gib:.0f} of {node_facts.host_gib:.0f} GiB free"
        message = f"{free}; offloaded models may take {budget:.0f} ({rule})"
        if node_facts.host_free_gib >= budget:
            yield Finding("host memory", node, NodeVerdict.good, message)
        else:
            # Without memory.host_gib it is unknown how much of the budget is needed.
            verdict = NodeVerdict.bad if memory.host_gib else NodeVerdict.warning
            yield Finding(
                "host memory",
                node,
                verdict,
                message,
                "ask Slurm for all of it (--mem=0), end what holds it, or set memory.host_gib to what the models need",
            )


def check_versions(facts: Facts) -> Iterator[Finding]:
    """Check that all nodes run the same software. Different driver versions are a warning."""
    names = list(dict.fromkeys(name for node_facts in facts.values() for name in node_facts.versions))
    common = {
        name: most_common({node: node_facts.versions.get(name, "none") for node, node_facts in facts.items()})
        for name in names
    }
    common_driver = most_common({node: node_facts.driver for node, node_facts in facts.items()})
    for node, node_facts in facts.items():
        differences = [
            f"{name} {node_facts.versions.get(name, 'none')}, others have {common[name]}"
            for name in names
            if node_facts.versions.get(name, "none") != common[name]
        ]
        if differences:
            yield Finding(
                "versions",
                node,
                NodeVerdict.bad,
                "; ".join(differences),
                "one environment or container image for all nodes",
            )
        elif node_facts.driver != common_driver:
            yield Finding(
                "versions",
                node,
                NodeVerdict.warning,
                f"driver {node_facts.driver or 'none'}, others have {common_driver or 'none'}",
                "speed may differ; ask for an update",
            )
        else:
            listed_names = ("python", "torch", "megatron-core", "source code")
            listed = ", ".join(
                f"{name} {node_facts.versions[name]}" for name in listed_names if name in node_facts.versions
            )
            yield Finding("versions", node, NodeVerdict.good, listed)


def check_environment(facts: Facts, config: Config) -> Iterator[Finding]:
    """Check that no environment variable breaks or slows a run, and that variables are the same on all nodes."""
    on_gpus = runs_on_gpus(facts, config)
    names = sorted({name for node_facts in facts.values() for name in node_facts.environment})
    common = {
        name: most_common({node: node_facts.environment.get(name, "unset") for node, node_facts in facts.items()})
        for name in names
    }
    for node, node_facts in facts.items():
        findings = [
            *_environment_findings(node, node_facts.environment, config, on_gpus),
            *_thread_findings(node, node_facts, config.parallel.processes_per_node),
        ]
        findings += [
            Finding(
                "environment",
                node,
                NodeVerdict.warning,
                f"{name} is {node_facts.environment.get(name, 'unset')}, elsewhere {common[name]}",
                "export it in the batch script, and let srun pass it on (--export=ALL)",
            )
            for name in names
            if node_facts.environment.get(name, "unset") != common[name]
        ]
        yield from findings or [
            Finding("environment", node, NodeVerdict.good, "no variable that breaks or slows a run")
        ]


def _environment_findings(node: str, variables: Mapping[str, str], config: Config, on_gpus: bool) -> Iterator[Finding]:
    def finding(verdict: NodeVerdict, name: str, effect: str, remedy: str) -> Finding:
        return Finding("environment", node, verdict, f"{name}={variables.get(name, '')}: {effect}", remedy)

    if on_gpus:
        for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
            if "expandable_segments:true" in variables.get(name, "").lower() and config.generation.sleep:
                yield finding(
                    NodeVerdict.bad,
                    name,
                    "vLLM's sleep mode does not work with it",
                    f"unset {name}, or set generation.sleep=false where the models fit beside vLLM",
                )
        overlaps = config.parallel.tensor_model_parallel_size > 1 or config.parallel.context_parallel_size > 1
        if overlaps and variables.get("CUDA_DEVICE_MAX_CONNECTIONS") != "1":
            yield finding(
                NodeVerdict.warning,
                "CUDA_DEVICE_MAX_CONNECTIONS",
                "TP and CP need one queue to order the communication that they overlap",
                "export CUDA_DEVICE_MAX_CONNECTIONS=1",
            )
        for name in ("CUDA_LAUNCH_BLOCKING", "NCCL_IB_DISABLE", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE"):
            if variables.get(name, "0") != "0":
                yield finding(NodeVerdict.warning, name, "slows every step", f"unset {name}, if it was for debugging")


def _thread_findings(node: str, node_facts: NodeFacts, processes: int) -> Iterator[Finding]:
    """Yield a warning where all ranks of the node start more threads than it has cores."""
    value = node_facts.environment.get("OMP_NUM_THREADS", "")
    first = value.split(",")[0].strip()  # Further numbers are those of nested regions.
    threads = int(first) if first.isdecimal() else 0
    effect = ""
    if threads * processes > node_facts.cores:
        effect = f"{threads * processes} threads for {node_facts.cores} cores"
    elif not threads and processes > 1:
        effect = "each rank starts one thread per core"
    if effect:
        yield Finding(
            "environment",
            node,
            NodeVerdict.warning,
            f"OMP_NUM_THREADS={value}: {effect}, and the threads of all ranks compete for the cores",
            "export OMP_NUM_THREADS=1, or cores / ranks",
        )


def check_ports(facts: Facts) -> Iterator[Finding]:
    """Check that ports for the rendezvous are free, and that the kernel gives them to nobody else."""
    span = f"{RENDEZVOUS_PORTS.start}-{RENDEZVOUS_PORTS.stop - 1}"
    for node, node_facts in facts.items():
        first, last = node_facts.ephemeral_ports
        if node_facts.free_ports < _MIN_FREE_PORTS:
            yield Finding(
                "ports",
                node,
                NodeVerdict.bad,
                f"{node_facts.free_ports:.0%} of ports {span}, which a rendezvous is chosen from, can be taken",
                "end what holds them (`ss -ltnp`)",
            )
        elif first < RENDEZVOUS_PORTS.stop and last >= RENDEZVOUS_PORTS.start:
            yield Finding(
                "ports",
                node,
                NodeVerdict.warning,
                f"outgoing connections take ports {first}-{last}, a rendezvous is chosen from {span}",
                "set MASTER_PORT to a port outside, or net.ipv4.ip_local_port_range",
            )
        else:
            yield Finding("ports", node, NodeVerdict.good, f"{node_facts.free_ports:.0%} of {span} free")

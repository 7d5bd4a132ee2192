"""Checks of the facts about GPUs and their driver. Each check is a pure function."""

from __future__ import annotations

from collections.abc import Iterator

from tempo_megatron.config import Config, Precision
from tempo_megatron.preflight.findings import Finding, NodeVerdict, most_common
from tempo_megatron.preflight.node_facts import Facts, Gpu


def check_devices(facts: Facts, config: Config) -> list[Finding]:
    """Return the findings of all checks of this module."""
    return [
        *check_gpus(facts, config),
        *check_device_memory(facts, config),
        *check_device_health(facts, config),
        *check_driver(facts, config),
    ]


def runs_on_gpus(facts: Facts, config: Config) -> bool:
    """Return whether the run uses GPUs. bf16 needs GPUs, and fp32 runs on CPUs only if there are no GPUs."""
    return config.model.precision is Precision.bf16 or any(node.usable_gpus for node in facts.values())


def check_gpus(facts: Facts, config: Config) -> Iterator[Finding]:
    """Check that each node has one GPU per rank, and that all GPUs are of one model."""
    if not runs_on_gpus(facts, config):
        return
    required = config.parallel.processes_per_node
    models = {node: ", ".join(sorted({gpu.name for gpu in node_facts.gpus})) for node, node_facts in facts.items()}
    common = most_common(models)
    for node, node_facts in facts.items():
        if node_facts.usable_gpus < required:
            seen = (
                f"nvidia-smi sees {len(node_facts.gpus)}"
                if node_facts.gpus
                else node_facts.gpu_problem or "nvidia-smi sees none"
            )
            yield Finding(
                "gpus",
                node,
                NodeVerdict.bad,
                f"{node_facts.usable_gpus} GPUs that torch can use, parallel.processes_per_node is {required}; {seen}",
                "ask Slurm for them (--gpus-per-node), look at CUDA_VISIBLE_DEVICES and at `dmesg | grep -i xid`, or "
                "lower parallel.processes_per_node",
            )
        elif models[node] != common:
            yield Finding(
                "gpus",
                node,
                NodeVerdict.warning,
                f"{models[node] or 'unknown GPUs'}, other nodes have {common}",
                "the slowest GPU sets the pace: choose nodes of one model (--constraint)",
            )
        else:
            yield Finding("gpus", node, NodeVerdict.good, f"{node_facts.usable_gpus} x {common or 'unknown'}")


def check_device_memory(facts: Facts, config: Config) -> Iterator[Finding]:
    """Check that no other process holds memory of the GPUs."""
    limit = config.preflight.device_memory_used_gib
    for node, node_facts in facts.items():
        occupied = [
            f"GPU {index} {gpu.used_gib:.1f} GiB" + (f" ({', '.join(gpu.processes)})" if gpu.processes else "")
            for index, gpu in enumerate(node_facts.gpus)
            if gpu.used_gib > limit
        ]
        if occupied:
            yield Finding(
                "device memory",
                node,
                NodeVerdict.bad,
                f"taken before the run starts: {'; '.join(occupied)}; preflight.device_memory_used_gib is {limit:g}",
                "end what another job left there (`nvidia-smi`, `fuser -v /dev/nvidia*`)",
            )
        elif node_facts.gpus:
            yield Finding(
                "device memory", node, NodeVerdict.good, f"{max(gpu.used_gib for gpu in node_facts.gpus):.1f} GiB taken"
            )


def check_device_health(facts: Facts, config: Config) -> Iterator[Finding]:
    """Check that clocks are not held down, and that memory has no uncorrected errors."""
    if not runs_on_gpus(facts, config):
        return
    for node, node_facts in facts.items():
        if node_facts.gpu_problem:
            yield Finding(
                "device health",
                node,
                NodeVerdict.warning,
                f"not known: {node_facts.gpu_problem}",
                "in a container, NVIDIA_DRIVER_CAPABILITIES must include utility",
            )
        damaged = [f"GPU {index} {damage}" for index, gpu in enumerate(node_facts.gpus) if (damage := _damage(gpu))]
        slowed = [
            f"GPU {index} {', '.join(gpu.slowed_by)}" for index, gpu in enumerate(node_facts.gpus) if gpu.slowed_by
        ]
        if damaged:
            yield Finding(
                "device health",
                node,
                NodeVerdict.bad,
                "; ".join(damaged),
                "drain the node; the GPU needs a reset or a swap",
            )
        if slowed:
            yield Finding(
                "device health",
                node,
                NodeVerdict.bad,
                f"clocks are held down: {'; '.join(slowed)}",
                "look at cooling and power; every other rank would wait for this one",
            )
        if node_facts.gpus and not damaged and not slowed:
            yield Finding("device health", node, NodeVerdict.good, "clocks free, no uncorrected errors")


def check_driver(facts: Facts, config: Config) -> Iterator[Finding]:
    """Check that the driver supports the major version of CUDA that the wheels were built for."""
    for node, node_facts in facts.items():
        wheels = node_facts.versions.get("CUDA of the wheels", "none")
        if not node_facts.driver_cuda:
            continue
        if wheels == "none":
            yield Finding(
                "driver",
                node,
                NodeVerdict.bad,
                f"torch {node_facts.versions.get('torch')} is built without CUDA; the driver is {node_facts.driver}",
                "install the extra `cuda`",
            )
        elif int(node_facts.driver_cuda.split(".")[0]) < int(wheels.split(".")[0]):
            yield Finding(
                "driver",
                node,
                NodeVerdict.bad,
                f"driver {node_facts.driver} knows CUDA {node_facts.driver_cuda}, torch was built for {wheels}",
                f"a driver for CUDA {wheels.split('.')[0]}, or a container that brings its compatibility libraries",
            )
        else:
            yield Finding(
                "driver",
                node,
                NodeVerdict.good,
                f"{node_facts.driver}, CUDA {node_facts.driver_cuda}; torch was built for {wheels}",
            )


def _damage(gpu: Gpu) -> str:
    if gpu.uncorrected_errors:
        return f"has {gpu.uncorrected_errors} uncorrected memory errors"
    return "has memory rows that wait to be remapped" if gpu.needs_reset else ""

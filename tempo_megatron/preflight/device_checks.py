"""What facts of GPUs and their driver mean for a run: pure functions, one a check."""

from __future__ import annotations

from collections.abc import Iterator

from tempo_megatron.config import Config, Precision
from tempo_megatron.preflight.facts import Facts, Finding, Gpu, NodeVerdict, usual


def check_devices(facts: Facts, config: Config) -> list[Finding]:
    """All checks of this module."""
    return [
        *gpus(facts, config),
        *device_memory(facts, config),
        *device_health(facts, config),
        *driver(facts, config),
    ]


def on_gpus(facts: Facts, config: Config) -> bool:
    """Whether the run wants GPUs: CPUs train in fp32 alone, and GPUs are used wherever they are."""
    return config.model.precision is Precision.bf16 or any(node.usable_gpus for node in facts.values())


def gpus(facts: Facts, config: Config) -> Iterator[Finding]:
    """Each node has a GPU a rank, and all are of one kind."""
    if not on_gpus(facts, config):
        return
    wanted = config.parallel.processes_per_node
    kinds = {node: ", ".join(sorted({gpu.name for gpu in of.gpus})) for node, of in facts.items()}
    common = usual(kinds)
    for node, of in facts.items():
        if of.usable_gpus < wanted:
            seen = f"nvidia-smi sees {len(of.gpus)}" if of.gpus else of.gpu_problem or "nvidia-smi sees none"
            yield Finding(
                "gpus",
                node,
                NodeVerdict.bad,
                f"{of.usable_gpus} GPUs that torch can use, parallel.processes_per_node is {wanted}; {seen}",
                "ask Slurm for them (--gpus-per-node), look at CUDA_VISIBLE_DEVICES and at `dmesg | grep -i xid`, or "
                "lower parallel.processes_per_node",
            )
        elif kinds[node] != common:
            yield Finding(
                "gpus",
                node,
                NodeVerdict.warning,
                f"{kinds[node] or 'unknown GPUs'}, other nodes have {common}",
                "the slowest GPU sets the pace: choose nodes of one kind (--constraint)",
            )
        else:
            yield Finding("gpus", node, NodeVerdict.good, f"{of.usable_gpus} x {common or 'unknown'}")


def device_memory(facts: Facts, config: Config) -> Iterator[Finding]:
    """Nobody else holds memory of the GPUs."""
    limit = config.preflight.device_memory_used_gib
    for node, of in facts.items():
        taken = [
            f"GPU {index} {gpu.used_gib:.1f} GiB" + (f" ({', '.join(gpu.processes)})" if gpu.processes else "")
            for index, gpu in enumerate(of.gpus)
            if gpu.used_gib > limit
        ]
        if taken:
            yield Finding(
                "device memory",
                node,
                NodeVerdict.bad,
                f"taken before the run starts: {'; '.join(taken)}; preflight.device_memory_used_gib is {limit:g}",
                "end what another job left there (`nvidia-smi`, `fuser -v /dev/nvidia*`)",
            )
        elif of.gpus:
            yield Finding(
                "device memory", node, NodeVerdict.good, f"{max(gpu.used_gib for gpu in of.gpus):.1f} GiB taken"
            )


def device_health(facts: Facts, config: Config) -> Iterator[Finding]:
    """Clocks are not held down, and memory has no uncorrected errors."""
    if not on_gpus(facts, config):
        return
    for node, of in facts.items():
        if of.gpu_problem:
            yield Finding(
                "device health",
                node,
                NodeVerdict.warning,
                f"not known: {of.gpu_problem}",
                "in a container, NVIDIA_DRIVER_CAPABILITIES must include utility",
            )
        broken = [f"GPU {index} {damage}" for index, gpu in enumerate(of.gpus) if (damage := _damage(gpu))]
        slowed = [f"GPU {index} {', '.join(gpu.slowed_by)}" for index, gpu in enumerate(of.gpus) if gpu.slowed_by]
        if broken:
            yield Finding(
                "device health",
                node,
                NodeVerdict.bad,
                "; ".join(broken),
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
        if of.gpus and not broken and not slowed:
            yield Finding("device health", node, NodeVerdict.good, "clocks free, no uncorrected errors")


def driver(facts: Facts, config: Config) -> Iterator[Finding]:
    """The driver knows the CUDA that the wheels were built for: its major version or a later one."""
    for node, of in facts.items():
        wheels = of.versions.get("CUDA of the wheels", "none")
        if not of.driver_cuda:
            continue
        if wheels == "none":
            yield Finding(
                "driver",
                node,
                NodeVerdict.bad,
                f"torch {of.versions.get('torch')} is built without CUDA; the driver {of.driver} is there",
                "install the extra `cuda`",
            )
        elif int(of.driver_cuda.split(".")[0]) < int(wheels.split(".")[0]):
            yield Finding(
                "driver",
                node,
                NodeVerdict.bad,
                f"driver {of.driver} knows CUDA {of.driver_cuda}, torch was built for {wheels}",
                f"a driver for CUDA {wheels.split('.')[0]}, or a container that brings its compatibility libraries",
            )
        else:
            yield Finding(
                "driver", node, NodeVerdict.good, f"{of.driver}, CUDA {of.driver_cuda}; torch was built for {wheels}"
            )


def _damage(gpu: Gpu) -> str:
    if gpu.uncorrected_errors:
        return f"has {gpu.uncorrected_errors} uncorrected memory errors"
    return "has memory rows that wait to be remapped" if gpu.needs_reset else ""

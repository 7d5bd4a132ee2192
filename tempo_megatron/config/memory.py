"""Settings of memory: which state of an idle model moves to host memory."""

from __future__ import annotations

from dataclasses import dataclass

from tempo_megatron.config.fields import setting

SHARE_OF_HOST = 0.8
"""The ranks of a machine may take this share of its memory where `host_gib` is 0."""


@dataclass
class MemoryConfig:
    """Each kind of state of an idle model either moves to host memory or stays on the GPU. CPU runs move nothing."""

    offload_weights: bool = setting(True, "move the weights of an idle model to host memory")
    offload_gradients: bool = setting(True, "free the gradient buffers of an idle model; nothing is copied")
    offload_optimizer: bool = setting(True, "move the optimizer state of an idle model to host memory")
    offload_on_cpu: bool = setting(False, "offload in CPU runs too; this saves no memory and is for tests")
    host_gib: float = setting(
        0.0,
        "GiB of host memory of each rank for offloaded state, which is pinned, and for copies of asynchronous saves; "
        f"0: {SHARE_OF_HOST:.0%} of the machine's memory divided by its ranks",
        at_least=0,
    )

    def budget_gib(self, machine_gib: float, ranks: int) -> float:
        """Returns the GiB of host memory that each rank of a machine may take."""
        return self.host_gib or SHARE_OF_HOST * machine_gib / ranks

"""What of a model rests in host memory while others work on its GPU."""

from __future__ import annotations

from dataclasses import dataclass

from tempo_megatron.config.fields import setting

SHARE_OF_HOST = 0.8
"""of a machine's memory, what its ranks may take where `host_gib` does not say"""


@dataclass
class MemoryConfig:
    """Each kind of state moves as a whole; one that does not move stays on the GPU. CPU runs move nothing."""

    offload_weights: bool = setting(True, "weights of a model that rests wait in host memory")
    offload_gradients: bool = setting(True, "gradient buffers of a model that rests are freed; nothing is copied")
    offload_optimizer: bool = setting(True, "optimizer state of a model that rests waits in host memory")
    offload_on_cpu: bool = setting(False, "offload on CPU runs too, where it spares nothing: a rehearsal for tests")
    host_gib: float = setting(
        0.0,
        "GiB of host memory a rank for what rests, pinned, and for its part of the copies of a machine's asynchronous "
        f"saves; 0: {SHARE_OF_HOST:.0%} of the machine's memory over its ranks",
        at_least=0,
    )

    def budget_gib(self, machine_gib: float, ranks: int) -> float:
        """GiB that each of a machine's ranks may take."""
        return self.host_gib or SHARE_OF_HOST * machine_gib / ranks

"""Settings of faults: when a run stops because of non-finite numbers or of ranks that hang."""

from __future__ import annotations

from dataclasses import dataclass

from tempo_megatron.config.fields import setting


@dataclass
class FaultsConfig:
    non_finite_updates: int = setting(
        3,
        "a run stops after so many updates in a row whose loss or gradient is not finite; each of them is skipped",
        at_least=1,
    )
    lag_limit_seconds: float = setting(
        45.0,
        "seconds that a rank may be a phase behind the others; after them it counts as hanging, which ends the run",
        above=0,
    )
    stall_limit_seconds: float = setting(
        45.0,
        "seconds that all ranks may spend in a phase without progress of any rank; after them they count as hanging",
        above=0,
    )
    first_stall_limit_seconds: float = setting(
        300.0,
        "the same limit in seconds for the first entry of a phase, when kernels are compiled and NCCL connects",
        above=0,
    )
    phase_limit_minutes: float = setting(
        60.0,
        "minutes that a phase, or building models and generator, may take; after them it counts as hanging",
        above=0,
    )
    generate_limit_minutes: float = setting(
        240.0, "minutes that a phase with generation may take: generate, evaluate, select_checkpoint", above=0
    )

    def limit_seconds(self, phase: str) -> float:
        """Returns the time limit of a phase in seconds."""
        generates = phase in ("generate", "evaluate", "select_checkpoint")
        return 60 * (self.generate_limit_minutes if generates else self.phase_limit_minutes)

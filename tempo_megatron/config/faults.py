"""When a run gives up: on numbers that are none, and on ranks that hang."""

from __future__ import annotations

from dataclasses import dataclass

from tempo_megatron.config.fields import setting


@dataclass
class FaultsConfig:
    non_finite_updates: int = setting(
        3,
        "updates in a row with a loss or gradient that is not finite, each of them left out, after which a run stops",
        at_least=1,
    )
    lag_limit_seconds: float = setting(
        45.0,
        "seconds that a rank may be a phase behind the others before it is held to hang, which ends the run",
        above=0,
    )
    stall_limit_seconds: float = setting(
        45.0,
        "seconds in which no rank does any work of the phase that all are in, after which they are held to hang",
        above=0,
    )
    first_stall_limit_seconds: float = setting(
        300.0,
        "the same in phases that are entered for the first time, when kernels are compiled and NCCL connects",
        above=0,
    )
    phase_limit_minutes: float = setting(
        60.0,
        "minutes that a phase, or the building of models and generator, may take before it is held to hang",
        above=0,
    )
    generate_limit_minutes: float = setting(240.0, "minutes that the phases which generate may take", above=0)

    def limit_seconds(self, phase: str) -> float:
        """Of one phase; `evaluate` and `choose` generate too."""
        generates = phase in ("generate", "evaluate", "select_checkpoint")
        return 60 * (self.generate_limit_minutes if generates else self.phase_limit_minutes)

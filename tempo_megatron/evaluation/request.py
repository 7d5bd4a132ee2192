"""What the command line of `tempo eval` asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tempo_megatron.evaluation.protocol import ProtocolOverrides


@dataclass(frozen=True)
class EvaluationRequest:
    model: Path
    """The Hugging Face model directory."""
    data: tuple[str, ...]
    """JSONL files, a benchmark each. Without any, the recipe's unlabeled and held-out sets are the benchmarks."""
    recipe: str | None
    out: Path | None
    """The directory of samples and results. None: `runs/eval/` and the last two parts of the model's path."""
    protocol: ProtocolOverrides
    overrides: tuple[str, ...]
    """Settings `key=value`, the strongest last."""

    @property
    def directory(self) -> Path:
        """The directory of samples and results."""
        return self.out or Path("runs", "eval", "-".join(self.model.resolve().parts[-2:]))


def option_overrides(
    precision: str | None, processes: int | None, tensor_parallel: int | None, max_response_tokens: int | None
) -> list[str]:
    """Returns the settings `key=value` that some options are short for; None sets nothing."""
    values = {
        "model.precision": precision,
        "parallel.processes_per_node": processes,
        "generation.tensor_parallel_size": tensor_parallel,
        "generation.max_response_tokens": max_response_tokens,
    }
    return [f"{key}={value}" for key, value in values.items() if value is not None]

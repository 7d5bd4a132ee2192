"""How each benchmark is sampled and what is reported of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tempo_megatron.config import EvaluationConfig


@dataclass(frozen=True)
class Protocol:
    samples: int
    """responses a question; avg@samples is always reported"""
    k: tuple[int, ...]
    """pass@k and cons@k are reported of each"""
    temperature: float
    top_p: float


@dataclass(frozen=True)
class Given:
    """What the command line asks of every benchmark; None leaves it to the benchmark's protocol."""

    samples: int | None = None
    k: tuple[int, ...] | None = None
    temperature: float | None = None
    top_p: float | None = None


# Samples, k and temperature are the paper's (arXiv 2604.19295); it does not say its top-p.
_MATHEMATICS = Protocol(samples=16, k=(8,), temperature=1.0, top_p=1.0)
_ONE_SAMPLE = Protocol(samples=1, k=(), temperature=1.0, top_p=1.0)
_GPQA = Protocol(samples=8, k=(8,), temperature=1.0, top_p=1.0)
PROTOCOLS = {
    "aime_2024": _MATHEMATICS,
    "aime_2025": _MATHEMATICS,
    "aime_2026": _MATHEMATICS,
    "beyond_aime": _MATHEMATICS,
    "olymmath": _MATHEMATICS,
    "bbh": _ONE_SAMPLE,
    "agieval": _ONE_SAMPLE,
    "zebralogic": _ONE_SAMPLE,
    "gpqa_diamond": _GPQA,
}


def protocol_of(names: Iterable[str], given: Given, default: EvaluationConfig) -> Protocol:
    """The table's protocol by the first name that it knows, the name of the file or of its rows' source; one that
    begins with a known name and `_` is known (`olymmath_hard`). Without any, the defaults. What is given replaces
    either."""
    known = [known for name in names for known in PROTOCOLS if f"{name}_".startswith(f"{known}_")]
    fallback = Protocol(default.samples, (default.k,), default.temperature, default.top_p)
    base = PROTOCOLS[known[0]] if known else fallback
    return replace(base, **{name: value for name, value in vars(given).items() if value is not None})


def protocol_problems(benchmark: str, protocol: Protocol) -> Sequence[str]:
    """What no sampling can do, a line each."""
    found = []
    if protocol.samples < 1:
        found.append(f"{benchmark}: --samples: at least 1, got {protocol.samples}")
    for k in protocol.k:
        if not 1 <= k <= protocol.samples:
            found.append(f"{benchmark}: --k: {k} is not between 1 and the {protocol.samples} samples a question")
    if protocol.temperature < 0:
        found.append(f"{benchmark}: --temperature: at least 0, got {protocol.temperature}")
    if not 0 < protocol.top_p <= 1:
        found.append(f"{benchmark}: --top-p: above 0 and at most 1, got {protocol.top_p}")
    return found

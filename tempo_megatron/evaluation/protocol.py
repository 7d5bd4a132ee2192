"""How each benchmark is sampled and what is reported of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tempo_megatron.config import EvaluationConfig


@dataclass(frozen=True)
class Protocol:
    samples: int
    """The number of responses to a question. avg@samples is always reported."""
    k: tuple[int, ...]
    """pass@k and cons@k are reported for each of these."""
    temperature: float
    top_p: float


@dataclass(frozen=True)
class ProtocolOverrides:
    """What the command line asks of every benchmark. None leaves a value to the benchmark's protocol."""

    samples: int | None = None
    k: tuple[int, ...] | None = None
    temperature: float | None = None
    top_p: float | None = None


# The paper (arXiv 2604.19295) names samples, k and temperature; it does not name its top-p.
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


def protocol_of(names: Iterable[str], overrides: ProtocolOverrides, default: EvaluationConfig) -> Protocol:
    """Returns the protocol of the first name that PROTOCOLS has, with the overrides applied; else the defaults.

    The names are those of the file and of its rows' sources. A name that begins with a known name and `_` counts as
    that name: `olymmath_hard` is `olymmath`.
    """
    known_names = [known for name in names for known in PROTOCOLS if f"{name}_".startswith(f"{known}_")]
    fallback = Protocol(default.samples, (default.k,), default.temperature, default.top_p)
    protocol = PROTOCOLS[known_names[0]] if known_names else fallback
    return replace(protocol, **{name: value for name, value in vars(overrides).items() if value is not None})


def protocol_problems(benchmark: str, protocol: Protocol) -> Sequence[str]:
    """Returns a line for each value that no sampling can have."""
    problems = []
    if protocol.samples < 1:
        problems.append(f"{benchmark}: --samples: at least 1, got {protocol.samples}")
    for k in protocol.k:
        if not 1 <= k <= protocol.samples:
            problems.append(f"{benchmark}: --k: {k} is not between 1 and the {protocol.samples} samples a question")
    if protocol.temperature < 0:
        problems.append(f"{benchmark}: --temperature: at least 0, got {protocol.temperature}")
    if not 0 < protocol.top_p <= 1:
        problems.append(f"{benchmark}: --top-p: above 0 and at most 1, got {protocol.top_p}")
    return problems

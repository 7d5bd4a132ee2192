"""What ran: the facts at the top of the report."""

from __future__ import annotations

from typing import Any

from tempo_megatron.report.reading import RunRecord
from tempo_megatron.report.timing import phase_uses
from tempo_megatron.report.words import METHODS, duration

_ENVIRONMENT = {
    "layout": "Layout",
    "device": "Device",
    "commit": "Commit",
    "versions": "Versions",
}


def run_facts(record: RunRecord) -> list[tuple[str, str]]:
    """Return (name, value) of what ran. Facts that the run did not record are left out."""
    method = str(record.setting("method", ""))
    facts = [
        ("Method", f"{method}: {METHODS[method]}" if method in METHODS else method),
        ("Model", str(record.setting("model.hf_path", ""))),
        ("Precision", record.environment.get("precision") or str(record.setting("model.precision", ""))),
        ("Labeled questions", _sources(record, "labeled")),
        ("Unlabeled questions", _sources(record, "unlabeled")),
        ("Held-out questions", _sources(record, "held_out")),
        ("Responses to a question", str(record.setting("loop.samples_per_prompt", ""))),
        ("Seed", str(record.setting("seed", ""))),
        *((name, record.environment.get(key, "")) for key, name in _ENVIRONMENT.items()),
        ("Time", _time(record)),
        ("Starts", f"{record.starts}, so it was resumed" if record.starts > 1 else ""),
        ("Run directory", str(record.directory)),
    ]
    return [(name, value) for name, value in facts if value]


def _sources(record: RunRecord, stream: str) -> str:
    """Return the sources of a stream as text: `math.jsonl`, or `spell_backward (160)` for a task of that size."""
    sources: list[dict[str, Any]] = record.setting(f"data.{stream}") or []
    texts = []
    for source in sources:
        name = str(source.get("path") or source.get("task") or "")
        texts.append(f"{name} ({source['size']})" if source.get("task") and source.get("size") else name)
    return ", ".join(texts)


def _time(record: RunRecord) -> str:
    """Return the seconds of a finished run, or those of the phases so far."""
    if record.summary and "seconds" in record.summary:
        return duration(record.summary["seconds"])
    uses, _ = phase_uses(record)
    seconds = sum(use.seconds for use in uses)
    return f"{duration(seconds)} so far" if seconds else ""

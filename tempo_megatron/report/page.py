"""Fills the templates: one self-contained HTML page of a run, or of several runs side by side."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from tempo_megatron.metrics.question_metrics import mean
from tempo_megatron.report.alarms import alarms
from tempo_megatron.report.facts import run_facts
from tempo_megatron.report.figures import comparison_sections, sections
from tempo_megatron.report.outcome import (
    SETS,
    Change,
    Estimate,
    change,
    changes,
    checkpoint_sentence,
    evaluation_k,
    headline,
    outcome_sentences,
    shown_measures,
)
from tempo_megatron.report.panels import Section, title_slug
from tempo_megatron.report.questions import question_rows
from tempo_megatron.report.reading import RunRecord, RunStatus
from tempo_megatron.report.timing import PhaseUse, phase_uses
from tempo_megatron.report.token_samples import token_samples
from tempo_megatron.report.words import duration, percent, points, set_name

_TEMPLATES = Path(__file__).parent / "templates"
_STATUS_WORDS = {
    RunStatus.finished: "finished",
    RunStatus.running: "in progress",
    RunStatus.interrupted: "interrupted",
    RunStatus.stopped: "not finished",
}


def run_page(record: RunRecord, answers: Mapping[str, str] | None = None, *, reload_seconds: int | None = None) -> str:
    """Return the HTML page of one run.

    `answers` has hidden answers by question id. Without it the page has none, only whether a response is right.
    With `reload_seconds` the page reloads itself that often.
    """
    all_sections = sections(record)
    titles = {section.title: title_slug(section.title) for section in all_sections}
    questions = question_rows(record, answers)
    uses, memory = phase_uses(record)
    total = f"The device has {memory.total_gib:.0f} GiB." if memory.total_gib and memory.kind == "device" else ""
    all_changes = changes(record)
    text, _ = headline(record, all_changes)
    tokens = token_samples(record)
    return _render(
        "run.html",
        all_sections,
        [asdict(row) for row in questions],
        [asdict(question) for question in tokens.questions],
        title=f"{record.name}: {text}",
        reload_seconds=reload_seconds,
        record=record,
        status=_STATUS_WORDS[record.status],
        headline=text,
        sentences=outcome_sentences(record, all_changes),
        changes=[_tile(row) for row in all_changes],
        checkpoint=checkpoint_sentence(record),
        alarms=[{**asdict(alarm), "anchor": titles.get(alarm.panel, "")} for alarm in alarms(record, all_changes)],
        facts=run_facts(record),
        phases=[_phase_row(use) for use in uses],
        plan=_plan_sentence(record),
        memory_words="the GPU, by all processes" if memory.kind == "device" else "host memory by the first rank",
        memory_total=total,
        question_count=len(questions),
        token_question_count=len(tokens.questions),
        token_evaluations_left_out=tokens.evaluations_left_out,
        token_questions_left_out=tokens.questions_left_out,
        shows_answers=answers is not None,
    )


def _phase_row(use: PhaseUse) -> dict[str, Any]:
    """Return the texts of a row of the table of phases. What was not measured, or not planned, is empty."""
    texts = {
        "iteration": "" if use.iteration_seconds is None else duration(use.iteration_seconds),
        "planned": "" if use.planned_seconds is None else duration(use.planned_seconds),
        "memory": "" if use.peak_gib is None else f"{use.peak_gib:.1f} GiB",
        "planned_memory": "" if use.planned_gib is None else f"{use.planned_gib:.1f} GiB",
    }
    share = {"share": round(use.share, 4), "share_text": percent(use.share)}
    return {"name": use.name, "seconds": duration(use.seconds), **share, **texts}


def _plan_sentence(record: RunRecord) -> str:
    """Return what the plan assumed, and what it does not count; "" for a run without a plan."""
    if not record.plan:
        return ""
    lengths = [value for iteration, value in record.curve("policy/response_tokens") if iteration > 0]
    measured = f" They had {mean(lengths):,.0f}." if lengths else ""
    return (
        "Planned is what tempo plan predicted at the start, for responses of "
        f"{record.plan['response_tokens']:,.0f} tokens on average.{measured} The plan lists the "
        "moving of models separately."
    )


def comparison_page(records: Sequence[RunRecord]) -> str:
    """Return the HTML page of several runs: what became of each, paired differences, and overlaid curves."""
    runs = [_compared_run(record) for record in records]
    return _render(
        "comparison.html",
        comparison_sections(records),
        [],
        [],
        reload_seconds=None,
        title=" and ".join(record.name for record in records),
        headline=" · ".join(record.name for record in records),
        runs=runs,
        differences=[row for record in records[1:] for row in _differences(records[0], record)],
    )


def _compared_run(record: RunRecord) -> dict[str, Any]:
    """Return what a page of several runs says about one of them."""
    all_changes = changes(record)
    return {
        "name": record.name,
        "status": record.status.value,
        "status_text": _STATUS_WORDS[record.status],
        "sentences": outcome_sentences(record, all_changes),
        "alarms": [alarm.title for alarm in alarms(record, all_changes) if alarm.serious],
    }


def _render(
    template: str,
    all_sections: Sequence[Section],
    questions: list[dict[str, Any]],
    tokens: list[dict[str, Any]],
    **values: Any,
) -> str:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    panels = [asdict(panel) for section in all_sections for panel in section.panels]
    shown, number = [], 0
    for section in all_sections:
        entries = [
            {**asdict(panel), "legend": panel.legend, "number": number + index}
            for index, panel in enumerate(section.panels)
        ]
        number += len(entries)
        shown.append({**asdict(section), "anchor": title_slug(section.title), "panels": entries})
    plotly = _plotly_script()
    script = "".join((_TEMPLATES / name).read_text() for name in ("report.js", "tokens.js"))
    return environment.get_template(template).render(
        sections=shown,
        panels=_json(panels),
        questions=_json(questions),
        tokens=_json(tokens),
        style=Markup((_TEMPLATES / "style.css").read_text()),
        plotly=Markup(plotly),
        script=Markup(script),
        script_hashes=Markup(" ".join(map(_script_hash, (script, plotly)))),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **values,
    )


def _plotly_script() -> str:
    """Return Plotly's JavaScript, in which nothing ends the script element early."""
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script.replace("</script", r"<\/script")


def _script_hash(script: str) -> str:
    """Return the source expression by which the page's security policy allows this script, and no other."""
    normalized = script.replace("\r\n", "\n").replace("\r", "\n")  # as browsers read it
    return f"'sha256-{base64.b64encode(hashlib.sha256(normalized.encode()).digest()).decode()}'"


def _json(value: Any) -> Markup:
    """Return JSON that can stand in a script element: no text of a run can end the element."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")
    # A lone surrogate has no UTF-8 form.
    return Markup(text.encode("utf-8", "replace").decode())


def _finite(value: Any) -> Any:
    """Return the value with None for numbers that are not finite, which JSON does not have, and rounded numbers."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def _measure_name(row: Change) -> str:
    return "right responses" if row.measure == "avg" else f"right at least once in {row.k}"


def _tile(row: Change) -> dict[str, str]:
    """Return the texts of one of the four figures at the top."""
    return {
        "name": f"{set_name(row.question_set).capitalize()} questions: {_measure_name(row)}",
        "before": percent(row.before.value),
        "after": percent(row.after.value),
        "difference": _with_interval(row.difference),
        "verdict": row.verdict.value,
        "note": f"before {_interval(row.before)}, after {_interval(row.after)}; {row.questions} questions",
    }


def _interval(figure: Estimate) -> str:
    if figure.interval is None:
        return "without interval"
    low, high = figure.interval
    return f"{percent(low)}\u2013{percent(high)}"


def _with_interval(figure: Estimate) -> str:
    if figure.interval is None:
        return points(figure.value)
    low, high = figure.interval
    return f"{points(figure.value)} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _differences(reference: RunRecord, record: RunRecord) -> list[dict[str, str]]:
    """Return the rows of the table of differences between two runs' last evaluations."""
    if not (reference.evaluations and record.evaluations):
        return []
    k = min(evaluation_k(reference), evaluation_k(record))
    rows = []
    iterations = (record.evaluations[-1].iteration, reference.evaluations[-1].iteration)
    against = "" if len(set(iterations)) == 1 else " (iteration {} against {})".format(*iterations)
    for name in SETS:
        for measure in shown_measures(k):
            if row := change(reference.evaluations[-1], record.evaluations[-1], name, measure, k):
                rows.append(
                    {
                        "run": record.name,
                        "against": against,
                        "set": f"{row.questions} {set_name(name)}",
                        "measure": _measure_name(row),
                        "before": percent(row.before.value),
                        "after": percent(row.after.value),
                        "difference": _with_interval(row.difference),
                        "verdict": row.verdict.value,
                    }
                )
    return rows

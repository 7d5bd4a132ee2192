"""What the report draws: sections of panels, of one run or of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tempo_megatron.metrics.diversity import distinct_answers
from tempo_megatron.metrics.question_metrics import mean
from tempo_megatron.report.measures import ROLLOUTS, SUBJECTS, Measure
from tempo_megatron.report.outcome import SETS, estimate, evaluation_k, question_values
from tempo_megatron.report.panels import Frame, Line, Panel, Section
from tempo_megatron.report.reading import RunRecord
from tempo_megatron.report.timing import time_section
from tempo_megatron.report.words import set_name

_BAND_RESAMPLES = 2_000
"""Bands need fewer resamples than the figures of the outcome: a pixel is coarse."""
_ABOUT_ACCURACY = (
    "The shaded bands are 95% intervals over questions. Evaluations between the ends may use fewer questions, or fewer "
    "responses to each."
)
_AFTER = "after the E-step"
_MOMENTS = {
    "labeled": "labeled responses, before it learns from them",
    "before": "questions set aside, before the E-step",
    "after": f"questions set aside, {_AFTER}",
}
"""Moment of calibration bins -> the line's name."""
_AVG = Panel("Right responses", "Share of responses that are right, averaged over questions (avg).", [], share=True)
_PASS = Panel(
    "Right at least once",
    "The chance that one of k responses to a question is right (pass@k).",
    [],
    share=True,
)


def sections(record: RunRecord) -> list[Section]:
    """Return the sections of one run. Panels and sections without a recorded value are left out."""
    drawn_from_metrics = [
        Section(
            subject.title,
            subject.about,
            [
                *([reliability_panel(record)] if subject.title == "Critic" else []),
                *(_panel(record, measure) for measure in subject.measures),
            ],
        )
        for subject in SUBJECTS
    ]
    return _with_lines([_accuracy_section(record), *drawn_from_metrics, time_section(record)])


def comparison_sections(records: Sequence[RunRecord]) -> list[Section]:
    """Return sections that overlay runs: one line a run, one panel a metric."""
    accuracy = [
        Panel(
            panel.title.replace("Right", f"{set_name(name).capitalize()} questions: right"),
            panel.meaning,
            [
                Line(record.name, line.x, line.y, line.low, line.high)
                for record in records
                for line in _accuracy_lines(record, measure, [name])
            ],
            share=True,
            compares_runs=True,
        )
        for name in SETS
        for measure, panel in (("avg", _AVG), ("pass", _PASS))
    ]
    others = [
        Section(
            subject.title,
            subject.about,
            [
                Panel(
                    measure.title if len(measure.keys) == 1 else f"{measure.title} ({line})",
                    measure.meaning,
                    [Line(record.name, *_columns(record, key)) for record in records],
                    measure.share,
                    measure.reference,
                    measure.unit,
                    compares_runs=True,
                )
                for measure in subject.measures
                for line, key in measure.keys.items()
            ],
        )
        for subject in SUBJECTS
    ]
    return _with_lines([Section("Accuracy", _ABOUT_ACCURACY, accuracy), *others])


def _accuracy_section(record: RunRecord) -> Section:
    panels = [
        Panel(panel.title, panel.meaning, _accuracy_lines(record, measure, SETS), share=True)
        for measure, panel in (("avg", _AVG), ("pass", _PASS))
    ]
    different = Panel(
        "Different answers",
        f"Different answers per response, among the first {evaluation_k(record)} responses to a question. "
        "Where it falls, the model settles on one answer, right or wrong.",
        [_distinct_line(record, name) for name in SETS],
        share=True,
    )
    votes = Measure(
        "Right by majority",
        "Share of questions whose most frequent answer among k responses is right (cons@k).",
        {set_name(name): _accuracy_key(record, name, "cons") for name in SETS},
        share=True,
    )
    training = Measure(
        "Right responses while training",
        "Share of right ones among the responses to unlabeled questions that the policy learned from.",
        {"unlabeled": f"{ROLLOUTS}/avg"},
        share=True,
    )
    return Section("Accuracy", _ABOUT_ACCURACY, [*panels, _panel(record, votes), different, _panel(record, training)])


def _accuracy_lines(record: RunRecord, measure: str, sets: Sequence[str]) -> list[Line]:
    """Return a line of a measure for each set, with bands, from the samples of every evaluation."""
    k, lines = evaluation_k(record), []
    for name in sets:
        rows = []
        for evaluation in record.evaluations:
            values = list(question_values(evaluation.sets.get(name, {}), measure, k).values())
            if values:
                rows.append((evaluation.iteration, estimate(values, name, measure, resamples=_BAND_RESAMPLES)))
        bounds = [row.interval or (row.value, row.value) for _, row in rows]
        lines.append(
            Line(
                set_name(name),
                [float(iteration) for iteration, _ in rows],
                [row.value for _, row in rows],
                [low for low, _ in bounds],
                [high for _, high in bounds],
            )
        )
    return lines


def _distinct_line(record: RunRecord, question_set: str) -> Line:
    """Return the line of different answers per response, over equally many responses in every evaluation.

    The log's `distinct_answers` falls with the number of responses, so an evaluation with more of them looks poorer.
    """
    k, rows = evaluation_k(record), []
    for evaluation in record.evaluations:
        if questions := evaluation.sets.get(question_set):
            clusters = [[response.cluster for response in responses[:k]] for responses in questions.values()]
            rows.append((evaluation.iteration, mean([distinct_answers(row) for row in clusters])))
    return Line(set_name(question_set), [float(iteration) for iteration, _ in rows], [share for _, share in rows])


def reliability_panel(record: RunRecord) -> Panel:
    """Return the critic's reliability diagram: for each bin of values, the share of right responses, by iteration."""
    frames = []
    for iteration, line in sorted(record.critic_lines.items()):
        lines = []
        for color, (moment, title) in enumerate(_MOMENTS.items(), start=1):
            name = title if has_e_steps(record) else title.replace(f", {_AFTER}", "")
            if bins := line.get("bins", {}).get(moment):
                counts, values, shares = map(list, zip(*bins, strict=True))
                lines.append(Line(name, values, shares, counts=counts, color=color))
        if lines:
            frames.append(Frame(iteration, lines))
    return Panel(
        "Is a value the chance to be right?",
        "Responses in ten groups by the critic's final value: the mean value of a group, and its share of right "
        "responses. On the dashed line the critic is calibrated. Larger points have more responses.",
        frames[-1].lines if frames else [],
        share=True,
        x_title="critic's value",
        frames=frames,
        diagonal=True,
    )


def has_e_steps(record: RunRecord) -> bool:
    """Return whether iterations have E-steps. Where they have none, every measurement is logged as one after it."""
    return bool(record.setting("critic.training", "calibrated") == "calibrated")


def _accuracy_key(record: RunRecord, question_set: str, measure: str) -> str:
    return f"evaluation/{question_set}/{measure}@{record.setting('evaluation.k', 8)}"


def _panel(record: RunRecord, measure: Measure) -> Panel:
    names = {_AFTER: _AFTER if has_e_steps(record) else "critic"}
    lines = [Line(names.get(name, name), *_columns(record, key)) for name, key in measure.keys.items()]
    return Panel(measure.title, measure.meaning, lines, measure.share, measure.reference, measure.unit)


def _columns(record: RunRecord, key: str) -> tuple[list[float], list[float]]:
    points = record.curve(key)
    return [x for x, _ in points], [y for _, y in points]


def _with_lines(all_sections: Sequence[Section]) -> list[Section]:
    """Return the sections without lines that have no point, without empty panels, and without empty sections."""
    filled = []
    for section in all_sections:
        panels = [replace(panel, lines=[line for line in panel.lines if line.x]) for panel in section.panels]
        if panels := [panel for panel in panels if panel.lines]:
            filled.append(replace(section, panels=panels))
    return filled

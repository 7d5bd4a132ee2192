"""A study's results as Markdown, which goes into a page of results as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from comparison.intervals import Interval
from comparison.results import START, Results, Runs

Kind = Mapping[str, Any]
"""Mean, low and high end of an interval, and the mean of each seed."""


def groups_of(results: Results) -> list[list[str]]:
    """Returns the names of runs that have the same questions, without the start. The first of each is its reference."""
    groups: dict[frozenset[str], list[str]] = {}
    for name, by_source in results.items():
        if name != START:
            groups.setdefault(frozenset(by_source), []).append(name)
    return [sorted(names, key=lambda name: has_reference(results[name])) for names in groups.values()]


def has_reference(by_source: Mapping[str, Any]) -> bool:
    """Returns whether a run's results have the lead of another run."""
    return any("lead" in kinds for by_measure in by_source.values() for kinds in by_measure.values())


def summary_tables(results: Results) -> str:
    """Returns the table of the paper, one for each set of questions: means with intervals, in percent."""
    return "\n".join(summary_table(results, names) for names in groups_of(results))


def summary_table(results: Results, names: Sequence[str]) -> str:
    """Returns a row for the start and each of the runs `names`, which have the same questions."""
    columns = [(source, measure) for source, by_measure in results[names[0]].items() for measure in by_measure]
    lines = [
        f"| % | {' | '.join(f'{source} {measure}' for source, measure in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for name in (START, *names):
        cells = [value_text(results[name][source][measure]["value"]) for source, measure in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def verdicts(results: Results) -> str:
    """Returns a line for each run: gain and lead on unlabeled questions, and whether the intervals exclude 0."""
    lines = []
    for reference, *others in groups_of(results):
        for name in (reference, *others):
            source, by_measure = next(iter(results[name].items()))
            gains = [f"{measure} {change_text(kinds['gain'])}" for measure, kinds in by_measure.items()]
            text = f"- **{name}**, `{source}`, from the start: {'; '.join(gains)}."
            if name != reference:
                leads = [f"{measure} {change_text(kinds['lead'])}" for measure, kinds in by_measure.items()]
                text += f" Lead of {reference}: {'; '.join(leads)}."
            lines.append(text)
    return "\n".join(lines) + "\n"


def difference_tables(results: Results) -> str:
    """Returns a row for each run, source and measure: gain, the reference's lead, and every seed."""
    return "\n".join(difference_table(results, names) for names in groups_of(results))


def difference_table(results: Results, names: Sequence[str]) -> str:
    """Returns the rows of the runs `names`. The first of them is the reference."""
    lines = [
        f"| run | questions | measure | gain | lead of {names[0]} | value of each seed |",
        "|---|---|---|---|---|---|",
    ]
    start = {source: results[START][source] for source in results[names[0]]}
    for name, by_source in ((START, start), *((name, results[name]) for name in names)):
        for source, by_measure in by_source.items():
            for measure, kinds in by_measure.items():
                cells = [difference_text(kinds[kind]) if kind in kinds else "" for kind in ("gain", "lead")]
                seeds = ", ".join(f"{100 * value:.1f}" for value in kinds["value"]["seeds"])
                lines.append(f"| {name} | {source} | {measure} | {' | '.join(cells)} | {seeds} |")
    return "\n".join(lines) + "\n"


def interval_of(kind: Kind) -> Interval:
    """Returns the interval of a kind of results."""
    return Interval(kind["mean"], kind["low"], kind["high"])


def value_text(kind: Kind) -> str:
    """Returns a share in percent with its 95% interval."""
    return _text(interval_of(kind), "")


def difference_text(kind: Kind) -> str:
    """Returns a difference in percentage points with its 95% interval, in bold where that excludes 0."""
    interval = interval_of(kind)
    text = _text(interval, "+")
    return f"**{text}**" if interval.excludes_zero else text


def change_text(kind: Kind) -> str:
    """Returns a difference in percentage points with its 95% interval, and whether that excludes 0."""
    interval = interval_of(kind)
    verdict = "no interval" if interval.low is None else "excludes 0" if interval.excludes_zero else "includes 0"
    return f"{_text(interval, '+')} ({verdict})"


def provenance(runs: Runs) -> str:
    """Returns the devices, commits and versions of a study's runs, as they recorded them; "" where none did."""
    files = [run / "environment.json" for paths in runs.values() for run in paths]
    recorded = [json.loads(file.read_text()) for file in files if file.is_file()]
    facts = {
        title: ", ".join(sorted({environment[key] for environment in recorded}))
        for title, key in (("Device", "device"), ("commit", "commit"), ("versions", "versions"))
        if recorded
    }
    return "; ".join(f"{title}: {fact}" for title, fact in facts.items()) + ".\n" if facts else ""


def critic_text(critic: Mapping[str, Any]) -> str:
    """Returns the sentences about the critic at the start and the gain."""
    points, correlation, gains_from = critic["points"], critic["rank_correlation"], critic["gains_from"]
    if not points:
        return "No run logged an AUROC of its reward within prompts.\n"
    aurocs = [point["auroc"] for point in points]
    sentences = [f"{len(points)} runs start at an AUROC within prompts of {min(aurocs):.2f} to {max(aurocs):.2f}."]
    if correlation is not None:
        sentences.append(f"Spearman's correlation with the gain is {correlation:+.2f}.")
    if gains_from is None:
        sentences.append("The run with the highest AUROC does not gain.")
    else:
        sentences.append(f"All runs from {gains_from:.2f} on gain.")
    return " ".join(sentences) + "\n"


def _text(interval: Interval, sign: str) -> str:
    mean = f"{100 * interval.mean:{sign}.1f}"
    if interval.low is None or interval.high is None:
        return mean
    return f"{mean} [{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]"

"""What a study's runs reached: values, gains over the start and leads of the reference, with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from comparison.intervals import crossed_interval
from comparison.samples import curve, evaluations, grades_by_question, measure_matrix
from tempo_megatron.data.seeds import derive_seed

START = "start"
Grades = dict[str, list[dict[str, list[float]]]]
"""Source of questions -> for each seed, the grades of a question's responses by prompt id."""
Runs = Mapping[str, Sequence[Path]]
"""Name -> the run of each seed."""
Results = dict[str, dict[str, Any]]
"""Name -> source -> measure -> kind -> mean of each seed, and the mean with its interval."""
BAND_RESAMPLES = 2_000
"""Bands of a figure need fewer resamples than tables: a pixel is coarse."""
AUROC = "evaluation/unlabeled_rollouts/reward_auroc_within_prompts"


@dataclass(frozen=True)
class Trajectory:
    """A measure on unlabeled questions at each iteration that all seeds evaluated."""

    iterations: list[int]
    seeds: np.ndarray
    """float [seeds, iterations]"""
    low: list[float]
    """The lower end of the mean's 95% interval over seeds and questions."""
    high: list[float]

    @property
    def mean(self) -> np.ndarray:
        """float [iterations]"""
        return self.seeds.mean(0)


def grades_by_source(files: Sequence[Path]) -> Grades:
    """Returns the grades of one evaluation by the file of the question. `files` has the responses of each seed.

    The sources are in the order of the evaluation, which is that of the unlabeled questions first.
    """
    grades: Grades = {}
    for number, file in enumerate(files):
        for questions in grades_by_question(file).values():
            for prompt, rows in questions.items():
                source = prompt.partition(".jsonl:")[0]
                seeds = grades.setdefault(source, [{} for _ in files])
                seeds[number][prompt] = rows
    return grades


def at_the_ends(runs: Sequence[Path]) -> tuple[Grades, Grades]:
    """Returns the grades of all seeds before the first and after the last iteration."""
    files = [[*evaluations(run).values()] for run in runs]
    return grades_by_source([paths[0] for paths in files]), grades_by_source([paths[-1] for paths in files])


def references_of(sources: Mapping[str, Sequence[str]], reference: str) -> dict[str, str]:
    """Returns the run that each run is compared with, by name. `sources` has the sources of each run's questions.

    It is `reference` for runs that have its questions. For others it is the first run that has the same questions.
    """
    order = sorted(sources, key=lambda name: name != reference)
    return {name: next(other for other in order if set(sources[other]) == set(sources[name])) for name in sources}


def compare(runs: Runs, reference: str, k: int) -> Results:
    """Returns what each run and the start reached.

    The measures are avg@n, over all n responses to a question, and pass@k. The kinds are `value`, `gain` (the
    difference from the start) and `lead` (that of the run's reference from the run). Raises ValueError where the last
    evaluations of runs have different numbers of responses, as those of a run that was stopped.
    """
    ends = {name: at_the_ends(paths) for name, paths in runs.items()}
    counts = {name: response_count([*chain(*final.values())]) for name, (_, final) in ends.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the last evaluations of runs have different numbers of responses to a question: {counts}")
    references = references_of({name: [*final] for name, (_, final) in ends.items()}, reference)
    results: Results = {name: {} for name in (START, *runs)}
    for name, (initial, final) in ends.items():
        for source, grades in final.items():
            for measure, samples in measures(grades, k).items():
                before, after = measure_matrix(initial[source], samples), measure_matrix(grades, samples)
                tables = {"value": after, "gain": after - before}
                if name == references[name]:
                    results[START].setdefault(source, {})[measure] = figures({"value": before}, START, source, measure)
                else:
                    tables["lead"] = measure_matrix(ends[references[name]][1][source], samples) - after
                results[name].setdefault(source, {})[measure] = figures(tables, name, source, measure)
    return results


def measures(seeds: Sequence[dict[str, list[float]]], k: int) -> dict[str, int | None]:
    """Returns the names of both measures, each with its k; None stands for the mean over all responses."""
    return {f"avg@{response_count(seeds)}": None, f"pass@{k}": k}


def response_count(seeds: Sequence[dict[str, list[float]]]) -> int:
    """Returns the smallest number of responses to a question."""
    return min(len(grades) for questions in seeds for grades in questions.values())


def figures(tables: Mapping[str, np.ndarray], *names: str) -> dict[str, Any]:
    """Returns the mean of each seed and the interval of each table, float [seeds, questions].

    `names` seed the interval's resamples.
    """
    return {
        kind: {
            "seeds": table.mean(1).tolist(),
            **asdict(crossed_interval(table, seed=derive_seed("reproduce", kind, *names))),
        }
        for kind, table in tables.items()
    }


def trajectories(runs: Sequence[Path], k: int) -> dict[str, Trajectory]:
    """Returns avg over all responses, named avg@`k` as in the log, and pass@`k`. `runs` has one run a seed."""
    files = [evaluations(run) for run in runs]
    iterations = sorted(set.intersection(*map(set, files)))
    grades = [[grades_by_question(paths[iteration])["unlabeled"] for paths in files] for iteration in iterations]
    return {
        f"avg@{k}": _trajectory(iterations, [measure_matrix(seeds, None) for seeds in grades]),
        f"pass@{k}": _trajectory(iterations, [measure_matrix(seeds, k) for seeds in grades]),
    }


def _trajectory(iterations: list[int], tables: Sequence[np.ndarray]) -> Trajectory:
    """Returns the means and intervals of the table [seeds, questions] of each iteration."""
    bounds = []
    for iteration, table in zip(iterations, tables, strict=True):
        interval = crossed_interval(table, seed=derive_seed("trajectory", iteration), resamples=BAND_RESAMPLES)
        bounds.append([interval.mean if end is None else end for end in (interval.low, interval.high)])
    lows, highs = ([end[side] for end in bounds] for side in (0, 1))
    return Trajectory(iterations, np.stack([table.mean(1) for table in tables], axis=1), lows, highs)


def critic_at_start(runs: Runs, results: Results) -> dict[str, Any]:
    """Returns how the critic's quality at the start and the gain go together.

    - `points`: for each run, the AUROC of its reward within prompts in the first M-step (iteration 1 unless a gate was
      closed), and the gain in avg@n on unlabeled questions. A run without such an AUROC has no point.
    - `rank_correlation`: Spearman's, over the points; None where it is undefined.
    - `gains_from`: the lowest AUROC from which on all runs gain; None where the run with the highest does not.
    """
    points = []
    for name, paths in runs.items():
        by_measure = next(iter(results[name].values()))
        gains = next(iter(by_measure.values()))["gain"]["seeds"]
        for run, gain in zip(paths, gains, strict=True):
            if logged := curve(run, AUROC):
                points.append({"run": name, "directory": run.name, "auroc": logged[0][1], "gain": gain})
    gains_from = None
    for point in sorted(points, key=lambda point: (-point["auroc"], point["gain"])):
        if point["gain"] <= 0:
            break
        gains_from = point["auroc"]
    return {"points": points, "rank_correlation": rank_correlation(points), "gains_from": gains_from}


def rank_correlation(points: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns Spearman's correlation of `auroc` and `gain`; None where either is constant or there is one point."""
    from scipy import stats  # takes a second to import

    columns = [[point[key] for point in points] for key in ("auroc", "gain")]
    if any(len(set(column)) < 2 for column in columns):
        return None
    return float(stats.spearmanr(*columns).statistic)

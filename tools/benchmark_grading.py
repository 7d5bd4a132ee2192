"""Measures how many mathematical responses 1, 2, ... worker processes grade a second.

usage: python tools/benchmark_grading.py [--workers 1 2 4] [--responses 300] [--rounds 5]

No two responses are equal, so that no worker's cache helps. Workers start and warm up before the measurement. Rounds of
all worker counts alternate, and the median of each counts, so that other work on the machine affects them alike. The
tool prints each rate and its ratio to the first. It also prints processor seconds for 1,000 responses, which other work
does not change.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import psutil

from tempo_megatron.config import GradingConfig
from tempo_megatron.data.sources import Answers
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.grading import RolloutGrader

WORK = "We add the two terms and look at what is under the root, which gives $a = 12 + 5$ in this step.\n" * 100


def decode(ids: tuple[int, ...]) -> str:
    """Returns the response to question n: 10 kB of reasoning, and the label's value in another form."""
    (n,) = ids
    return f"{WORK}The answer is \\boxed{{\\sqrt{{{4 * n}}} + \\frac{{{2 * n}}}{{14}}}}."


def questions(numbers: range) -> tuple[list[Rollout], Answers]:
    """Returns a rollout and an answer for each number."""
    answers = {str(n): {"answer": f"$\\frac{{{n}}}{{7}} + 2\\sqrt{{{n}}}$"} for n in numbers}
    return [Rollout(Prompt(str(n), (0,), "benchmark", "math"), 0, (n,), (0.0,), "stop") for n in numbers], answers


def processor_seconds() -> tuple[float, float]:
    """Returns the processor time of all living workers, and of this process, until now."""
    times = [child.cpu_times() for child in psutil.Process().children()]
    return sum(time_.user + time_.system for time_ in times), time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="worker counts to measure")
    parser.add_argument("--responses", type=int, default=300, help="responses a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    graders = {
        count: RolloutGrader(decode, GradingConfig(workers=count, time_limit_seconds=120)) for count in options.workers
    }
    rates: dict[int, list[float]] = {count: [] for count in options.workers}
    spent: dict[int, list[tuple[float, float]]] = {count: [] for count in options.workers}
    for round_ in range(options.rounds + 1):
        for count, grader in graders.items():
            rollouts, answers = questions(range(1 + round_ * options.responses, 1 + (round_ + 1) * options.responses))
            started, seconds_before = time.monotonic(), processor_seconds()
            grades = grader.grade(rollouts, answers)
            if not all(grades):
                raise SystemExit(f"{grades.count(0.0)} responses are graded wrong")
            if round_:  # the first round warms up
                rates[count].append(options.responses / (time.monotonic() - started))
                workers, parent = processor_seconds()
                spent[count].append((workers - seconds_before[0], parent - seconds_before[1]))
    print(f"{options.responses} responses a round, {options.rounds} rounds, {os.cpu_count()} cores; medians")
    first_rate = statistics.median(rates[options.workers[0]])
    for count, count_rates in rates.items():
        rate = statistics.median(count_rates)
        workers, parent = (
            1000 * statistics.median(part) / options.responses for part in zip(*spent[count], strict=True)
        )
        print(
            f"{count:3} workers  {rate:8.0f} responses/s  {rate / first_rate:5.2f} x {options.workers[0]} worker(s)"
            f"  {workers:6.2f} s of workers and {parent:5.2f} s of the parent for 1,000"
        )
    for grader in graders.values():
        grader.close()


if __name__ == "__main__":
    main()

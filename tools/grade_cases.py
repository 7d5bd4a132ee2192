"""Counts the pairs of a file that the graders judge differently from the verdicts by hand.

usage: python tools/grade_cases.py FILE [--allow 30] [--list]

FILE has a JSON object a line: `grader`, `answer` (the label), `response`, `correct` (the verdict), `note`. The tool
grades each response as a run does, by the same graders in worker processes with the default limits. Its exit code is 1
if more pairs differ than allowed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tempo_megatron.config import GradingConfig
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.grading import RolloutGrader


def read_cases(path: Path) -> list[dict[str, Any]]:
    """Returns the pairs of a file, in order."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def grades(cases: Sequence[dict[str, Any]], config: GradingConfig | None = None) -> list[bool]:
    """Returns for each pair whether a run's grader calls it right."""
    rollouts = [
        Rollout(Prompt(str(index), (0,), "cases", case["grader"]), 0, (index,), (0.0,), "stop")
        for index, case in enumerate(cases)
    ]
    answers = {str(index): {"answer": case["answer"]} for index, case in enumerate(cases)}
    with RolloutGrader(lambda ids: cases[ids[0]]["response"], config or GradingConfig()) as grader:
        return [bool(grade) for grade in grader.grade(rollouts, answers)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--allow", type=int, default=30, help="pairs that may differ")
    parser.add_argument("--list", action="store_true", help="show each pair that differs")
    options = parser.parse_args()
    cases = read_cases(options.file)
    graded_cases = list(zip(cases, grades(cases), strict=True))
    print(f"{'grader':10} {'pairs':>6} {'agree':>6} {'wrong accepted':>15} {'right rejected':>15}")
    for name in dict.fromkeys(case["grader"] for case in cases):
        outcomes = [(case["correct"], is_right) for case, is_right in graded_cases if case["grader"] == name]
        accepted, rejected = outcomes.count((False, True)), outcomes.count((True, False))
        print(f"{name:10} {len(outcomes):6} {len(outcomes) - accepted - rejected:6} {accepted:15} {rejected:15}")
    differing = [(case, is_right) for case, is_right in graded_cases if case["correct"] != is_right]
    print(f"{len(differing)} of {len(cases)} differ; {options.allow} may")
    for case, is_right in differing if options.list else []:
        kind = "wrong accepted" if is_right else "right rejected"
        print(f"{kind}: {case['grader']} {case['answer']!r} <- {case['response']!r} ({case.get('note', '')})")
    return int(len(differing) > options.allow)


if __name__ == "__main__":
    raise SystemExit(main())

"""How far the graders agree with a file of pairs whose verdicts were decided by hand.

usage: python tools/grade_cases.py FILE [--allow 30] [--list]

FILE has a JSON object a line: `grader`, `answer` (the label), `response`, `correct` (the verdict), `note`. Each
response is graded as in a run, by the same scorers in worker processes with the default limits. The exit code is 1
where more pairs than allowed differ.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tempo_megatron.config import GradingConfig
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.grading import Grader


def read_cases(path: Path) -> list[dict[str, Any]]:
    """The pairs of a file, in order."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def grades(cases: Sequence[dict[str, Any]], config: GradingConfig | None = None) -> list[bool]:
    """What a run's grader says of each pair."""
    rollouts = [
        Rollout(Prompt(str(index), (0,), "cases", case["grader"]), 0, (index,), (0.0,), "stop")
        for index, case in enumerate(cases)
    ]
    answers = {str(index): {"answer": case["answer"]} for index, case in enumerate(cases)}
    with Grader(lambda ids: cases[ids[0]]["response"], config or GradingConfig()) as grader:
        return [bool(grade) for grade in grader.grade(rollouts, answers)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--allow", type=int, default=30, help="pairs that may differ")
    parser.add_argument("--list", action="store_true", help="show each pair that differs")
    options = parser.parse_args()
    cases = read_cases(options.file)
    verdicts = list(zip(cases, grades(cases), strict=True))
    print(f"{'grader':10} {'pairs':>6} {'agree':>6} {'wrong accepted':>15} {'right rejected':>15}")
    for name in dict.fromkeys(case["grader"] for case in cases):
        own = [(case["correct"], right) for case, right in verdicts if case["grader"] == name]
        accepted, rejected = own.count((False, True)), own.count((True, False))
        print(f"{name:10} {len(own):6} {len(own) - accepted - rejected:6} {accepted:15} {rejected:15}")
    differing = [(case, right) for case, right in verdicts if case["correct"] != right]
    print(f"{len(differing)} of {len(cases)} differ; {options.allow} may")
    for case, right in differing if options.list else []:
        kind = "wrong accepted" if right else "right rejected"
        print(f"{kind}: {case['grader']} {case['answer']!r} <- {case['response']!r} ({case.get('note', '')})")
    return int(len(differing) > options.allow)


if __name__ == "__main__":
    raise SystemExit(main())

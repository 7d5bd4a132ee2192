"""The graders agree with verdicts by hand, apart from the pairs that `docs/grading.md` lists."""

from __future__ import annotations

import re
from pathlib import Path

import grade_cases
import pytest

from tempo_megatron.config import GradingConfig

ROOT = Path(__file__).parents[2]
CASES = grade_cases.read_cases(ROOT / "tests" / "fixtures" / "grading" / "cases.jsonl")
_ROW = re.compile(r"\| `(\w+)` \| `` (.*?) `` \| `` (.*?) `` \| (right|wrong) \|")
LIMITS = GradingConfig(workers=2, time_limit_seconds=120)  # a grade must not depend on the machine's load


def documented_pairs() -> set[tuple[str, str, str, bool]]:
    """Returns (grader, label, response, our verdict) of each pair in the page's table."""
    text = (ROOT / "docs" / "grading.md").read_text()
    return {(grader, label, response, verdict == "right") for grader, label, response, verdict in _ROW.findall(text)}


@pytest.mark.parametrize("grader", ["math", "choice", "free", "zebra"])
def test_only_documented_pairs_differ(grader: str) -> None:
    """Each difference has a reason in the page, and none accepts an answer that is wrong by hand."""
    cases = [case for case in CASES if case["grader"] == grader]
    differing = {
        (grader, case["answer"], case["response"], right)
        for case, right in zip(cases, grade_cases.grades(cases, LIMITS), strict=True)
        if case["correct"] != right
    }
    assert differing == {pair for pair in documented_pairs() if pair[0] == grader}
    assert not any(right for *_, right in differing)
    assert len(documented_pairs()) <= 30


def test_the_tool_counts_the_pairs_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code shows whether more pairs differ than allowed."""
    file = tmp_path / "cases.jsonl"
    pair = '{{"grader": "exact", "answer": "1", "response": "{}", "correct": true, "note": ""}}\n'
    file.write_text(pair.format("1") + pair.format("2"))
    for arguments, code in ([], 0), (["--allow", "0"], 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["grade_cases.py", str(file), "--list", *arguments])
            assert grade_cases.main() == code
        printed = capsys.readouterr().out
        assert "1 of 2 differ" in printed and "right rejected: exact '1' <- '2'" in printed

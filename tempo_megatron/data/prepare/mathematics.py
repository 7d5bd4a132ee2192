"""Rows of the mathematics sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tempo_megatron.data.prepare.question import PreparedQuestion, SkippedRow, field, text

# DAPO wraps every problem in these two; our own instruction takes their place.
_DAPO_BEFORE = "Solve the following math problem step by step."
_DAPO_LAST_LINE = "where $Answer is the answer to the problem."
_DAPO_AFTER = 'Remember to put your answer on its own line after "Answer:".'


def dapo(row: dict[str, Any], part: str) -> PreparedQuestion:
    """DAPO-Math-17K: a conversation of one turn, the answer in `reward_model`."""
    (turn,) = field(row, "prompt")
    id_ = text(field(row, "extra_info") or {}, "index")
    answer = text(field(row, "reward_model"), "ground_truth")
    return PreparedQuestion(_unwrapped(turn["content"]), answer, "math", "DAPO-Math-17K", id_)


def _unwrapped(content: str) -> str:
    """The bare problem. Raises SkippedRow where the wrapping is not the known one."""
    before, found, problem = content.strip().partition(_DAPO_LAST_LINE)
    if not found or not before.startswith(_DAPO_BEFORE):
        raise SkippedRow("not in the instruction that DAPO wraps its problems in")
    return problem.strip().removesuffix(_DAPO_AFTER).strip()


def olymmath(row: dict[str, Any], part: str) -> PreparedQuestion:
    """OlymMath, of whose two languages the paper's table has the English one."""
    if text(row, "unique_id").endswith("-ZH"):
        raise SkippedRow("in Chinese")
    return competition("OlymMath")(row, part)


def competition(source: str) -> Callable[[dict[str, Any], str], PreparedQuestion]:
    """A row function for tables of problem and answer, whose copies differ in the names of their columns."""

    def question(row: dict[str, Any], part: str) -> PreparedQuestion:
        problem = text(row, "problem", "question", "Problem")
        answer = text(row, "answer", "Answer")
        id_ = next((text(row, name) for name in ("unique_id", "id", "ID", "problem_idx") if name in row), "")
        return PreparedQuestion(problem, answer, "math", source, id_)

    return question

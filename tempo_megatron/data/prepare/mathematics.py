"""Makes questions of the rows of mathematics sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tempo_megatron.data.prepare.question import PreparedQuestion, SkippedRow, required_text, required_value

# DAPO puts every problem into this instruction. The preparation removes it, because a run adds its own.
_DAPO_BEFORE = "Solve the following math problem step by step."
_DAPO_LAST_LINE = "where $Answer is the answer to the problem."
_DAPO_AFTER = 'Remember to put your answer on its own line after "Answer:".'


def dapo(row: dict[str, Any], part: str) -> PreparedQuestion:
    """Return a question of DAPO-Math-17K: `prompt` is a conversation of one turn, `reward_model` has the answer."""
    (turn,) = required_value(row, "prompt")
    id_ = required_text(required_value(row, "extra_info") or {}, "index")
    answer = required_text(required_value(row, "reward_model"), "ground_truth")
    return PreparedQuestion(_without_instruction(turn["content"]), answer, "math", "DAPO-Math-17K", id_)


def _without_instruction(content: str) -> str:
    """Return the bare problem. Raises SkippedRow where the text does not contain DAPO's instruction."""
    before, last_line, problem = content.strip().partition(_DAPO_LAST_LINE)
    if not last_line or not before.startswith(_DAPO_BEFORE):
        raise SkippedRow("not in the instruction that DAPO wraps its problems in")
    return problem.strip().removesuffix(_DAPO_AFTER).strip()


def olymmath(row: dict[str, Any], part: str) -> PreparedQuestion:
    """Return a question of OlymMATH. Its Chinese rows are skipped, since the paper's table has the English ones."""
    if required_text(row, "unique_id").endswith("-ZH"):
        raise SkippedRow("in Chinese")
    return competition("OlymMath")(row, part)


def competition(source: str) -> Callable[[dict[str, Any], str], PreparedQuestion]:
    """Return a row function for tables of problem and answer. Copies of a source differ in the names of columns."""

    def question(row: dict[str, Any], part: str) -> PreparedQuestion:
        problem = required_text(row, "problem", "question", "Problem")
        answer = required_text(row, "answer", "Answer")
        id_ = next((required_text(row, name) for name in ("unique_id", "id", "ID", "problem_idx") if name in row), "")
        return PreparedQuestion(problem, answer, "math", source, id_)

    return question

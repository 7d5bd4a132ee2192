"""Rows of the general sources: judged answers, multiple choice, free text and grids."""

from __future__ import annotations

import re
from typing import Any

from tempo_megatron.data.prepare.question import (
    NO_ANSWER,
    SEVERAL_OPTIONS,
    PreparedQuestion,
    SkippedRow,
    entries,
    field,
    hashed_order,
    letter,
    lettered,
    plain,
    text,
)

_DOLCI_GRADERS = {"general-quality": "judge", "general-quality_ref": "judge", "math": "math"}
_LETTER = re.compile(r"\(?([A-Z])\)?")
_LISTED = re.compile(r"^\(([A-Z])\)[ \t]*(.*)$", re.MULTILINE)
_BLANK = "___"


def dolci(row: dict[str, Any], part: str) -> PreparedQuestion:
    """Dolci-RL-Zero: `prompt` as "user: ..." (or `messages`), `ground_truth` and its verifier's name in lists."""
    verifier = _first(row.get("dataset"), "dataset") or "general-quality_ref"
    if verifier not in _DOLCI_GRADERS:
        raise SkippedRow(f"verifier {verifier}, which has no grader here")
    answer = _first(field(row, "ground_truth"), "ground_truth")
    id_ = next((str(row[name]) for name in ("id", "custom_id", "key") if row.get(name)), "")
    messages = tuple({"role": turn["role"], "content": turn["content"]} for turn in row.get("messages") or ())
    if messages and messages[-1]["role"] != "user":
        raise SkippedRow("a conversation that does not end with the user's turn")
    prompt = messages[0]["content"] if messages else re.sub(r"^user:\s*", "", text(row, "prompt"), flags=re.IGNORECASE)
    several = messages if len(messages) > 1 else ()
    return PreparedQuestion(
        "" if several else prompt.strip(), answer, _DOLCI_GRADERS[verifier], "Dolci-General", id_, several
    )


def _first(value: Any, name: str) -> str:
    """The first entry of a list, or the value itself, as text."""
    return plain(next(iter(value), None) if isinstance(value, list) else value, f"`{name}`")


def big_bench_hard(row: dict[str, Any], task: str) -> PreparedQuestion:
    """BIG-Bench Hard: a choice where the question lists options by letters, else free text.

    The target of a choice is a letter in brackets or, in a few rows, the text of an option.
    """
    whole_question, target = text(row, "input"), text(row, "target")
    options = _LISTED.findall(whole_question.partition("Options:")[2])
    if len(options) < 2:
        return PreparedQuestion(whole_question, target, "free", f"BBH/{task}")
    named = _LETTER.fullmatch(target)
    letters = [named[1]] if named else [letter_ for letter_, option in options if option.strip() == target]
    answer = letters[0] if len(letters) == 1 else None
    return PreparedQuestion(
        whole_question, answer, "choice", f"BBH/{task}", unanswered=SEVERAL_OPTIONS if target else NO_ANSWER
    )


# The paper does not say which subsets it takes: these are the English ones. sat-en-without-passage asks about texts
# that it leaves out.
AGIEVAL_SUBSETS = (
    "aqua-rat",
    "gaokao-english",
    "logiqa-en",
    "lsat-ar",
    "lsat-lr",
    "lsat-rc",
    "sat-en",
    "sat-math",
    "math",
)


def agieval(row: dict[str, Any], subset: str) -> PreparedQuestion:
    """AGIEval, in its own JSONL and in the hub's copy, which has made one text of passage, question and options."""
    subset = subset.replace("_", "-")
    if subset not in AGIEVAL_SUBSETS:
        raise SkippedRow(f"subset {subset}, not one of the English ones")
    source = f"AGIEval/{subset}"
    if "query" in row:
        whole_question, options, correct = _hub_agieval(row)
    else:
        whole_question = "\n\n".join(filter(None, (text(row, "passage"), text(row, "question"))))
        options, correct = entries(row.get("options"), "`options`"), text(row, "label")
    if not options:
        return PreparedQuestion(whole_question, text(row, "answer"), "math", source)
    if len(options) < 2:
        raise SkippedRow("options that are not listed one by one")
    chosen = _LETTER.fullmatch(correct)
    texts = [re.sub(r"^\s*\([A-Z]\)\s*", "", plain(option, "an option")) for option in options]
    unanswered = SEVERAL_OPTIONS if correct else NO_ANSWER
    return PreparedQuestion(
        f"{whole_question}\n\n{lettered(texts)}", chosen[1] if chosen else None, "choice", source, unanswered=unanswered
    )


def _hub_agieval(row: dict[str, Any]) -> tuple[str, list[str], str]:
    """Question with its passage, options and the right one's letter from `query`, `choices` and `gold`."""
    query = re.sub(r"\s*A: (The answer is|Among A through [A-Z], the answer is)\s*$", "", text(row, "query"))
    passage, _, question = query.partition(" Answer Choices:")[0].rpartition("Q: ")
    correct = row.get("gold")
    first = correct[0] if isinstance(correct, list) and len(correct) == 1 else correct
    chosen = letter(first) if isinstance(first, int) else "" if first is None else "several"
    whole_question = "\n\n".join(filter(None, (passage.strip(), question.strip())))
    return whole_question, entries(row.get("choices"), "`choices`"), chosen


def zebralogic(row: dict[str, Any], part: str) -> PreparedQuestion:
    """ZebraLogic in grid mode. The columns are named in the prompt: a grid in other columns could not be compared.

    Of the solution only the names of its columns, which say nothing of its cells, are in the prompt.
    """
    if "choices" in row:
        raise SkippedRow("a puzzle in multiple-choice mode")
    solution = field(row, "solution")
    header = [plain(name, "a name in `header`") for name in entries(field(solution, "header"), "`header`")]
    rows = [entries(line, "a row of `rows`") for line in entries(field(solution, "rows"), "`rows`")]
    columns = f"Grid to fill in, one row for each house, with the columns: {' | '.join(header)}"
    blank = any(cell in (_BLANK, "", None) for line in rows for cell in line)
    answer = None if blank else {"header": header, "rows": rows}
    return PreparedQuestion(f"{text(row, 'puzzle')}\n\n{columns}", answer, "zebra", "ZebraLogic", text(row, "id"))


def gpqa(row: dict[str, Any], part: str) -> PreparedQuestion:
    """GPQA: the right option and three wrong ones, put in an order that does not depend on which is which."""
    whole_question, correct = text(row, "Question"), text(row, "Correct Answer")
    wrong = [text(row, f"Incorrect Answer {number}") for number in (1, 2, 3)]
    options = hashed_order(whole_question, [correct, *wrong])
    answer = letter(options.index(correct)) if correct else None
    return PreparedQuestion(
        f"{whole_question}\n\n{lettered(options)}", answer, "choice", "GPQA-Diamond", str(row.get("Record ID") or "")
    )

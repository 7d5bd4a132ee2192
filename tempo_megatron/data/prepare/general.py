"""Makes questions of the rows of general sources: judged answers, multiple choice, free text and grids."""

from __future__ import annotations

import re
from typing import Any

from tempo_megatron.data.prepare.question import (
    NO_ANSWER,
    SEVERAL_OPTIONS,
    PreparedQuestion,
    SkippedRow,
    format_options,
    hashed_order,
    option_letter,
    required_text,
    required_value,
    to_list,
    to_text,
)

_DOLCI_GRADERS = {"general-quality": "judge", "general-quality_ref": "judge", "math": "math"}
_LETTER = re.compile(r"\(?([A-Z])\)?")
_OPTION_LINE = re.compile(r"^\(([A-Z])\)[ \t]*(.*)$", re.MULTILINE)
_BLANK = "___"


def dolci(row: dict[str, Any], part: str) -> PreparedQuestion:
    """Return a question of Dolci-RL-Zero.

    `prompt` has the form "user: ..."; some copies have `messages` instead. `ground_truth` and `dataset`, the name of
    the verifier, are lists.
    """
    verifier = _first_as_text(row.get("dataset"), "dataset") or "general-quality_ref"
    if verifier not in _DOLCI_GRADERS:
        raise SkippedRow(f"verifier {verifier}, which has no grader here")
    answer = _first_as_text(required_value(row, "ground_truth"), "ground_truth")
    id_ = next((str(row[name]) for name in ("id", "custom_id", "key") if row.get(name)), "")
    messages = tuple({"role": turn["role"], "content": turn["content"]} for turn in row.get("messages") or ())
    if messages and messages[-1]["role"] != "user":
        raise SkippedRow("a conversation that does not end with the user's turn")
    if messages:
        prompt = messages[0]["content"]
    else:
        prompt = re.sub(r"^user:\s*", "", required_text(row, "prompt"), flags=re.IGNORECASE)
    conversation = messages if len(messages) > 1 else ()
    prompt = "" if conversation else prompt.strip()
    return PreparedQuestion(prompt, answer, _DOLCI_GRADERS[verifier], "Dolci-General", id_, conversation)


def _first_as_text(value: Any, name: str) -> str:
    """Return the first entry of a list, or the value itself, as text."""
    return to_text(next(iter(value), None) if isinstance(value, list) else value, f"`{name}`")


def big_bench_hard(row: dict[str, Any], task: str) -> PreparedQuestion:
    """Return a question of BIG-Bench Hard: a choice where it lists options with letters, else free text.

    The target of a choice is a letter in brackets or, in a few rows, the text of an option.
    """
    question_text, target = required_text(row, "input"), required_text(row, "target")
    options = _OPTION_LINE.findall(question_text.partition("Options:")[2])
    if len(options) < 2:
        return PreparedQuestion(question_text, target, "free", f"BBH/{task}")
    letter_match = _LETTER.fullmatch(target)
    letters = [letter_match[1]] if letter_match else [letter for letter, option in options if option.strip() == target]
    answer = letters[0] if len(letters) == 1 else None
    return PreparedQuestion(
        question_text, answer, "choice", f"BBH/{task}", unanswered=SEVERAL_OPTIONS if target else NO_ANSWER
    )


# The paper does not name its subsets: these are the English ones. sat-en-without-passage is excluded, because it asks
# about texts that it does not show.
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
    """Return a question of AGIEval, from its own JSONL or from the hub's copy.

    The hub's copy joins passage, question and options in one text.
    """
    subset = subset.replace("_", "-")
    if subset not in AGIEVAL_SUBSETS:
        raise SkippedRow(f"subset {subset}, not one of the English ones")
    source = f"AGIEval/{subset}"
    if "query" in row:
        question_text, options, correct = _hub_agieval(row)
    else:
        question_text = "\n\n".join(filter(None, (required_text(row, "passage"), required_text(row, "question"))))
        options, correct = to_list(row.get("options"), "`options`"), required_text(row, "label")
    if not options:
        return PreparedQuestion(question_text, required_text(row, "answer"), "math", source)
    if len(options) < 2:
        raise SkippedRow("options that are not listed one by one")
    letter_match = _LETTER.fullmatch(correct)
    answer = letter_match[1] if letter_match else None
    texts = [re.sub(r"^\s*\([A-Z]\)\s*", "", to_text(option, "an option")) for option in options]
    prompt = f"{question_text}\n\n{format_options(texts)}"
    unanswered = SEVERAL_OPTIONS if correct else NO_ANSWER
    return PreparedQuestion(prompt, answer, "choice", source, unanswered=unanswered)


def _hub_agieval(row: dict[str, Any]) -> tuple[str, list[str], str]:
    """Return the question with its passage, the options, and the right option's letter.

    They come from `query`, `choices` and `gold`. The letter is "several" where `gold` names more than one option.
    """
    query = re.sub(r"\s*A: (The answer is|Among A through [A-Z], the answer is)\s*$", "", required_text(row, "query"))
    passage, _, question = query.partition(" Answer Choices:")[0].rpartition("Q: ")
    correct = row.get("gold")
    index = correct[0] if isinstance(correct, list) and len(correct) == 1 else correct
    letter = option_letter(index) if isinstance(index, int) else "" if index is None else "several"
    question_text = "\n\n".join(filter(None, (passage.strip(), question.strip())))
    return question_text, to_list(row.get("choices"), "`choices`"), letter


def zebralogic(row: dict[str, Any], part: str) -> PreparedQuestion:
    """Return a puzzle of ZebraLogic in grid mode.

    The prompt names the solution's columns, because a grid with other columns could not be compared. The names say
    nothing about the cells, and no cell is in the prompt.
    """
    if "choices" in row:
        raise SkippedRow("a puzzle in multiple-choice mode")
    solution = required_value(row, "solution")
    header = [to_text(name, "a name in `header`") for name in to_list(required_value(solution, "header"), "`header`")]
    rows = [to_list(line, "a row of `rows`") for line in to_list(required_value(solution, "rows"), "`rows`")]
    columns = f"Grid to fill in, one row for each house, with the columns: {' | '.join(header)}"
    blank = any(cell in (_BLANK, "", None) for line in rows for cell in line)
    answer = None if blank else {"header": header, "rows": rows}
    return PreparedQuestion(
        f"{required_text(row, 'puzzle')}\n\n{columns}", answer, "zebra", "ZebraLogic", required_text(row, "id")
    )


def gpqa(row: dict[str, Any], part: str) -> PreparedQuestion:
    """Return a question of GPQA. The order of its four options does not depend on which one is right."""
    question_text, correct = required_text(row, "Question"), required_text(row, "Correct Answer")
    incorrect = [required_text(row, f"Incorrect Answer {number}") for number in (1, 2, 3)]
    options = hashed_order(question_text, [correct, *incorrect])
    answer = option_letter(options.index(correct)) if correct else None
    return PreparedQuestion(
        f"{question_text}\n\n{format_options(options)}",
        answer,
        "choice",
        "GPQA-Diamond",
        str(row.get("Record ID") or ""),
    )

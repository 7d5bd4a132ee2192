"""Sources that need no hub: JSON tasks of BIG-bench, and mixes of reasoning-gym tasks."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from omegaconf import OmegaConf

from tempo_megatron.config import SourceConfig
from tempo_megatron.data import tasks
from tempo_megatron.data.prepare.files import SourceRows
from tempo_megatron.data.prepare.question import (
    SEVERAL_OPTIONS,
    PreparedQuestion,
    SchemaError,
    SkippedRow,
    field,
    hashed_order,
    letter,
    lettered,
    plain,
)
from tempo_megatron.data.reading import RowLocation

_SCORES = ("", "exact_str_match", "multiple_choice_grade")
_MIX_KEYS = {"task", "seed", "size", "options"}


def bigbench(row: dict[str, Any], task: str) -> PreparedQuestion:
    """An example of a BIG-bench task: `target`, or `target_scores` with the score of each option."""
    preferred = row.get("preferred_score", "")
    if preferred not in _SCORES:
        raise SkippedRow(f"scored by {preferred}, which has no grader here")
    source, asked = f"BIG-bench/{task}", (row.get("task_prefix", "") + field(row, "input")).strip()
    if "target_scores" not in row or (preferred == "exact_str_match" and "target" in row):
        targets = field(row, "target")
        listed = targets if isinstance(targets, list) else [targets]
        right = {plain(target, "`target`") for target in listed}
        return PreparedQuestion(
            asked, right.pop() if len(right) == 1 else None, "free", source, unanswered="several answers"
        )
    scores = {str(option).strip(): score for option, score in row["target_scores"].items()}
    best = [option for option, score in scores.items() if score == max(scores.values())]
    if len(scores) < 2:
        raise SkippedRow("a single option")
    if len(scores) > len(ascii_uppercase):
        raise SkippedRow("more options than letters")
    # Tasks list the right option first as often as not: their own order would give it away.
    options = hashed_order(asked, list(scores))
    answer = letter(options.index(best[0])) if len(best) == 1 else None
    return PreparedQuestion(f"{asked}\n\n{lettered(options)}", answer, "choice", source, unanswered=SEVERAL_OPTIONS)


def read_mix(path: Path) -> SourceRows:
    """Entries of the tasks that a YAML list names with the keys of a recipe's source: task, size, seed, options.

    Raises SchemaError where the file is no such list, or reasoning-gym refuses a task.
    """
    try:
        listed = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # OmegaConf lets the YAML parser's own exceptions through
        raise SchemaError(f"{path}: not readable: {' '.join(str(error).split())}") from error
    if not isinstance(listed, list) or not all(isinstance(item, dict) and item.get("task") for item in listed):
        raise SchemaError(
            f"{path}: a mix is a list of tasks, each `{{task: NAME, size: N}}` with optional seed, options"
        )
    for item in listed:
        unknown = set(item) - _MIX_KEYS
        if unknown or not isinstance(item.get("size"), int):
            wrong = f"unknown {', '.join(sorted(unknown))}" if unknown else "size, a number of questions, is required"
            raise SchemaError(f"{path}: task {item['task']}: {wrong}; a task has {', '.join(sorted(_MIX_KEYS))}")
        try:
            entries = tasks.entries(SourceConfig(**item))
        except ValueError as error:
            raise SchemaError(f"{path}: {error}") from error
        for number, entry in enumerate(entries, 1):
            yield RowLocation(f"{path}, task {item['task']}", number, "row"), item["task"], entry


def reasoning_gym(row: dict[str, Any], task: str) -> PreparedQuestion:
    """An entry of a task, skipped where its scorer cannot read it back from JSON."""
    from reasoning_gym import get_score_answer_fn

    entry = {name: row[name] for name in ("question", "answer", "metadata")}
    try:
        written = json.loads(json.dumps(entry))
        score = get_score_answer_fn(task)
        same = row["answer"] is None or score(row["answer"], written) == score(row["answer"], row)
    except Exception as error:  # scorers raise anything on what they did not foresee
        raise SkippedRow("its scorer needs more than JSON can hold") from error
    if not same:
        raise SkippedRow("its scorer needs more than JSON can hold")
    grader = f"reasoning_gym:{task}"
    return PreparedQuestion(row["question"], row["answer"], grader, task, metadata=written["metadata"])

"""Sources without a hub: JSON tasks of BIG-bench, and mixes of reasoning-gym tasks."""

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
    format_options,
    hashed_order,
    option_letter,
    required_value,
    to_text,
)
from tempo_megatron.data.reading import RowLocation

_METRICS = ("", "exact_str_match", "multiple_choice_grade")
"""The metrics of BIG-bench for which this project has a grader."""
_MIX_KEYS = {"task", "seed", "size", "options"}


def bigbench(row: dict[str, Any], task: str) -> PreparedQuestion:
    """Return an example of a BIG-bench task. It has `target`, or `target_scores` with the score of each option."""
    metric = row.get("preferred_score", "")
    if metric not in _METRICS:
        raise SkippedRow(f"scored by {metric}, which has no grader here")
    source, question = f"BIG-bench/{task}", (row.get("task_prefix", "") + required_value(row, "input")).strip()
    if "target_scores" not in row or (metric == "exact_str_match" and "target" in row):
        target = required_value(row, "target")
        targets = {to_text(text, "`target`") for text in (target if isinstance(target, list) else [target])}
        answer = targets.pop() if len(targets) == 1 else None
        return PreparedQuestion(question, answer, "free", source, unanswered="several answers")
    scores = {str(option).strip(): score for option, score in row["target_scores"].items()}
    best_options = [option for option, score in scores.items() if score == max(scores.values())]
    if len(scores) < 2:
        raise SkippedRow("a single option")
    if len(scores) > len(ascii_uppercase):
        raise SkippedRow("more options than letters")
    # Many tasks list the right option first, so that their own order would reveal it.
    options = hashed_order(question, list(scores))
    answer = option_letter(options.index(best_options[0])) if len(best_options) == 1 else None
    return PreparedQuestion(
        f"{question}\n\n{format_options(options)}", answer, "choice", source, unanswered=SEVERAL_OPTIONS
    )


def read_task_mix(path: Path) -> SourceRows:
    """Yield the entries of the tasks that a YAML list names. A task has the keys `task`, `size`, `seed` and `options`.
    Raises SchemaError where the file is no such list, or reasoning-gym refuses a task.
    """
    try:
        mix = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # OmegaConf lets the YAML parser's own exceptions through.
        raise SchemaError(f"{path}: not readable: {' '.join(str(error).split())}") from error
    if not isinstance(mix, list) or not all(isinstance(settings, dict) and settings.get("task") for settings in mix):
        raise SchemaError(
            f"{path}: a mix is a list of tasks, each `{{task: NAME, size: N}}` with optional seed, options"
        )
    for settings in mix:
        task = settings["task"]
        unknown = set(settings) - _MIX_KEYS
        if unknown or not isinstance(settings.get("size"), int):
            problem = f"unknown {', '.join(sorted(unknown))}" if unknown else "size, a number of questions, is required"
            raise SchemaError(f"{path}: task {task}: {problem}; a task has {', '.join(sorted(_MIX_KEYS))}")
        try:
            entries = tasks.task_entries(SourceConfig(**settings))
        except ValueError as error:
            raise SchemaError(f"{path}: {error}") from error
        for number, entry in enumerate(entries, 1):
            yield RowLocation(f"{path}, task {task}", number, "row"), task, entry


def reasoning_gym(row: dict[str, Any], task: str) -> PreparedQuestion:
    """Return an entry of a task. An entry that its scorer cannot read back from JSON is skipped."""
    from reasoning_gym import get_score_answer_fn

    entry = {name: row[name] for name in ("question", "answer", "metadata")}
    try:
        restored = json.loads(json.dumps(entry))
        score = get_score_answer_fn(task)
        same_score = row["answer"] is None or score(row["answer"], restored) == score(row["answer"], row)
    except Exception as error:  # Scorers may raise anything.
        raise SkippedRow("its scorer needs more than JSON can hold") from error
    if not same_score:
        raise SkippedRow("its scorer needs more than JSON can hold")
    grader = f"reasoning_gym:{task}"
    return PreparedQuestion(row["question"], row["answer"], grader, task, metadata=restored["metadata"])

"""Generates questions with reasoning-gym."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from tempo_megatron.config import SourceConfig


def task_entries(source: SourceConfig) -> Iterable[dict[str, Any]]:
    """Return the task's questions, each with `question`, `answer` and `metadata`.

    `answer` is None where only the task's scorer can recognize a right answer. Raises ValueError, with the task's name,
    where reasoning-gym refuses the task or its options.
    """
    dataset = _dataset(source.task, source.seed, source.size, json.dumps(source.options))
    return (dataset[index] for index in range(source.size))


@functools.lru_cache(maxsize=16)
def _dataset(task: str, seed: int, size: int, options: str) -> Sequence[dict[str, Any]]:
    """Return the data set of a task, which makes each question when it is read.

    It is cached because some tasks read a book when they are constructed, and a start reads every stream twice: the
    checks first, then the run. `options` is JSON.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # A dependency of reasoning-gym warns when it is compiled.
        import reasoning_gym

    try:
        return reasoning_gym.create_dataset(task, seed=seed, size=size, **json.loads(options))
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"reasoning-gym task {task!r}: {error}") from error

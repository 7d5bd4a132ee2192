"""Generates questions with reasoning-gym."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from tempo_megatron.config import SourceConfig


def task_entries(source: SourceConfig) -> Iterable[dict[str, Any]]:
    """Return the task's questions, each with `question`, `answer` and `metadata`.

    `answer` is None where only the task's scorer can recognize a right answer. Raises ValueError, with the task's name,
    where reasoning-gym refuses the task or its options.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # A dependency of reasoning-gym warns when it is compiled.
        import reasoning_gym

    options = {str(key): value for key, value in source.options.items()}
    try:
        return reasoning_gym.create_dataset(source.task, seed=source.seed, size=source.size, **options)
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"reasoning-gym task {source.task!r}: {error}") from error

"""A copy of a small run's directory, which tests change to what they need.

`tests/fixtures/run_shuffled` is a run of the demo with `critic.labels=shuffled`, cut down to some lines, questions and
samples.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FIXTURE = Path(__file__).parents[2] / "fixtures" / "run_shuffled"


def copy_run(directory: Path) -> Path:
    """Return a copy of the fixture in `directory`."""
    shutil.copytree(FIXTURE, directory)
    return directory


def write_evaluation(run: Path, iteration: int, grades: dict[str, Sequence[float]], **fields: Any) -> None:
    """Write an evaluation of unlabeled questions, whose responses have these grades. `fields` replace those of rows."""
    rows = [
        {
            "set": "unlabeled",
            "prompt": prompt,
            "sample": sample,
            "correct": grade,
            "answer": str(grade),
            "cluster": int(grade),
            "tokens": 3,
            "finish_reason": "stop",
            "response": f"response {sample}",
            **fields,
        }
        for prompt, row in grades.items()
        for sample, grade in enumerate(row)
    ]
    (run / "samples").mkdir(parents=True, exist_ok=True)
    write_lines(run / "samples" / f"iteration-{iteration:06d}.jsonl", rows)


def write_tokens(run: Path, iteration: int, texts: dict[str, Sequence[str]], **fields: Any) -> None:
    """Write token samples of unlabeled questions, one response each. Token t has value t / 10. `fields` replace those
    of rows."""
    name = "labeled" if fields.get("set") == "labeled" else "evaluated"
    rows = [
        {
            "set": "unlabeled",
            "correct": 1.0,
            "prompt": prompt,
            "question": f"question {prompt}",
            "sample": 0,
            "finish_reason": "stop",
            "tokens": len(tokens),
            "first": len(tokens),
            "left_out": 0,
            "texts": list(tokens),
            "value_before": 0.5,
            "values": [number / 10 for number in range(len(tokens))],
            "advantages": [0.25 - number / 10 for number in range(len(tokens))],
            "log_probs": [-float(number) for number in range(len(tokens))],
            "differences": [1e-6] * len(tokens),
            **fields,
        }
        for prompt, tokens in texts.items()
    ]
    (run / "token_samples").mkdir(parents=True, exist_ok=True)
    write_lines(run / "token_samples" / f"{name}-{iteration:06d}.jsonl", rows)


def new_run(
    run: Path, rows: Sequence[dict[str, Any]] = (), config: str = "method: tempo\nloop: {iterations: 10}\n"
) -> Path:
    """Return a run directory that has just these settings and lines of metrics."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(config)
    write_lines(run / "metrics.jsonl", rows)
    return run


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train_rows(**columns: Sequence[float]) -> list[dict[str, Any]]:
    """Return lines of iterations 1, 2, ... with these metrics; `__` in a name stands for a slash."""
    names = {name: name.replace("__", "/") for name in columns}
    length = len(next(iter(columns.values())))
    return [
        {"stage": "train", "iteration": index + 1} | {names[name]: values[index] for name, values in columns.items()}
        for index in range(length)
    ]

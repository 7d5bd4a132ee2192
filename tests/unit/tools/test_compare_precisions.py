"""tools/compare_precisions.py: which runs it makes, and on which GPUs."""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import compare_precisions
import pytest
from comparison import runs
from comparison.runs import Piece

PRECISIONS = {"one": ("loop.iterations=1",), "two": ("loop.iterations=2",)}


def test_no_gpu_has_more_than_its_share_and_a_failure_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More engines on a GPU than requested would fail at their start."""
    lock, running, most_running = threading.Lock(), Counter[str | None](), Counter[str | None]()
    finished: list[tuple[str, Sequence[str]]] = []

    def train(piece: Piece, gpu: str | None) -> None:
        run = piece.directory
        with lock:
            running[gpu] += 1
            most_running[gpu] = max(most_running[gpu], running[gpu])
        time.sleep(
            0.3 if run.name.startswith("one") else 0.02
        )  # a fixed assignment would put all of one precision on a GPU
        with lock:
            running[gpu] -= 1
            finished.append((run.name, piece.overrides))
        if run.name == "two-1":
            raise RuntimeError("it failed")

    monkeypatch.setattr(runs, "train", train)
    options = argparse.Namespace(directory=tmp_path, recipe=tmp_path / "recipe.yaml", gpus="4,7", jobs=4, delay=0.0)
    with pytest.raises(ExceptionGroup, match="the same command tries them again") as failed:
        compare_precisions.compare(options, PRECISIONS, [0, 1, 2], ["model.precision=fp32"])
    assert [str(error) for error in failed.value.exceptions] == ["it failed"]
    assert set(most_running) == {"4", "7"}
    assert max(most_running.values()) <= 2
    assert sorted(name for name, _ in finished) == [
        f"{name}-{seed}" for name in ("one", "start", "two") for seed in range(3)
    ]
    for name, overrides in finished:
        precision, seed = name.split("-")
        assert {"model.precision=fp32", f"seed={seed}"} <= set(overrides)
        if precision != "start":
            start = tmp_path / f"start-{seed}" / "checkpoints" / "iteration-000000"
            assert {*PRECISIONS[precision], f"policy.checkpoint={start}", f"critic.checkpoint={start}"} <= set(
                overrides
            )


def test_curves_have_the_mean_of_the_seeds_and_few_lines_a_panel(tmp_path: Path) -> None:
    """Five lines over three seeds were fifteen lines in one box. An iteration that a seed lacks is left out."""
    precisions = {name: () for name in "abcde"}
    for name in precisions:
        for seed in (0, 1):
            (run := tmp_path / f"{name}-{seed}").mkdir()
            rows = [
                {"iteration": iteration, compare_precisions.DIFFERENCE: 1.0 + seed} for iteration in range(3 + seed)
            ]
            rows[0]["evaluation/unlabeled/avg@8"] = 0.25 + 0.5 * seed
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    panels = compare_precisions.curves(tmp_path, precisions, [0, 1]).panels
    assert [[line.name for line in panel.lines] for panel in panels] == [[*"abcd"], ["e"]] * 2
    accuracy, difference = panels[0].lines[0], panels[2].lines[0]
    assert (accuracy.x, accuracy.y, accuracy.low, accuracy.high) == ([0], [0.5], [0.25], [0.75])
    assert (difference.x, difference.y) == ([0, 1, 2], [1.5] * 3)
    assert len({panel.title for panel in panels}) == 4

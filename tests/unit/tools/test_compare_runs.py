"""tools/compare_runs.py: which runs there are, and where they run."""

from __future__ import annotations

import argparse
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import compare_runs
import pytest

VARIANTS = {"one": ("loop.iterations=1",), "two": ("loop.iterations=2",)}


def test_no_gpu_has_more_than_its_share_and_a_failure_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines that share a GPU beyond what was asked for fail at their start."""
    lock, now, most = threading.Lock(), Counter[str | None](), Counter[str | None]()
    done: list[tuple[str, Sequence[str]]] = []

    def train(recipe: Path, run: Path, overrides: Sequence[str], gpu: str | None) -> None:
        with lock:
            now[gpu] += 1
            most[gpu] = max(most[gpu], now[gpu])
        time.sleep(0.3 if run.name.startswith("one") else 0.02)  # dealt in turn, all of one would meet on a GPU
        with lock:
            now[gpu] -= 1
            done.append((run.name, overrides))
        if run.name == "two-1":
            raise RuntimeError("it failed")

    monkeypatch.setattr(compare_runs, "train", train)
    given = argparse.Namespace(directory=tmp_path, recipe=tmp_path / "recipe.yaml", gpus="4,7", jobs=4, delay=0.0)
    with pytest.raises(ExceptionGroup, match="the same command tries them again") as failed:
        compare_runs.compare(given, VARIANTS, [0, 1, 2], ["model.precision=fp32"])
    assert [str(error) for error in failed.value.exceptions] == ["it failed"]
    assert set(most) == {"4", "7"}
    assert max(most.values()) <= 2
    assert sorted(name for name, _ in done) == [
        f"{name}-{seed}" for name in ("one", "start", "two") for seed in range(3)
    ]
    for name, overrides in done:
        variant, seed = name.split("-")
        assert {"model.precision=fp32", f"seed={seed}"} <= set(overrides)
        if variant != "start":
            begun = tmp_path / f"start-{seed}" / "checkpoints" / "iteration-000000"
            assert {*VARIANTS[variant], f"policy.checkpoint={begun}", f"critic.checkpoint={begun}"} <= set(overrides)

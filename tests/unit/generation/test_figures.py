"""Sums of the generator's figures over replicas and calls."""

from __future__ import annotations

import pytest

from tempo_megatron.generation.figures import FigureSums


def figures(requests: int, seconds: float) -> dict[str, int]:
    return {"requests": requests, "tokens": 10 * requests, "preemptions": 1, "nanoseconds": round(seconds * 1e9)}


def test_figures_are_summed_over_replicas_and_calls() -> None:
    """Least and most requests are those of a replica over all calls. Every replica waits for the last one of a call."""
    sums = FigureSums(2)
    assert sums.take() == {}
    sums.add([figures(3, 1.0), figures(5, 2.5)])
    sums.add([figures(4, 2.0), figures(1, 1.0)])
    assert sums.take() == {
        "requests": 13,
        "tokens": 130,
        "preemptions": 4,
        "replica_requests_least": 6,
        "replica_requests_most": 7,
        "seconds/replica_idle": pytest.approx(1.25),
    }
    assert sums.take() == {}


def test_a_single_replica_waits_for_none() -> None:
    """Its figures are the same in every run, so none of them is a time."""
    sums = FigureSums(1)
    sums.add([figures(3, 1.0)])
    assert "seconds/replica_idle" not in sums.take()

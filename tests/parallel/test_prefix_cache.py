"""After a weight sync no response depends on the prefix cache of the old weights."""

from __future__ import annotations

from pathlib import Path

from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("prefix_cache_worker.py")


def test_a_synced_engine_responds_as_a_new_one(demo_model: Path) -> None:
    """An engine generates, gets other weights, and generates from the same prompts: tokens and log-probs equal those of
    an engine that never had the first weights. With blocks that outlive the sync they would differ, as the worker shows
    by leaving the reset out."""
    run_ranks(WORKER, 1, demo_model)

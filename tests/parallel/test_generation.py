"""The generator: its weights are the trainer's, and a response depends on its request alone."""

from __future__ import annotations

from pathlib import Path

from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("generation_worker.py")


def test_synced_weights_are_the_trainers_and_requests_are_independent(recipe: Path, tmp_path: Path) -> None:
    """Two pipeline stages feed two replicas. vLLM loads the exported directory and holds its tensors bit for bit after
    the cast to bf16; so it does after a sync, and a sync of other weights is noticed. The same requests get the same
    responses in another order, on another replica and alone, and the trainer's random state is left as it was."""
    run_ranks(WORKER, 2, recipe, tmp_path / "export")

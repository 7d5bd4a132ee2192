"""A rank of test_layouts: runs from one model on the same rollouts, one after the other, and what they computed.

usage: layout_worker.py RECIPE RUNS OUT; RUNS is JSON: {name: {"iterations": n, "overrides": [key=value, ...]}}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tempo_megatron.algorithms.experience import STATISTICS
from tempo_megatron.config import load_config
from tempo_megatron.conversion.rows import assemble_tensors
from tempo_megatron.data.types import Rollout
from tempo_megatron.generation.requests import Request
from tempo_megatron.megatron import topology, weights
from tempo_megatron.megatron.trainer import Score
from tempo_megatron.training.loop import iterate
from tempo_megatron.training.phases.scoring import to_batch, values
from tempo_megatron.training.run import Run
from tests.runs import Disagreeing, build_recorded
from tools.killing.recorded import Recorded


def main(recipe: str, runs: str, out: str) -> None:
    torch.set_num_threads(1)
    weights.BUCKET_BYTES = 2**13  # several buckets, and the vocabulary in rows
    results: dict[str, Any] = {}
    for name, plan in json.loads(Path(runs).read_text()).items():
        config = load_config(recipe, [f"run_dir={Path(recipe).parent / name}", *plan["overrides"]])
        run = build_recorded(config, Disagreeing())
        results[name] = computed(run, plan["iterations"])
        run.grader.close()
        leave_groups()
    if torch.distributed.get_rank() == 0:
        torch.save(results, Path(out))
    topology.shutdown()


def leave_groups() -> None:
    """So that the next run can make its own, in the same process group."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()


def computed(run: Run, iterations: int) -> dict[str, Any]:
    """The weights at the start, metrics of every iteration, and the state after each; a checkpoint is saved after the
    run's first iteration, or at once if there is none."""
    at_start = exported(run)
    metrics, after = [], []
    for _ in range(iterations):
        run.state.iteration += 1
        metrics.append(iterate(run))
        after.append(state(run))
        if run.iteration == 1:
            run.save()
    if not iterations:
        run.save()
    return {"metrics": metrics, "at_start": at_start, "after": after}


def exported(run: Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in assemble_tensors(run.models.policy_tensors())}


def state(run: Run) -> dict[str, Any]:
    """Weights, and what policy and critic make of the first four prompts."""
    position, run.data.unlabeled.position = run.data.unlabeled.position, 0
    prompts: Sequence[Any] = run.data.unlabeled.take(4)
    run.data.unlabeled.position = position
    rollouts = [
        Rollout(prompt, 0, completion.response_ids, completion.log_probs, completion.finish_reason)
        for prompt in prompts
        for completion in Recorded().generate([Request(prompt.token_ids, 5, 8, 1.0, 1.0)])
    ]
    batch = to_batch(rollouts)
    mask = batch.response_mask
    scores = run.models.policy.score(batch, in_an_order_of_this_rank(run.models.scores(*STATISTICS)))
    return {
        "values": values(run.models.critic, batch)[mask],
        "scores": {name: column[mask] for name, column in scores.items()},
        "weights": exported(run),
    }


def in_an_order_of_this_rank(score: Score) -> Score:
    """Of the columns: whoever makes them from a set has them in the order of a process's random hashes."""

    def read(*arguments: Any) -> dict[str, torch.Tensor]:
        columns = list(score.read(*arguments).items())
        return dict(columns[::-1] if torch.distributed.get_rank() % 2 else columns)

    return replace(score, read=read)


if __name__ == "__main__":
    main(*sys.argv[1:])

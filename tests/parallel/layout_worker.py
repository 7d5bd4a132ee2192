"""A rank of test_layouts: trains from one model on the same rollouts, then writes what it computed.

usage: layout_worker.py RECIPE OUT ITERATIONS [key=value ...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tempo_megatron.config import load
from tempo_megatron.data.types import Rollout
from tempo_megatron.generation.engine import Completion, Request
from tempo_megatron.loop import iterate
from tempo_megatron.megatron import weights
from tempo_megatron.phases.scoring import to_batch, values
from tempo_megatron.run import Run


class Recorded:
    """A generator whose responses depend on the request alone, so that every layout learns from the same ones."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [self._respond(request) for request in requests]

    def load_weights(self) -> None: ...

    def sleep(self) -> None: ...

    def take_figures(self) -> dict[str, float]:
        return {}

    def _respond(self, request: Request) -> Completion:
        length = 2 + request.seed % 5
        backward = request.prompt_ids[:0:-1][:length]
        ids = tuple((token + (request.seed >> 3) % 2) % 60 + 3 for token in backward)
        return Completion((*ids, 1), (-1.0,) * (len(ids) + 1), "stop")


def main(recipe: str, out: str, iterations: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    run = Run(load(recipe, overrides), generator=Recorded())
    at_start = {name: tensor.clone() for name, tensor in weights.export(run.policy.module, run.entries, run.topology)}
    metrics = []
    for _ in range(int(iterations)):
        run.iteration += 1
        metrics.append(iterate(run))
    run.save()
    prompts = run.unlabelled.take(4)
    rollouts = [
        Rollout(prompt, 0, done.response_ids, done.log_probs, done.finish_reason)
        for prompt in prompts
        for done in Recorded().generate([Request(prompt.token_ids, 5, 8, 1.0, 1.0)])
    ]
    batch = to_batch(rollouts)
    mask = batch.response_mask
    result = {
        "metrics": metrics,
        "at_start": at_start,
        "values": values(run.critic, batch)[mask],
        "log_probs": run.policy.score(batch, run.scores())["log_probs"][mask],
        "weights": dict(weights.export(run.policy.module, run.entries, run.topology)),
    }
    if run.is_first:
        torch.save(result, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])

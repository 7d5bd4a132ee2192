"""A rank of test_scores: scores and gradients from its part of the vocabulary.

usage: scores_worker.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tempo_megatron.algorithms.experience import STATISTICS
from tempo_megatron.config import ParallelConfig
from tempo_megatron.megatron import log_probs
from tempo_megatron.megatron.log_probs import token_scores
from tempo_megatron.megatron.topology import initialize


def main(out: str) -> None:
    place = initialize(ParallelConfig(tensor_model_parallel_size=2), seed=0)
    inputs = torch.load(Path(out).with_name("inputs.pt"))
    log_probs.CHUNK_ELEMENTS = inputs["chunk"]
    half = len(inputs["output_layer"]) // 2
    local_weight = inputs["output_layer"][place.tensor_rank * half :][:half]
    scores, gradients = {}, {}
    for name in ("log_probs", *STATISTICS):
        hidden, weight = inputs["hidden"].clone().requires_grad_(), local_weight.clone().requires_grad_()
        scores = token_scores(
            hidden,
            weight,
            inputs["tokens"],
            vocab_size=inputs["vocab_size"],
            temperature=0.7,
            topology=place,
            statistics=STATISTICS,
        )
        share, gradient = torch.autograd.grad((scores[name] * inputs["upstream"]).sum(), (hidden, weight))
        dist.all_reduce(share, group=place.tensor_group)
        parts = [torch.empty_like(gradient) for _ in range(2)]
        dist.all_gather(parts, gradient, group=place.tensor_group)
        gradients[name] = {"hidden": share, "weight": torch.cat(parts)}
    exact = token_scores(
        inputs["hidden"],
        local_weight,
        inputs["tokens"],
        vocab_size=inputs["vocab_size"],
        temperature=1.0,
        topology=place,
        exact=True,
    )
    if place.rank == 0:
        scores = {name: column.detach() for name, column in scores.items()}
        torch.save({"scores": scores, "gradients": gradients, "exact": exact["log_probs"]}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

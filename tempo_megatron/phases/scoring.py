"""What the phases ask of a model: values of the critic, log-probs of the policy; and how rollouts become a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.data.types import Rollout
from tempo_megatron.megatron.batch import Batch, from_sequences
from tempo_megatron.megatron.log_probs import token_log_probs
from tempo_megatron.megatron.topology import Topology
from tempo_megatron.megatron.trainer import Rows, Score, Trainer


def to_batch(rollouts: Sequence[Rollout], length_multiple: int) -> Batch:
    """Rollouts as padded rows, in their order."""
    prompts = [rollout.prompt.token_ids for rollout in rollouts]
    return from_sequences(prompts, [rollout.response_ids for rollout in rollouts], length_multiple)


def values(critic: Trainer, batch: Batch) -> Tensor:
    """V after each token, [rows, sequence] fp32."""
    return critic.score(batch, lambda output, _: {"values": output[..., 0]})["values"]


def log_probs_and_entropy(vocab_size: int, temperature: float, topology: Topology) -> Score:
    """A score that gives `log_probs` and `entropy` rows, [micro_batch, sequence]."""

    def score(logits: Tensor, micro_batch: Batch) -> Rows:
        log_probs, entropy = token_log_probs(
            logits, micro_batch.tokens, vocab_size=vocab_size, temperature=temperature, topology=topology
        )
        return {"log_probs": log_probs, "entropy": entropy}

    return score


def mini_batches(rows: int, count: int, *seed: object) -> Iterator[Tensor]:
    """Row indices of each of `count` mini-batches of one epoch, shuffled by a hash of `seed`."""
    generator = torch.Generator().manual_seed(derive_seed(*seed))
    yield from torch.randperm(rows, generator=generator).tensor_split(count)

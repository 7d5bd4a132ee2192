"""Scores that the phases compute with a model: the critic's values and the policy's log-probs; rollouts as a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from tempo_megatron.config import Numerics
from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.data.types import Rollout
from tempo_megatron.megatron.batch import Batch, from_sequences
from tempo_megatron.megatron.log_probs import token_scores
from tempo_megatron.megatron.topology import Topology
from tempo_megatron.megatron.trainer import MegatronModel, NamedTensors, Score

Scores = Callable[..., Score]
"""Returns, for names of statistics, the score that computes `log_probs` and those statistics."""

VALUES = Score(lambda output, _, __: {"values": output[:, 0]}, about_next=False)
"""The critic's `values`. The value at position t is the one after token t."""


def to_batch(rollouts: Sequence[Rollout]) -> Batch:
    """Return a batch with the rollouts as rows, in their order. It has routes if all rollouts have."""
    prompts = [rollout.prompt.token_ids for rollout in rollouts]
    batch = from_sequences(prompts, [rollout.response_ids for rollout in rollouts])
    routes = tuple(torch.from_numpy(rollout.routes) for rollout in rollouts if rollout.routes is not None)
    return replace(batch, routes=routes) if len(routes) == batch.rows else batch


def values(critic: MegatronModel, batch: Batch) -> Float32[Tensor, "rows sequence"]:
    """Return the critic's value after each token."""
    return critic.score(batch, VALUES)["values"]


def policy_scores(vocab_size: int, temperature: float, topology: Topology, numerics: Numerics) -> Scores:
    """Return the function that makes scores of a policy's tokens under the sampling temperature."""

    def with_statistics(*statistics: str) -> Score:
        def read(
            hidden: Float[Tensor, "tokens hidden"],
            next_tokens: Int64[Tensor, " tokens"],
            output_weight: Float[Tensor, "local_vocabulary hidden"],
        ) -> NamedTensors:
            return token_scores(
                hidden,
                output_weight,
                next_tokens,
                vocab_size=vocab_size,
                temperature=temperature,
                topology=topology,
                statistics=statistics,
                exact=numerics is Numerics.exact,
            )

        return Score(read, about_next=True)

    return with_statistics


def mini_batches(rows: int, count: int, *seed: object) -> Iterator[Int64[Tensor, " _mini_batch"]]:
    """Yield the row indices of each of an epoch's `count` mini-batches, shuffled by a hash of `seed`."""
    generator = torch.Generator().manual_seed(derive_seed(*seed))
    yield from torch.randperm(rows, generator=generator).tensor_split(count)

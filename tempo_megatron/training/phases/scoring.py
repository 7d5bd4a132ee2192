"""What the phases ask of a model: the critic's values, scores of the policy's tokens; rollouts as a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.data.types import Rollout
from tempo_megatron.megatron.batch import Batch, from_sequences
from tempo_megatron.megatron.log_probs import token_scores
from tempo_megatron.megatron.topology import Topology
from tempo_megatron.megatron.trainer import MegatronModel, NamedTensors, Score

Scores = Callable[..., Score]
"""names of statistics -> the score that reads `log_probs` and them"""

VALUES = Score(lambda output, _, __: {"values": output[:, 0]}, about_next=False)
"""the critic's `values`, each once its token has been read"""


def to_batch(rollouts: Sequence[Rollout]) -> Batch:
    """Rollouts as rows, in their order."""
    prompts = [rollout.prompt.token_ids for rollout in rollouts]
    return from_sequences(prompts, [rollout.response_ids for rollout in rollouts])


def values(critic: MegatronModel, batch: Batch) -> Tensor:
    """V after each token, [rows, sequence] fp32."""
    return critic.score(batch, VALUES)["values"]


def policy_scores(vocab_size: int, temperature: float, topology: Topology) -> Scores:
    """Scores of a policy's tokens under the sampling temperature."""

    def with_statistics(*statistics: str) -> Score:
        def read(hidden: Tensor, next_tokens: Tensor, output_weight: Tensor) -> NamedTensors:
            return token_scores(
                hidden,
                output_weight,
                next_tokens,
                vocab_size=vocab_size,
                temperature=temperature,
                topology=topology,
                statistics=statistics,
            )

        return Score(read, about_next=True)

    return with_statistics


def mini_batches(rows: int, count: int, *seed: object) -> Iterator[Tensor]:
    """Row indices of each of `count` mini-batches of one epoch, shuffled by a hash of `seed`."""
    generator = torch.Generator().manual_seed(derive_seed(*seed))
    yield from torch.randperm(rows, generator=generator).tensor_split(count)

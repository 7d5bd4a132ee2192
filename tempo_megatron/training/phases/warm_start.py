"""A supervised warm start: the policy learns the answers of easy questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tempo_megatron.data.types import Prompt
from tempo_megatron.data.vocabulary import answer_token_ids
from tempo_megatron.megatron.batch import Batch, from_sequences
from tempo_megatron.megatron.trainer import RowTensors, Score, Trainer

Example = tuple[tuple[int, ...], tuple[int, ...]]
"""token ids of a prompt and of its answer, end of sequence included"""


def example(prompt: Prompt, tokenizer: Any) -> Example:
    """A labeled question with its answer, after which the response ends."""
    return prompt.token_ids, answer_token_ids(prompt, tokenizer)


def warm_start_step(policy: Trainer, examples: Sequence[Example], score: Score) -> float:
    """One step on the mean cross-entropy of the answers' tokens; returns it, NaN where the step was left out."""
    batch = from_sequences([prompt for prompt, _ in examples], [answer for _, answer in examples])
    count = int(batch.response_mask.sum())

    def loss(scores: RowTensors, micro_batch: Batch) -> tuple[Tensor, RowTensors]:
        surprise = -(scores["log_probs"] * micro_batch.response_mask).sum(1)
        return surprise.sum() / count, {"surprise": surprise.detach()}

    made = policy.step(batch, score, loss)
    return float(made[0]["surprise"].sum() / count) if made else float("nan")

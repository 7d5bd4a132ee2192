"""The supervised warm start: the policy learns the answers of easy questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tempo_megatron.data.types import Prompt
from tempo_megatron.data.vocabulary import answer_token_ids
from tempo_megatron.megatron.batch import Batch, from_sequences
from tempo_megatron.megatron.trainer import NamedTensors, Score, Trainer

Example = tuple[tuple[int, ...], tuple[int, ...]]
"""The token ids of a prompt, and those of its answer with the end of sequence."""


def example(prompt: Prompt, tokenizer: Any) -> Example:
    """Return a labeled question with its answer, which the end of sequence follows."""
    return prompt.token_ids, answer_token_ids(prompt, tokenizer)


def warm_start_step(policy: Trainer, examples: Sequence[Example], score: Score) -> float:
    """Make one step on the mean cross-entropy of the answers' tokens; return it, NaN where the trainer skipped it."""
    batch = from_sequences([prompt for prompt, _ in examples], [answer for _, answer in examples])
    count = int(batch.response_mask.sum())

    def loss(scores: NamedTensors, micro_batch: Batch) -> tuple[Float[Tensor, ""], NamedTensors]:
        cross_entropy = -(scores["log_probs"] * micro_batch.response_mask).sum(1)
        return cross_entropy.sum() / count, {"cross_entropy": cross_entropy.detach()}

    update = policy.step(batch, score, loss)
    return float(update[0]["cross_entropy"].sum() / count) if update else float("nan")

"""Log-probabilities and entropy of tokens from logits that are split over TP along the vocabulary."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from tempo_megatron.megatron.topology import Topology


def token_log_probs(
    logits: Tensor, tokens: Tensor, *, vocab_size: int, temperature: float, topology: Topology
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token given those before it, and the entropy of its distribution.

    logits [micro_batch, sequence, padded vocabulary / TP]; tokens [micro_batch, sequence] int64. Both results are
    [micro_batch, sequence] fp32, aligned with `tokens`: column t is about token t, column 0 is 0. Padded vocabulary
    entries have probability 0. The entropy carries no gradient.
    """
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    scaled = logits[:, :-1].float() / temperature
    first = topology.tensor_rank * scaled.shape[-1]
    padded = torch.arange(first, first + scaled.shape[-1], device=scaled.device) >= vocab_size
    scaled = scaled.masked_fill(padded, torch.finfo(torch.float32).min)
    entropy = _entropy(scaled.detach(), topology)
    log_probs = -vocab_parallel_cross_entropy(scaled, tokens[:, 1:].contiguous())
    return torch.nn.functional.pad(log_probs, (1, 0)), torch.nn.functional.pad(entropy, (1, 0))


def _entropy(logits: Tensor, topology: Topology) -> Tensor:
    """-sum p log p over a vocabulary split over TP: log Z - sum(e^z z) / Z, with z shifted by the largest logit."""
    peak = logits.amax(-1, keepdim=True)
    dist.all_reduce(peak, dist.ReduceOp.MAX, group=topology.tensor_group)
    shifted = logits - peak
    weights = shifted.exp()
    sums = torch.stack([weights.sum(-1), (weights * shifted.clamp_min(-1e4)).sum(-1)])
    dist.all_reduce(sums, group=topology.tensor_group)
    return sums[0].log() - sums[1] / sums[0]

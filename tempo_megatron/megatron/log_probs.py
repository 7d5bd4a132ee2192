"""What the policy's logits say of each token, the logits being split over TP along the vocabulary."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tempo_megatron.megatron.topology import Topology

STATISTICS = ("entropy", "self_certainty")

_CHUNK_ELEMENTS = 2**25
"""logits worked on at a time, 128 MiB in fp32"""

_compiled_on_gpus = torch.compile(dynamic=True, disable=not torch.cuda.is_available())


def token_scores(
    logits: Tensor,
    tokens: Tensor,
    *,
    vocab_size: int,
    temperature: float,
    topology: Topology,
    statistics: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """`log_probs` of tokens, and statistics of the distributions that they were drawn from.

    logits [tokens, padded vocabulary / TP], of any floating dtype; tokens [tokens] int64, the one that each row of
    logits was followed by. All results are [tokens] fp32 with gradients. Padded vocabulary entries have probability 0.
    `entropy` is -sum p log p; `self_certainty` is KL(uniform || p) (arXiv 2505.19590, equation 3).

    Only a chunk of the logits is ever held in fp32. The backward pass writes the gradient over the logits, which
    nothing may read after it: memory is that of the logits in their own dtype, once.
    """
    log_probs, entropy, self_certainty = _TokenScores.apply(
        logits, tokens, vocab_size, temperature, topology, "entropy" in statistics, "self_certainty" in statistics
    )
    every = {"log_probs": log_probs, "entropy": entropy, "self_certainty": self_certainty}
    return {name: every[name] for name in ("log_probs", *statistics)}


class _TokenScores(torch.autograd.Function):
    """With z the logits over the temperature, p = softmax(z), V real entries and y the token:

    log p_y = z_y - log Z, H = log Z - sum p z, and C = log Z - log V - sum z / V have the gradients with respect to z_i
    [i = y] - p_i, -p_i (log p_i + H), and p_i - 1 / V.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        tokens: Tensor,
        vocab_size: int,
        temperature: float,
        topology: Topology,
        entropy: bool,
        self_certainty: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        first = topology.tensor_rank * logits.shape[1]
        real = min(max(vocab_size - first, 0), logits.shape[1])
        sums = logits.new_zeros((4, len(tokens)), dtype=torch.float32)
        peak = logits.new_full((len(tokens),), torch.finfo(torch.float32).min, dtype=torch.float32)
        for rows in _chunks(logits) if real else []:
            part = logits[rows, :real]
            peak[rows], found = _read(part, tokens[rows] - first, temperature, entropy, self_certainty)
            sums[:, rows] = found
        highest = peak.clone()
        if topology.tensor_size > 1:
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=topology.tensor_group)
            below = peak - highest
            weight = below.exp()
            sums[3] = (sums[3] + torch.where(weight > 0, below, 0.0) * sums[2]) * weight
            sums[2] *= weight
            dist.all_reduce(sums, group=topology.tensor_group)
        target, total, normaliser, spread = sums.unbind()
        log_normaliser = highest + normaliser.log()
        found_entropy = normaliser.log() - spread / normaliser
        ctx.save_for_backward(logits, tokens, log_normaliser, found_entropy)
        ctx.extent = (first, real, vocab_size, temperature)
        ctx.statistics = (entropy, self_certainty)
        return target - log_normaliser, found_entropy, log_normaliser - total / vocab_size - math.log(vocab_size)

    @staticmethod
    def backward(ctx: Any, for_log_probs: Tensor, for_entropy: Tensor, for_certainty: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        logits, tokens, log_normaliser, entropy = ctx.saved_tensors
        first, real, vocab_size, temperature = ctx.extent
        with_entropy, with_certainty = ctx.statistics
        for rows in _chunks(logits) if real else []:
            part, own = logits[rows, :real], tokens[rows] - first
            upstream = torch.stack([for_log_probs[rows], for_entropy[rows], for_certainty[rows]])
            state = torch.stack([log_normaliser[rows], entropy[rows]])
            _write_gradient(part, own, upstream, state, temperature, vocab_size, with_entropy, with_certainty)
        logits[:, real:] = 0.0
        return logits, None, None, None, None, None, None


def _chunks(logits: Tensor) -> list[slice]:
    size = max(1, _CHUNK_ELEMENTS // logits.shape[1])
    return [slice(start, start + size) for start in range(0, len(logits), size)]


@_compiled_on_gpus
def _read(
    logits: Tensor, own: Tensor, temperature: float, entropy: bool, self_certainty: bool
) -> tuple[Tensor, Tensor]:
    """Of logits [rows, entries]: the largest z of each row, and sums over its entries [4, rows]: the token's z, z,
    e^(z - peak), and (z - peak) e^(z - peak). `own` [rows] is the token's place among the entries, outside them where
    another rank holds it. Compiled on GPUs: one kernel that reads the logits and writes no intermediate."""
    scaled = logits.float() / temperature
    peak = scaled.amax(1)
    shifted = scaled - peak[:, None]
    weights = shifted.exp()
    nothing = torch.zeros_like(peak)
    inside = (own >= 0) & (own < logits.shape[1])
    target = scaled.gather(1, torch.where(inside, own, 0)[:, None])[:, 0]
    # Bounded below, so that an impossible token adds 0 and not 0 times infinity.
    spread = (shifted.clamp_min(-1e4) * weights).sum(1) if entropy else nothing
    total = scaled.sum(1) if self_certainty else nothing
    return peak, torch.stack([torch.where(inside, target, 0.0), total, weights.sum(1), spread])


@_compiled_on_gpus
def _write_gradient(
    logits: Tensor,
    own: Tensor,
    upstream: Tensor,
    state: Tensor,
    temperature: float,
    vocab_size: int,
    entropy: bool,
    self_certainty: bool,
) -> None:
    """The gradient with respect to logits [rows, entries], written over them. upstream [3, rows]: of the three results;
    state [2, rows]: log Z and the entropy. One kernel on GPUs."""
    log_p = logits.float() / temperature - state[0][:, None]
    weight = -upstream[0][:, None]
    if self_certainty:
        weight = weight + upstream[2][:, None]
    if entropy:
        weight = weight - upstream[1][:, None] * (log_p + state[1][:, None])
    gradient = weight * log_p.exp()
    if self_certainty:
        gradient = gradient - upstream[2][:, None] / vocab_size
    chosen = torch.arange(logits.shape[1], device=logits.device) == own[:, None]
    logits.copy_((gradient + torch.where(chosen, upstream[0][:, None], 0.0)) / temperature)

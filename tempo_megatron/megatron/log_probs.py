"""What the policy says of each token: its output layer and the softmax, the vocabulary being split over TP."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tempo_megatron.megatron.topology import Topology

CHUNK_ELEMENTS = 2**26
"""logits worked on at a time, 256 MiB in fp32"""

_TILE = 128
"""rows of a chunk are a multiple of so many, as products want them"""


def _compiled_on_gpus[**Parameters, Result](function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    return torch.compile(function, dynamic=True) if torch.cuda.is_available() else function


def token_scores(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    vocab_size: int,
    temperature: float,
    topology: Topology,
    statistics: Collection[str] = (),
) -> dict[str, Tensor]:
    """`log_probs` of tokens, and statistics of the distributions that they were drawn from.

    hidden [tokens, hidden], of any floating dtype, whole on every TP rank; weight [padded vocabulary / TP, hidden], the
    output layer's, of the same dtype; tokens [tokens] int64, the one that each row was followed by. All results are
    [tokens] fp32 with gradients, that of `hidden` being this rank's share. Padded vocabulary entries have probability
    0. `entropy` is -sum p log p; `self_certainty` is KL(uniform || p) (arXiv 2505.19590, equation 3).

    Logits are products in fp32, a chunk at a time: in bf16 one of 20 is off by up to 0.06. For the backward pass they
    are kept in `hidden`'s dtype as distances from the largest, which is exact where there is probability, and their
    gradient is written over them: memory is that of bf16 logits, once, and of one chunk.
    """
    log_probs, entropy, self_certainty = _TokenScores.apply(
        hidden,
        weight,
        tokens,
        vocab_size,
        temperature,
        topology,
        "entropy" in statistics,
        "self_certainty" in statistics,
    )
    found = {"log_probs": log_probs, "entropy": entropy, "self_certainty": self_certainty}
    return {name: column for name, column in found.items() if name == "log_probs" or name in statistics}


class _TokenScores(torch.autograd.Function):
    """With z the logits over the temperature, p = softmax(z), V real entries and y the token:

    log p_y = z_y - log Z, H = log Z - sum p z, and C = log Z - log V - sum z / V have the gradients with respect to z_i
    [i = y] - p_i, -p_i (log p_i + H), and p_i - 1 / V.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        tokens: Tensor,
        vocab_size: int,
        temperature: float,
        topology: Topology,
        entropy: bool,
        self_certainty: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        entries = len(weight)
        first = topology.tensor_rank * entries
        real = min(max(vocab_size - first, 0), entries)
        sums = hidden.new_zeros((4, len(tokens)), dtype=torch.float32)
        peak = hidden.new_full((len(tokens),), torch.finfo(torch.float32).min, dtype=torch.float32)
        kept = hidden.new_empty((len(tokens), entries)) if any(ctx.needs_input_grad[:2]) else None
        for rows in _chunks(len(tokens), entries) if real else []:
            # Not by a name, which would hold a chunk while the next is made.
            peak[rows], sums[:, rows] = _read(
                _product(hidden[rows], weight)[:, :real],
                tokens[rows] - first,
                temperature,
                entropy,
                self_certainty,
                None if kept is None else kept[rows, :real],
            )
        highest = peak.clone()
        if topology.tensor_size > 1:
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=topology.tensor_group)
            below = peak - highest
            share = below.exp()
            sums[3] = (sums[3] + torch.where(share > 0, below, 0.0) * sums[2]) * share
            sums[2] *= share
            dist.all_reduce(sums, group=topology.tensor_group)
        target, total, normalizer, spread = sums.unbind()
        log_normalizer = highest + normalizer.log()
        found_entropy = normalizer.log() - spread / normalizer
        if kept is not None:
            ctx.save_for_backward(hidden, weight, tokens, kept, peak - log_normalizer, found_entropy)
            ctx.extent = (first, real, vocab_size, temperature)
            ctx.statistics = (entropy, self_certainty)
        return target - log_normalizer, found_entropy, log_normalizer - total / vocab_size - math.log(vocab_size)

    @staticmethod
    def backward(ctx: Any, for_log_probs: Tensor, for_entropy: Tensor, for_certainty: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        hidden, weight, tokens, kept, peak_log_p, entropy = ctx.saved_tensors
        first, real, vocab_size, temperature = ctx.extent
        with_entropy, with_certainty = ctx.statistics
        for rows in _chunks(*kept.shape) if real else []:
            part, own = kept[rows, :real], tokens[rows] - first
            upstream = torch.stack([for_log_probs[rows], for_entropy[rows], for_certainty[rows]])
            state = torch.stack([peak_log_p[rows], entropy[rows]])
            _write_gradient(part, own, upstream, state, temperature, vocab_size, with_entropy, with_certainty)
        kept[:, real:] = 0.0
        of_hidden, of_weight, *_ = ctx.needs_input_grad
        return kept @ weight if of_hidden else None, kept.t() @ hidden if of_weight else None, *[None] * 6


def _product(hidden: Tensor, weight: Tensor) -> Tensor:
    """[rows, hidden] and [entries, hidden] -> logits [rows, entries] fp32."""
    if hidden.is_cuda and hidden.dtype is not torch.float32:
        return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    return hidden.float() @ weight.float().t()


def _chunks(tokens: int, entries: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // entries)
    if size > _TILE:
        size -= size % _TILE
    ends = [*range(size, tokens, size), tokens]
    if len(ends) > 1 and ends[-1] - ends[-2] == 1:
        del ends[-2]  # compiled code has a variant of its own for a single row, and there may be eight
    return [slice(start, end) for start, end in itertools.pairwise([0, *ends])]


@_compiled_on_gpus
def _read(
    logits: Tensor, own: Tensor, temperature: float, entropy: bool, self_certainty: bool, kept: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Of logits [rows, entries]: the largest z of each row, and sums over its entries [4, rows]: the token's z, z,
    e^(z - peak), and (z - peak) e^(z - peak). `own` [rows] is the token's place among the entries, outside them where
    another rank holds it. z - peak is written into `kept` [rows, entries]. Compiled on GPUs: no intermediate is."""
    scaled = logits / temperature
    peak = scaled.amax(1)
    shifted = scaled - peak[:, None]
    if kept is not None:
        kept.copy_(shifted)
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
    shifted: Tensor,
    own: Tensor,
    upstream: Tensor,
    state: Tensor,
    temperature: float,
    vocab_size: int,
    entropy: bool,
    self_certainty: bool,
) -> None:
    """The gradient with respect to logits [rows, entries], written over z - peak. upstream [3, rows]: of the three
    results; state [2, rows]: peak - log Z and the entropy. One kernel on GPUs."""
    log_p = shifted.float() + state[0][:, None]
    weight = -upstream[0][:, None]
    if self_certainty:
        weight = weight + upstream[2][:, None]
    if entropy:
        weight = weight - upstream[1][:, None] * (log_p + state[1][:, None])
    gradient = weight * log_p.exp()
    if self_certainty:
        gradient = gradient - upstream[2][:, None] / vocab_size
    chosen = torch.arange(shifted.shape[1], device=shifted.device) == own[:, None]
    shifted.copy_((gradient + torch.where(chosen, upstream[0][:, None], 0.0)) / temperature)

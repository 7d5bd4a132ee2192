"""Log-probabilities and statistics of the policy's tokens: output layer and softmax over a vocabulary split over TP."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from tempo_megatron.kernels.compilation import compiled_on_gpus
from tempo_megatron.kernels.logits import fp32_logits, token_log_probs
from tempo_megatron.megatron.topology import Topology

CHUNK_ELEMENTS = 2**26
"""The number of logits that are computed at a time, 256 MiB in fp32."""

_TILE = 128
"""The rows of a chunk are a multiple of this, which suits matrix products."""


def token_scores(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "local_vocabulary hidden"],
    tokens: Int64[Tensor, " tokens"],
    *,
    vocab_size: int,
    temperature: float,
    topology: Topology,
    statistics: Collection[str] = (),
    exact: bool = False,
) -> dict[str, Float32[Tensor, " tokens"]]:
    """Returns `log_probs` of tokens, and the named statistics of the distributions that they were sampled from.

    `hidden` is whole on every TP rank. `weight` is this rank's part of the output layer, in the same dtype, with
    local_vocabulary = padded vocabulary / TP. `tokens` holds the token that follows each row of `hidden`. The results
    have gradients; that of `hidden` is this rank's share. Padded vocabulary entries have probability 0. `entropy` is
    -sum p log p; `self_certainty` is KL(uniform || p) (arXiv 2505.19590, equation 3).

    Logits are computed in fp32, a chunk at a time, because a bf16 logit of 20 is off by up to 0.06. The backward pass
    needs them again: they are stored in `hidden`'s dtype as differences from the largest logit, which is exact for
    probable tokens. Their gradient overwrites them. The memory is that of one copy of bf16 logits plus one chunk.

    With `exact`, log-probs come from the kernels that the generator computes its own with, over logits that are
    gathered over TP. It needs temperature 1. The statistics and all gradients are computed as without it.
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
        exact,
        torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad),
    )
    scores = {"log_probs": log_probs, "entropy": entropy, "self_certainty": self_certainty}
    return {name: column for name, column in scores.items() if name == "log_probs" or name in statistics}


class _TokenScores(torch.autograd.Function):
    """Computes log p_y, entropy H and self-certainty C, with their gradients.

    Let z be the logits divided by the temperature, p = softmax(z), V the number of real entries and y the token. Then
    log p_y = z_y - log Z, H = log Z - sum p z, and C = log Z - log V - sum z / V. Their gradients with respect to z_i
    are [i = y] - p_i, -p_i (log p_i + H), and p_i - 1 / V.
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
        exact: bool,
        has_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        entries = len(weight)
        first = topology.tensor_rank * entries
        real = min(max(vocab_size - first, 0), entries)
        sums = hidden.new_zeros((4, len(tokens)), dtype=torch.float32)
        peak = hidden.new_full((len(tokens),), torch.finfo(torch.float32).min, dtype=torch.float32)
        # A parameter says that it needs a gradient also where nothing computes one.
        stored = hidden.new_empty((len(tokens), entries)) if has_gradient else None
        exact_log_probs = torch.zeros_like(peak) if exact else None
        product = fp32_logits if exact else _product
        for rows in _chunks(len(tokens), entries * topology.tensor_size if exact else entries) if real or exact else []:
            logits = product(hidden[rows], weight)
            if exact_log_probs is not None:
                gathered = _gather_entries(logits, topology)[:, :vocab_size]
                exact_log_probs[rows] = token_log_probs(gathered, tokens[rows])
                del gathered
                if not real or not (has_gradient or entropy or self_certainty):
                    continue
            peak[rows], sums[:, rows] = _read(
                logits[:, :real],
                tokens[rows] - first,
                temperature,
                entropy,
                self_certainty,
                None if stored is None else stored[rows, :real],
            )
            del logits  # A chunk must not live while the next one is computed.
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
        entropies = normalizer.log() - spread / normalizer
        if stored is not None:
            ctx.save_for_backward(hidden, weight, tokens, stored, peak - log_normalizer, entropies)
            ctx.extent = (first, real, vocab_size, temperature)
            ctx.statistics = (entropy, self_certainty)
        log_probs = target - log_normalizer if exact_log_probs is None else exact_log_probs
        return log_probs, entropies, log_normalizer - total / vocab_size - math.log(vocab_size)

    @staticmethod
    def backward(ctx: Any, for_log_probs: Tensor, for_entropy: Tensor, for_certainty: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        hidden, weight, tokens, stored, peak_log_p, entropy = ctx.saved_tensors
        first, real, vocab_size, temperature = ctx.extent
        with_entropy, with_certainty = ctx.statistics
        for rows in _chunks(*stored.shape) if real else []:
            chunk, local_tokens = stored[rows, :real], tokens[rows] - first
            upstream = torch.stack([for_log_probs[rows], for_entropy[rows], for_certainty[rows]])
            state = torch.stack([peak_log_p[rows], entropy[rows]])
            _write_gradient(chunk, local_tokens, upstream, state, temperature, vocab_size, with_entropy, with_certainty)
        stored[:, real:] = 0.0
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        return stored @ weight if needs_hidden else None, stored.t() @ hidden if needs_weight else None, *[None] * 8


def _product(
    hidden: Float[Tensor, "rows hidden"], weight: Float[Tensor, "entries hidden"]
) -> Float32[Tensor, "rows entries"]:
    """Returns logits in fp32."""
    if hidden.is_cuda and hidden.dtype is not torch.float32:
        return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    return hidden.float() @ weight.float().t()


def _gather_entries(logits: Float32[Tensor, "rows entries"], topology: Topology) -> Float32[Tensor, "rows all_entries"]:
    """Returns the logits of all TP ranks side by side; each rank has the same number of entries."""
    if topology.tensor_size == 1:
        return logits
    parts = logits.new_empty((topology.tensor_size * len(logits), logits.shape[1]))
    dist.all_gather_into_tensor(parts, logits.contiguous(), group=topology.tensor_group)
    return parts.unflatten(0, (topology.tensor_size, -1)).transpose(0, 1).flatten(1)


def _chunks(tokens: int, entries: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // entries)
    if size > _TILE:
        size -= size % _TILE
    ends = [*range(size, tokens, size), tokens]
    if len(ends) > 1 and ends[-1] - ends[-2] == 1:
        del ends[-2]  # A single row would compile another variant of the code, and torch allows eight of them.
    return [slice(start, end) for start, end in itertools.pairwise([0, *ends])]


@compiled_on_gpus
def _read(
    logits: Tensor, tokens: Tensor, temperature: float, entropy: bool, self_certainty: bool, stored: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns the largest z of each row of logits [rows, entries], [rows], and four sums over its entries, [4, rows].

    The sums are of the token's z, of z, of e^(z - peak), and of (z - peak) e^(z - peak). `tokens` [rows] indexes the
    entries, and lies outside them if another rank holds the token. z - peak is written into `stored` [rows, entries].
    The function is compiled on GPUs, where it stores no intermediate tensor.
    """
    scaled = logits / temperature
    peak = scaled.amax(1)
    shifted = scaled - peak[:, None]
    if stored is not None:
        stored.copy_(shifted)
    weights = shifted.exp()
    zeros = torch.zeros_like(peak)
    is_local = (tokens >= 0) & (tokens < logits.shape[1])
    target = scaled.gather(1, torch.where(is_local, tokens, 0)[:, None])[:, 0]
    # The lower bound lets an impossible token add 0 instead of 0 times infinity.
    spread = (shifted.clamp_min(-1e4) * weights).sum(1) if entropy else zeros
    total = scaled.sum(1) if self_certainty else zeros
    return peak, torch.stack([torch.where(is_local, target, 0.0), total, weights.sum(1), spread])


@compiled_on_gpus
def _write_gradient(
    shifted: Tensor,
    tokens: Tensor,
    upstream: Tensor,
    state: Tensor,
    temperature: float,
    vocab_size: int,
    entropy: bool,
    self_certainty: bool,
) -> None:
    """Overwrites z - peak in `shifted` [rows, entries] by the gradient with respect to the logits.

    upstream [3, rows] holds the gradients of the three results; state [2, rows] holds peak - log Z and the entropy. On
    GPUs this is one kernel.
    """
    log_p = shifted.float() + state[0][:, None]
    weight = -upstream[0][:, None]
    if self_certainty:
        weight = weight + upstream[2][:, None]
    if entropy:
        weight = weight - upstream[1][:, None] * (log_p + state[1][:, None])
    gradient = weight * log_p.exp()
    if self_certainty:
        gradient = gradient - upstream[2][:, None] / vocab_size
    chosen = torch.arange(shifted.shape[1], device=shifted.device) == tokens[:, None]
    shifted.copy_((gradient + torch.where(chosen, upstream[0][:, None], 0.0)) / temperature)

"""Causal attention over packed sequences: FlashAttention 3 forward, FlashAttention 2 backward."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tempo_megatron.kernels import vllm_kernels
from tempo_megatron.kernels.compilation import widened
from tempo_megatron.kernels.rope import Rotation


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, rotation: Rotation, boundaries: Tensor, longest: int, scale: float
) -> Tensor:
    """Returns softmax(scale q k^T) v of each sequence, [tokens, heads, channels]; tokens see no later ones.

    q and k are the rotated query and key. query is [tokens, heads, channels]; key and value are [tokens, groups,
    channels]. Sequence i has the tokens from boundaries[i] to boundaries[i + 1], int32. No sequence is longer than
    `longest`.
    """
    output: Tensor = _PackedAttention.apply(query, key, value, rotation, boundaries, longest, scale)
    return output


class _PackedAttention(torch.autograd.Function):
    """Let P = exp(scale q k^T - log Z) and D = sum(g * output) over channels. v has the gradient P^T g, and the scores
    have S = P (g v^T - D); q has scale S k, and k has scale S^T q (arXiv 2205.14135, appendix B)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotation: Rotation,
        boundaries: Tensor,
        longest: int,
        scale: float,
    ) -> Tensor:
        attend = vllm_kernels.flash_attention if query.is_cuda else _attend
        query, key = rotation.apply(query, key)
        output, log_normalizer = attend(query, key, value, boundaries, longest, scale)
        ctx.save_for_backward(query, key, value, boundaries, output, log_normalizer)
        ctx.rotation, ctx.longest, ctx.scale = rotation, longest, scale
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, boundaries, output, log_normalizer = ctx.saved_tensors
        differentiate = _flash_gradients if query.is_cuda else _gradients
        for_query, for_key, for_value = differentiate(
            gradient.contiguous(), query, key, value, output, log_normalizer, boundaries, ctx.longest, ctx.scale
        )
        ctx.rotation.revert_in_place(for_query, for_key)
        return for_query, for_key, for_value, None, None, None, None


def _flash_gradients(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_normalizer: Tensor,
    boundaries: Tensor,
    longest: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of query, key and value by torch's FlashAttention 2."""
    no_seed, no_offset = _no_randomness(query.device)
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        gradient,
        query,
        key,
        value,
        output,
        log_normalizer.contiguous(),
        boundaries,
        boundaries,
        longest,
        longest,
        0.0,
        True,
        no_seed,
        no_offset,
        scale=scale,
    )
    return gradients


@functools.cache
def _no_randomness(device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the seed and offset of dropout, which the operation asks for without using them."""
    return torch.zeros(2, dtype=torch.uint64, device=device), torch.zeros((), dtype=torch.uint64, device=device)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Returns the attention and the logarithms of its normalizers, [heads, tokens]."""
    share = query.shape[1] // key.shape[1]
    key, value = (heads.repeat_interleave(share, 1) for heads in (key, value))
    log_normalizer = widened(query.new_empty(0)).new_empty(query.shape[1], len(query))
    output = torch.empty_like(query)
    for tokens in _sequences(boundaries):
        scores = _scores(query[tokens], key[tokens], scale)
        log_normalizer[:, tokens] = scores.logsumexp(-1)
        weights = (scores - log_normalizer[:, tokens, None]).exp()
        output[tokens] = torch.einsum("hij,jhc->ihc", weights, widened(value[tokens])).to(query.dtype)
    return output, log_normalizer


def _gradients(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_normalizer: Tensor,
    boundaries: Tensor,
    longest: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the same as `_flash_gradients`, by the formulas of `_PackedAttention`."""
    share = query.shape[1] // key.shape[1]
    key, value = (heads.repeat_interleave(share, 1) for heads in (key, value))
    for_query, for_key, for_value = (torch.empty_like(heads) for heads in (query, key, value))
    for tokens in _sequences(boundaries):
        q, k, v, g, o = (widened(heads[tokens]) for heads in (query, key, value, gradient, output))
        weights = (_scores(q, k, scale) - log_normalizer[:, tokens, None]).exp()
        for_value[tokens] = torch.einsum("hij,ihc->jhc", weights, g).to(value.dtype)
        for_scores = weights * (torch.einsum("ihc,jhc->hij", g, v) - (g * o).sum(-1).t()[..., None])
        for_query[tokens] = scale * torch.einsum("hij,jhc->ihc", for_scores, k).to(query.dtype)
        for_key[tokens] = scale * torch.einsum("hij,ihc->jhc", for_scores, q).to(key.dtype)
    # The heads of a group share its key and value, so their gradients add up.
    for_key, for_value = (heads.unflatten(1, (-1, share)).sum(2) for heads in (for_key, for_value))
    return for_query, for_key, for_value


def _scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Returns scale q k^T of one sequence, [heads, tokens, tokens], and -infinity where a key is later."""
    scores = scale * torch.einsum("ihc,jhc->hij", widened(query), widened(key))
    later = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, -torch.inf)


def _sequences(boundaries: Tensor) -> Iterator[slice]:
    ends = boundaries.tolist()
    yield from (slice(start, end) for start, end in itertools.pairwise(ends))

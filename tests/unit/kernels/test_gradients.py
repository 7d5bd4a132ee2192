"""Gradients of the shared kernels' operations against finite differences in float64, and their values in bf16."""

from __future__ import annotations

import torch
from torch import Tensor

from tempo_megatron.kernels.attention import packed_attention
from tempo_megatron.kernels.logits import token_log_probs
from tempo_megatron.kernels.norm import rms_norm
from tempo_megatron.kernels.rope import Rotation
from tempo_megatron.kernels.swiglu import swiglu


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_norm_has_the_gradients_of_its_formula() -> None:
    """The backward pass is written by hand; an error of a factor or a missing term would change training silently."""
    inputs, weight = normal(2, 3, 8).requires_grad_(), normal(8, seed=1).requires_grad_()
    expected = torch.nn.functional.rms_norm(inputs, (8,), weight, 1e-3)
    torch.testing.assert_close(rms_norm(inputs, weight, 1e-3), expected)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-3), (inputs, weight))


def angles_of(positions: int) -> Tensor:
    """Angles of two pairs of channels."""
    return torch.arange(float(positions))[:, None] * torch.tensor([1.0, 0.3])


def rotated(heads: Tensor, angles: Tensor) -> Tensor:
    """Heads [tokens, heads, channels] turned as complex numbers by angles [tokens, channels / 2]."""
    turned = torch.complex(*heads.chunk(2, -1)) * torch.polar(torch.ones(()), angles)[:, None]
    return torch.cat([turned.real, turned.imag], -1)


def test_rotation_turns_pairs_of_channels_and_back() -> None:
    """Gradients go back by `revert_in_place`. A wrong sign would leave values right and gradients wrong."""
    query, key = normal(5, 2, 4), normal(5, 1, 4, seed=1)
    positions, angles = torch.tensor([0, 1, 2, 0, 1]), angles_of(3)
    rotation = Rotation.by_angles(angles, positions, torch.float64)
    results = rotation.apply(query, key)
    for result, heads in zip(results, (query, key), strict=True):
        torch.testing.assert_close(result, rotated(heads, angles[positions]), rtol=1e-6, atol=1e-6)
    rotation.revert_in_place(*results)
    torch.testing.assert_close(results, (query, key), rtol=1e-6, atol=1e-6)


def test_swiglu_has_the_gradient_of_its_formula() -> None:
    """The backward pass is written by hand."""
    inputs = normal(3, 1, 8).requires_grad_()
    gate, up = inputs.chunk(2, -1)
    torch.testing.assert_close(swiglu(inputs), torch.nn.functional.silu(gate) * up)
    assert torch.autograd.gradcheck(swiglu, (inputs,))


def test_swiglu_rounds_silu_before_the_product() -> None:
    """The generator's kernel rounds twice. One rounding differs in a quarter of all bf16 values or more."""
    inputs = normal(64, 64, dtype=torch.bfloat16)
    gate, up = inputs.chunk(2, -1)
    silu = (gate.float() * torch.sigmoid(gate.float())).bfloat16()
    assert (swiglu(inputs) == silu * up).float().mean() > 0.99
    once = (gate.float() * torch.sigmoid(gate.float()) * up.float()).bfloat16()
    assert (swiglu(inputs) == once).float().mean() < 0.9


def test_attention_of_packed_sequences_has_the_gradients_of_its_formula() -> None:
    """Sequences must not see each other, groups share keys and values, P is recomputed from log Z alone, and gradients
    are rotated back."""
    query, key, value = normal(7, 4, 4), normal(7, 2, 4, seed=1), normal(7, 2, 4, seed=2)
    boundaries, positions = torch.tensor([0, 4, 7], dtype=torch.int32), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    angles = angles_of(4)
    rotation = Rotation.by_angles(angles, positions, torch.float64)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return packed_attention(query, key, value, rotation, boundaries, 4, 0.7)

    parts = []
    for start, end in ((0, 4), (4, 7)):
        turned = (rotated(each[start:end], angles[: end - start]) for each in (query, key))
        heads = (each.transpose(0, 1)[None] for each in (*turned, value[start:end]))
        attended = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True, scale=0.7, enable_gqa=True)
        parts.append(attended[0].transpose(0, 1))
    torch.testing.assert_close(attend(query, key, value), torch.cat(parts), rtol=1e-5, atol=1e-6)
    assert torch.autograd.gradcheck(attend, tuple(each.requires_grad_() for each in (query, key, value)))


def test_token_log_probs_are_those_of_softmax() -> None:
    """The order of operations is the generator's; the value is log softmax."""
    logits, tokens = 5 * normal(6, 11, dtype=torch.float32), torch.tensor([0, 10, 3, 3, 5, 7])
    expected = torch.log_softmax(logits.double(), -1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(token_log_probs(logits, tokens).double(), expected, rtol=0, atol=2e-6)

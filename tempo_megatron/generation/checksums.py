"""Compares the generator's weights with the trainer's by checksums, after vLLM has fused and sharded them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tempo_megatron.conversion.rows import TensorRows
from tempo_megatron.generation.experts import expert_tensors, holds_experts

_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_SPLIT_INPUTS = ("o_proj", "down_proj")
_VOCABULARY = ("embed_tokens", "lm_head")
_VLLM_VOCABULARY_MULTIPLE = 64

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 2**21
_MIX = 0x1E3779B97F4A7C15  # odd; its multiples fill 64 bits evenly


def checksum(tensor: Tensor, begin: int = 0) -> Tensor:
    """Returns a digest of a tensor's values, an int64 scalar on the tensor's device.

    The digest is the sum, modulo 2^64, of each element's bits times an odd number that depends on its position. The
    first element has position `begin`, so the digests of parts add up to that of the whole tensor. One element with
    another value always changes the digest. Exchanged elements or rows, or another tensor, change it except with a
    probability below 2^-32. Zeros of both signs are equal, and NaNs may be. On CPUs subnormals in bf16 equal zero. All
    work is done on the device: 16 GB take a fraction of a second on a GPU.
    """
    values = tensor.detach().contiguous().flatten()
    weights = _weights(_CHUNK, tensor.device)
    digest = torch.zeros((), dtype=torch.int64, device=tensor.device)
    position, end = begin, begin + len(values)
    while position < end:
        number, offset = divmod(position, _CHUNK)
        chunk_end = min(end, (number + 1) * _CHUNK)
        chunk = _bits(values[position - begin : chunk_end - begin])
        digest += (chunk * weights[offset : offset + len(chunk)]).sum() * (2 * number * _CHUNK + 1)
        position = chunk_end
    return digest


def _bits(values: Tensor) -> Tensor:
    """Returns the bits of each value, int64. Where `_weight` may lose a value or its sign, they are those of 0."""
    if values.dtype is torch.bfloat16 and values.is_cpu:
        values = values.masked_fill(values.abs() < torch.finfo(values.dtype).tiny, 0)
    if values.dtype.is_floating_point:
        values = values + 0
    return values.view(_BITS[values.element_size()]).to(torch.int64)


@cache
def _weights(count: int, device: torch.device) -> Tensor:
    """Returns pseudo-random odd numbers, [count] int64. They are kept for later calls."""
    mixed = torch.arange(1, count + 1, device=device) * _MIX
    for shift in (29, 32):
        mixed = (mixed ^ (mixed >> shift)) * _MIX
    return mixed | 1


def expected_checksums(name: str, sent: Tensor | TensorRows, rank: int, ranks: int) -> Tensor:
    """Returns the checksum of the part of a Hugging Face tensor that a tensor-parallel rank of vLLM holds.

    The checksums of a vocabulary's blocks of rows add up to that of the vocabulary.
    """
    module = name.split(".")[-2]
    if module in _VOCABULARY:
        return _of_vocabulary(sent if isinstance(sent, TensorRows) else TensorRows(sent, 0, len(sent)), rank, ranks)
    if isinstance(sent, TensorRows):
        raise ValueError(f"{name} came in rows, which only a vocabulary may")
    if module in _SPLIT_INPUTS and sent.dim() > 1:
        return checksum(sent.chunk(ranks, 1)[rank])
    if any(module in parts for parts in _FUSED.values()):
        return checksum(sent.chunk(ranks, 0)[rank])
    return checksum(sent)


def _of_vocabulary(sent: TensorRows, rank: int, ranks: int) -> Tensor:
    padded = -(-sent.total_rows // _VLLM_VOCABULARY_MULTIPLE) * _VLLM_VOCABULARY_MULTIPLE
    begin, end = rank * padded // ranks, (rank + 1) * padded // ranks
    local_rows = sent.rows[max(0, begin - sent.first) : max(0, end - sent.first)]
    return checksum(local_rows, max(0, sent.first - begin) * sent.rows[0].numel())


def compare(model: torch.nn.Module, expected: Mapping[str, Tensor], ranks: int) -> None:
    """Raises RuntimeError with the names of the Hugging Face tensors that differ in this rank's part of the model.

    Weights that vLLM has quantized to FP8 are skipped, because their bits differ from the trainer's. Norms, embeddings,
    the output layer and biases are compared nevertheless.
    """
    actual = dict(_checksums(model, ranks))
    differing = [name for name in expected if name not in actual]
    pairs = [(name, digest, actual[name]) for name, digest in expected.items() if actual.get(name) is not None]
    if pairs:
        names, expected_digests, actual_digests = zip(*pairs, strict=True)
        differs = torch.stack(expected_digests) != torch.stack(actual_digests)
        differing += [name for name, differ in zip(names, differs.tolist(), strict=True) if differ]
    if differing:
        raise RuntimeError(f"weights in the generator differ from the trainer's: {', '.join(differing)}")


def _checksums(model: torch.nn.Module, ranks: int) -> Iterator[tuple[str, Tensor | None]]:
    """Yields the Hugging Face name and the checksum of each tensor in this rank's part; None for quantized tensors."""
    config: Any = model.config  # type: ignore[attr-defined]
    channels = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    for path, module in model.named_modules():
        if holds_experts(path):
            for expert_name, tensor in expert_tensors(path, module):
                yield expert_name, None if _is_quantized(tensor) else checksum(tensor)
            continue
        parent, _, name = path.rpartition(".")
        for kind, tensor in _parameters(module):
            quantized = _is_quantized(tensor)
            parts: Sequence[Tensor] = (tensor,)
            if quantized:
                parts = [tensor] * len(_FUSED.get(name, (name,)))
            elif name == "qkv_proj":
                parts = tensor.split([count * channels // ranks for count in heads])
            elif name == "gate_up_proj":
                parts = tensor.chunk(2)
            elif name in _VOCABULARY:
                parts = (tensor[: module.shard_indices.num_org_elements],)
            for part, value in zip(_FUSED.get(name, (name,)), parts, strict=True):
                yield f"{parent}.{part}.{kind}".lstrip("."), None if quantized else checksum(value)


def _is_quantized(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point and tensor.element_size() == 1


def _parameters(module: Any) -> Iterator[tuple[str, Tensor]]:
    if getattr(module, "weight", None) is not None:
        yield "weight", _weight(module)
    if isinstance(getattr(module, "bias", None), Tensor):
        yield "bias", module.bias.detach()


def _weight(module: Any) -> Tensor:
    """Returns the weight of a module.

    vLLM packs linear layers on some CPUs and drops the original weight. The product of such a layer with the identity
    is its weight, because every sum has one non-zero term. The sign of a negative zero is lost. AVX-512's and AMX's
    products in bf16 read subnormals as zeros.
    """
    if module.weight.numel() or not hasattr(module, "quant_method"):
        return module.weight.detach()
    # Every linear layer has `input_size`. Those that tensor parallelism may split also have the size of their part.
    inputs = getattr(module, "input_size_per_partition", module.input_size)
    return module.quant_method.apply(module, torch.eye(inputs, dtype=module.params_dtype)).t()

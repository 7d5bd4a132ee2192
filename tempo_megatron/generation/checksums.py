"""Does the generator hold what the trainer sent? Checksums of every tensor, after vLLM's own fusing and sharding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_SPLIT_INPUTS = ("o_proj", "down_proj")
_VOCABULARY = ("embed_tokens", "lm_head")
_VLLM_VOCABULARY_MULTIPLE = 64


def checksum(tensor: Tensor) -> str:
    """SHA-256 of the tensor's bytes."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def expected_checksums(name: str, tensor: Tensor, rank: int, ranks: int) -> str:
    """Checksum of the part of a Hugging Face tensor that a tensor-parallel rank of vLLM holds."""
    module = name.split(".")[-2]
    if module in _VOCABULARY:
        padding = -tensor.shape[0] % _VLLM_VOCABULARY_MULTIPLE
        rows = (tensor.shape[0] + padding) // ranks
        return checksum(tensor[rank * rows : (rank + 1) * rows])
    if module in _SPLIT_INPUTS:
        return checksum(tensor.chunk(ranks, 1)[rank])
    if any(module in parts for parts in _FUSED.values()):
        return checksum(tensor.chunk(ranks, 0)[rank])
    return checksum(tensor)


def compare(model: torch.nn.Module, expected: dict[str, str], ranks: int) -> None:
    """Raise RuntimeError naming every Hugging Face tensor that this rank's part of the model holds differently."""
    held = dict(_held(model, ranks))
    wrong = [name for name, sum_ in expected.items() if held.get(name) != sum_]
    if wrong:
        raise RuntimeError(f"weights in the generator differ from the trainer's: {', '.join(wrong)}")


def _held(model: torch.nn.Module, ranks: int) -> Iterator[tuple[str, str]]:
    """(Hugging Face name, checksum of this rank's part) of all that the model holds."""
    config: Any = model.config  # type: ignore[attr-defined]
    for path, module in model.named_modules():
        if getattr(module, "weight", None) is None:
            continue
        weight = _weight(module)
        parent, _, name = path.rpartition(".")
        if name == "qkv_proj":
            queries = config.num_attention_heads * config.head_dim // ranks
            keys = config.num_key_value_heads * config.head_dim // ranks
            parts = weight.split([queries, keys, keys])
        elif name == "gate_up_proj":
            parts = weight.chunk(2)
        else:
            parts = (weight[: module.shard_indices.num_org_elements] if name in _VOCABULARY else weight,)
        for part, value in zip(_FUSED.get(name, (name,)), parts, strict=True):
            yield f"{parent}.{part}.weight".lstrip("."), checksum(value)


def _weight(module: Any) -> Tensor:
    """The weight of a module. vLLM packs some linear layers for CPUs and drops the original: multiplied by the
    identity such a layer gives its weight back exactly, since every sum has one term that is not zero."""
    if module.weight.numel() or not hasattr(module, "quant_method"):
        return module.weight.detach()
    identity = torch.eye(module.input_size_per_partition, dtype=module.params_dtype)
    return module.quant_method.apply(module, identity).t()

"""Does the generator hold what the trainer sent? Checksums of every tensor, after vLLM's own fusing and sharding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
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
    if module in _SPLIT_INPUTS and tensor.dim() > 1:
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
    channels = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    for path, module in model.named_modules():
        parent, _, name = path.rpartition(".")
        for kind, tensor in _parameters(module):
            parts: Sequence[Tensor] = (tensor,)
            if name == "qkv_proj":
                parts = tensor.split([count * channels // ranks for count in heads])
            elif name == "gate_up_proj":
                parts = tensor.chunk(2)
            elif name in _VOCABULARY:
                parts = (tensor[: module.shard_indices.num_org_elements],)
            for part, value in zip(_FUSED.get(name, (name,)), parts, strict=True):
                yield f"{parent}.{part}.{kind}".lstrip("."), checksum(value)


def _parameters(module: Any) -> Iterator[tuple[str, Tensor]]:
    if getattr(module, "weight", None) is not None:
        yield "weight", _weight(module)
    if isinstance(getattr(module, "bias", None), Tensor):
        yield "bias", module.bias.detach()


def _weight(module: Any) -> Tensor:
    """The weight of a module. vLLM packs some linear layers for CPUs and drops the original: multiplied by the
    identity such a layer gives its weight back exactly, since every sum has one term that is not zero."""
    if module.weight.numel() or not hasattr(module, "quant_method"):
        return module.weight.detach()
    identity = torch.eye(module.input_size_per_partition, dtype=module.params_dtype)
    return module.quant_method.apply(module, identity).t()

"""Writes weights into the modules of a running vLLM engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from tempo_megatron.conversion.rows import TensorRows
from tempo_megatron.generation.experts import LiveExperts, is_expert


def load_live_weights(
    model: Any, tensors: Iterable[tuple[str, Tensor | TensorRows]], tensor_rank: int, tensor_size: int
) -> None:
    """Copies tensors into the live parameters of one tensor-parallel rank, which CUDA graphs read.

    vLLM's `reload_weights` would move the layers to the meta device first, run every loader twice, create each layer
    again and copy it over the old one. Its loader of experts compares each name with those of all experts.
    """
    loaded_by_rows = set()
    experts = LiveExperts(model, tensor_rank, tensor_size)

    def whole_tensors() -> Iterator[tuple[str, Tensor]]:
        for name, sent in tensors:
            if isinstance(sent, Tensor) and is_expert(name):
                experts.load(name, sent)
            elif isinstance(sent, Tensor):
                yield name, sent
            else:
                load_rows(model.get_submodule(name.rpartition(".")[0]), sent)
                loaded_by_rows.add(name)

    loaded = model.load_weights(whole_tensors()) | loaded_by_rows | experts.complete_parameters()
    missing = {name for name, _ in model.named_parameters()} - loaded
    if missing:
        raise RuntimeError(f"the trainer sent nothing for the generator's {', '.join(sorted(missing))}")


def load_rows(vocabulary: Any, sent: TensorRows) -> None:
    """Copies this rank's share of the rows into vLLM's embedding or output layer, whose own loader needs all rows."""
    shard = vocabulary.shard_indices
    weight = vocabulary.weight.detach()
    weight[shard.num_org_elements :] = 0
    begin = max(sent.first, shard.org_vocab_start_index)
    end = min(sent.first + len(sent.rows), shard.org_vocab_end_index)
    if begin < end:
        shard_start, sent_start = shard.org_vocab_start_index, sent.first
        weight[begin - shard_start : end - shard_start] = sent.rows[begin - sent_start : end - sent_start]


def pack_output_layer(model: Any) -> None:
    """Packs the output layer again on CPUs, where vLLM multiplies by a packed copy of it.

    A reload does not update the copy of a tied output layer, because it reloads the embedding alone.
    """
    head: Any = getattr(model, "lm_head", None)
    if hasattr(head, "cpu_linear"):
        head.quant_method.process_weights_after_loading(head)


def reset_attention_scales(model: Any) -> None:
    """Resets the scales of an FP8 KV cache to 1. A start with random weights leaves them random."""
    from vllm.model_executor.layers.attention.attention import set_default_quant_scales

    for module in model.modules():
        if hasattr(module, "_k_scale"):
            set_default_quant_scales(module)

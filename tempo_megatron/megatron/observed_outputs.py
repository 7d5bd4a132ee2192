"""Records what the operations of the policy return, in the generator's order of channels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tempo_megatron.kernels.operations import Operation, Outputs
from tempo_megatron.megatron.topology import Topology


@contextlib.contextmanager
def recorded_outputs(model: Any, topology: Topology) -> Iterator[Outputs]:
    """Records the outputs of one forward pass over one micro-batch, in the block, into the dict that it yields.

    `model` is a whole HybridModel or this tensor-parallel rank's part of it. Operations that the layers fuse with the
    next one have no output.
    """
    outputs: Outputs = {}
    handles: list[Any] = []

    def watch(module: Any, layer: int, operation: Operation, arrange: Callable[[Tensor], Tensor] | None = None) -> None:
        def record(watched: Any, inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if arrange:
                tensor = arrange(tensor)
            tensor = tensor.detach().reshape(len(tensor), -1)
            if model.config.sequence_parallel and operation in _SPLIT_OVER_TOKENS:
                tensor = _over_ranks(tensor, topology)
            outputs[layer, operation] = tensor.to("cpu", copy=True)

        if isinstance(module, torch.nn.Module) and type(module).__name__ != "IdentityOp":
            handles.append(module.register_forward_hook(record))

    watch(model.embedding, 0, Operation.embedding)
    layers = model.decoder.layers
    for number in range(0, len(layers), 2):
        layer, attention, mlp = number // 2, layers[number].self_attention, layers[number + 1].mlp
        watch(layers[number].input_layernorm, layer, Operation.input_norm)
        watch(attention.linear_qkv, layer, Operation.query_key_value, _by_kind(attention))
        watch(attention.q_layernorm, layer, Operation.query_norm)
        watch(attention.k_layernorm, layer, Operation.key_norm)
        watch(attention.core_attention, layer, Operation.attention)
        watch(attention.linear_proj, layer, Operation.attention_output)
        watch(layers[number + 1].pre_mlp_layernorm, layer, Operation.mlp_norm)
        watch(mlp.linear_fc1, layer, Operation.gate_and_up)
        watch(mlp.activation_func, layer, Operation.swiglu)
        watch(mlp.linear_fc2, layer, Operation.down)
    watch(model.decoder.final_norm, len(layers) // 2 - 1, Operation.final_norm)
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


_SPLIT_OVER_TOKENS = {
    Operation.embedding,
    Operation.input_norm,
    Operation.attention_output,
    Operation.mlp_norm,
    Operation.down,
    Operation.final_norm,
}
"""Operations whose outputs sequence parallelism splits over tokens."""


def _by_kind(attention: Any) -> Callable[[Tensor], Tensor]:
    """Returns the function that puts all queries before all keys and values, as the generator has them.

    Megatron's product has the queries, the key and the value of one group after the other.
    """
    groups, channels = attention.num_query_groups_per_partition, attention.hidden_size_per_attention_head

    def arrange(product: Tensor) -> Tensor:
        heads = product.view(len(product), groups, -1, channels)
        return torch.cat([heads[:, :, :-2].flatten(1), heads[:, :, -2].flatten(1), heads[:, :, -1].flatten(1)], 1)

    return arrange


def _over_ranks(tensor: Tensor, topology: Topology) -> Tensor:
    parts = tensor.new_empty((topology.tensor_size * len(tensor), tensor.shape[1]))
    torch.distributed.all_gather_into_tensor(parts, tensor.contiguous(), group=topology.tensor_group)
    return parts

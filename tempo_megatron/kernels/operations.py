"""The operations of a decoder in their order, for a comparison of what generator and policy compute."""

from __future__ import annotations

from enum import Enum

from torch import Tensor


class Operation(Enum):
    """An operation whose output both record, in the order of a forward pass. The value is its name for users."""

    embedding = "embedding"
    input_norm = "norm before attention"
    query_key_value = "product to query, key and value"
    query_norm = "norm of queries"
    key_norm = "norm of keys"
    attention = "RoPE and attention"
    attention_output = "product after attention"
    mlp_norm = "norm before MLP"
    gate_and_up = "product to gate and up"
    swiglu = "SwiGLU"
    down = "product after SwiGLU"
    final_norm = "last norm"


ORDER = {operation: place for place, operation in enumerate(Operation)}

Outputs = dict[tuple[int, Operation], Tensor]
"""(layer, operation) -> its output [tokens, width] on the host. The embedding is in layer 0, the last norm in the last.
"""

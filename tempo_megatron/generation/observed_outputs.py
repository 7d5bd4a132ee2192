"""Records what the operations of vLLM's model return. The engine must run eagerly, without CUDA graphs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tempo_megatron.kernels.operations import Operation, Outputs

_IN_LAYER = {
    "input_layernorm": Operation.input_norm,
    "self_attn.qkv_proj": Operation.query_key_value,
    "self_attn.q_norm": Operation.query_norm,
    "self_attn.k_norm": Operation.key_norm,
    "self_attn.attn": Operation.attention,
    "self_attn.o_proj": Operation.attention_output,
    "post_attention_layernorm": Operation.mlp_norm,
    "mlp.gate_up_proj": Operation.gate_and_up,
    "mlp.act_fn": Operation.swiglu,
    "mlp.down_proj": Operation.down,
}
"""vLLM's name of a module in a layer -> its operation."""


class OutputRecorder:
    """Records outputs of vLLM's model between `start` and `stop`, as long as one request runs at a time."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, Operation], list[Tensor]] = defaultdict(list)
        self._handles: list[Any] = []

    def start(self, model: torch.nn.Module) -> None:
        """Watches a model, a rank's part of it."""
        layers = 0
        for name, module in model.named_modules():
            if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name):
                layer, operation = int(match[1]), _IN_LAYER.get(match[2])
                layers = max(layers, layer + 1)
                if operation:
                    self._handles.append(module.register_forward_hook(self._hook(layer, operation)))
        for name, layer, operation in (
            ("model.embed_tokens", 0, Operation.embedding),
            ("model.norm", layers - 1, Operation.final_norm),
        ):
            self._handles.append(model.get_submodule(name).register_forward_hook(self._hook(layer, operation)))

    def _hook(self, layer: int, operation: Operation) -> Callable[[Any, Any, Any], None]:
        def record(module: Any, inputs: Any, output: Any) -> None:
            # Norms return the residual too, and products a bias that was not added. RoPE writes into its inputs, hence
            # the copy.
            tensor = output[0] if isinstance(output, tuple) else output
            self._parts[layer, operation].append(tensor.detach().reshape(len(tensor), -1).to("cpu", copy=True))

        return record

    def stop(self) -> Outputs:
        """Returns the outputs of all tokens that the model has read, and watches no longer."""
        for handle in self._handles:
            handle.remove()
        return {key: torch.cat(parts) for key, parts in self._parts.items()}

"""The experts of vLLM's models on CPUs: independent of the other rows, from unpacked weights, and with their routes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tempo_megatron.generation.row_invariance import linear

_ROUTER = "tempo_router"
"""The attribute of vLLM's experts that holds the router in front of them."""


def install() -> None:
    """Replaces the experts of vLLM on CPUs by `RowInvariantExperts`. Call it before an engine starts.

    vLLM's own experts sum in an order that depends on other tokens. Some pack their weights. The router does not learn
    what they choose.
    """
    from vllm.model_executor.layers.fused_moe import cpu_fused_moe

    cpu_fused_moe.CPUFusedMOE = RowInvariantExperts


class RowInvariantExperts:
    """Computes the experts of one layer. The constructor and the call have the signatures of vLLM's class."""

    def __init__(self, layer: Any) -> None: ...

    def __call__(
        self, layer: Any, tokens: Tensor, grouped: bool, top_k: int, router_logits: Tensor, renormalize: bool, *_: Any
    ) -> Tensor:
        """Returns [tokens, hidden] of tokens [tokens, hidden] and router_logits [tokens, experts].

        The chosen experts are reported to the layer's router, if somebody asked it for them.
        """
        if grouped:
            raise ValueError("experts in groups are not supported")
        logits, experts = router_logits.float().topk(top_k)
        normalizer = logits.logsumexp(-1, True) if renormalize else router_logits.float().logsumexp(-1, True)
        weights = (logits - normalizer).exp()
        router = getattr(layer, _ROUTER, None)
        if router is not None and router.capture_fn is not None:
            router.capture_fn(experts)
        outputs = torch.zeros(*experts.shape, tokens.shape[-1])
        for expert in experts.unique().tolist():
            rows, places = (experts == expert).nonzero(as_tuple=True)
            gate, up = linear(tokens[rows], layer.w13_weight[expert]).chunk(2, -1)
            product = linear(torch.nn.functional.silu(gate) * up, layer.w2_weight[expert])
            outputs[rows, places] = product.float()
        return (outputs * weights[..., None]).sum(1).to(tokens.dtype)


def report_routes(model: Any) -> None:
    """Lets the experts of a running engine's model report to their routers what they choose."""
    from vllm.model_executor.layers.fused_moe.layer import MoERunner

    for module in model.modules():
        if isinstance(module, MoERunner):
            setattr(module.routed_experts, _ROUTER, module.router)

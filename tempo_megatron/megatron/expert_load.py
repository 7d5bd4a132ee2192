"""Counts how many tokens each expert computes while a model learns, and sums up the load-balancing loss."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tempo_megatron.megatron.packing import DealtRows

AUX_LOSS = "aux_loss"
"""The name of the load-balancing loss among the metrics of a model."""


class ExpertLoad:
    """The tokens that the routers of one model sent to each expert in passes with gradients, without padding.

    Recomputation runs a router twice, once without gradients, so that each token counts once. A dense model has no
    routers and nothing to count.
    """

    def __init__(self, chunks: Sequence[Any], device: torch.device) -> None:
        transformer = chunks[0].config
        self._transformer, self._coefficient = transformer, 0.0
        self._experts_per_token = transformer.moe_router_topk
        self._counts: Tensor | None = None
        """The tokens of each expert on this rank, [layers, experts] int64."""
        self._loss_sums: Tensor | None = None
        """The sums of all routers (`BalancedRouter.loss_sums`), if the model has the loss."""
        if transformer.num_moe_experts is None:
            return
        sizes = (transformer.num_layers, transformer.num_moe_experts)
        self._counts = counts = torch.zeros(sizes, dtype=torch.int64, device=device)
        self._coefficient = transformer.moe_aux_loss_coeff
        if self._coefficient:
            self._loss_sums = torch.zeros(2, device=device)
        for layer in itertools.chain(*(chunk.decoder.layers for chunk in chunks)):
            router = getattr(getattr(layer, "mlp", None), "router", None)
            if router is not None:
                router.register_forward_hook(_counting_hook(counts[layer.layer_number - 1]))
                router.loss_sums = self._loss_sums

    def weigh_loss(self, dealt_rows: DealtRows) -> None:
        """Lets the next step average the load-balancing loss over the micro-batches that have rows.

        megatron-core divides by the number of all, but one without rows has no loss.
        """
        if self._coefficient:
            filled = [bool(rows) for micro_batches in dealt_rows for rows in micro_batches]
            self._transformer.moe_aux_loss_coeff = self._coefficient * len(filled) / sum(filled)

    def take_metrics(self) -> dict[str, float]:
        """Returns the shares of tokens of the busiest and the idlest expert of any layer, and the mean load-balancing
        loss of a layer in a micro-batch without its coefficient, all since the last call.

        The result is empty where nothing was counted. Collective for a model with experts.
        """
        if self._counts is None:
            return {}
        metrics: dict[str, float] = {}
        if self._loss_sums is not None:
            dist.all_reduce(self._loss_sums)
            total, count = self._loss_sums.tolist()
            if count:
                metrics[AUX_LOSS] = total / count
        counts = self.take_counts()
        return metrics if counts is None else shares_of_tokens(counts, self._experts_per_token) | metrics

    def take_counts(self) -> Tensor | None:
        """Returns the tokens that each expert got since the last call, [layers, experts] int64; None for a dense model.

        A layer without experts has zeros. Forgets the loss too. Collective for a model with experts.
        """
        if self._counts is None:
            return None
        counts = self._counts.clone()
        self.reset()
        dist.all_reduce(counts)  # Each rank counts its own layers and its own tokens.
        return counts

    def reset(self) -> None:
        """Forgets what was counted."""
        for counted in (self._counts, self._loss_sums):
            if counted is not None:
                counted.zero_()


def shares_of_tokens(counts: Tensor, experts_per_token: int) -> dict[str, float]:
    """Returns the largest and the smallest share of a layer's tokens that one expert got.

    `counts` [layers, experts] are tokens. A layer without any has no experts and is left out. Equally busy experts have
    the share experts_per_token / experts.
    """
    counts = counts[counts.sum(1) > 0].double().cpu()
    if not len(counts):
        return {}
    shares = counts * experts_per_token / counts.sum(1, keepdim=True)
    return {"expert_share_max": float(shares.max()), "expert_share_min": float(shares.min())}


def _counting_hook(counts: Tensor) -> Any:
    """Returns a hook for a router that adds the tokens of each expert to `counts` [experts]."""

    def count(router: Any, inputs: tuple[Tensor, Tensor | None], outputs: tuple[Tensor, Tensor]) -> None:
        if torch.is_grad_enabled():
            _, is_routed = outputs  # [tokens, experts] bool
            _, padding = inputs  # [tokens, 1] bool
            counts.add_((is_routed if padding is None else is_routed & ~padding).sum(0))

    return count

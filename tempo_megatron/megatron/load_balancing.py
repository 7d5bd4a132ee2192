"""The load-balancing loss of models with experts, over the tokens of each micro-batch without padding."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float32
from megatron.core.transformer.moe.moe_utils import (
    MoEAuxLossAutoScaler,
    get_tokens_per_expert_and_token_count,
    switch_load_balancing_loss_func,
)
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor


class BalancedRouter(TopKRouter):
    """megatron-core's router. Its loss is 0 for a micro-batch of padding alone, where megatron-core divides 0 by 0.

    With E experts, k for each token, the loss of a micro-batch is coefficient * E * sum over experts of f P (Switch
    Transformer, arXiv 2101.03961). f is the share of its k T routes that go to the expert by the router's own choice,
    P the expert's mean probability over its T tokens. It is the coefficient if all experts are alike. Tokens are those
    of all TP and CP ranks. The micro-batches of a step that have rows are averaged, each with the same weight.
    """

    loss_sums: Float32[Tensor, " 2"] | None = None
    """If set, the losses of this rank's tokens, without the coefficient, and the micro-batches that they belong to are
    added here. A micro-batch counts once over the TP and CP ranks that share it, and not at all if it is empty."""

    def _apply_aux_loss(
        self,
        probs: Float[Tensor, "tokens experts"],
        scores_for_aux_loss: Float[Tensor, "tokens experts"],
        routing_map: Bool[Tensor, "tokens experts"],
        with_padding_mask: bool = False,
    ) -> Float[Tensor, "tokens experts"]:
        """Returns `probs`, whose backward pass adds the gradient of the loss."""
        coefficient = self.config.moe_aux_loss_coeff
        counts, _, total = get_tokens_per_expert_and_token_count(
            routing_map, self.tp_cp_group, self.topk, with_padding_mask
        )
        total = torch.as_tensor(total, device=counts.device)
        loss = switch_load_balancing_loss_func(
            scores_for_aux_loss, counts, total.clamp(min=1), self.topk, self.num_experts, coefficient
        )
        if self.loss_sums is not None:
            is_shared_by = self.tp_cp_group.size()
            self.loss_sums.add_(torch.stack([loss.detach() / coefficient, (total > 0) / is_shared_by]))
        balanced: Tensor = MoEAuxLossAutoScaler.apply(probs, loss)
        return balanced

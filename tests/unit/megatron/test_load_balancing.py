"""The load-balancing loss of a router, against its formula in float64."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from tempo_megatron.megatron import cpu
from tempo_megatron.megatron.load_balancing import BalancedRouter

EXPERTS, EXPERTS_PER_TOKEN, HIDDEN, COEFFICIENT = 5, 2, 6, 0.3


def formula(weight: Tensor, hidden: Tensor) -> Tensor:
    """Returns E * sum over experts of f P for the tokens `hidden` [tokens, HIDDEN], without a coefficient."""
    probabilities = (hidden @ weight.T).softmax(-1)
    chosen = probabilities.topk(EXPERTS_PER_TOKEN).indices
    routes = torch.zeros_like(probabilities).scatter(1, chosen, 1.0)
    return EXPERTS * (routes.mean(0) / EXPERTS_PER_TOKEN * probabilities.mean(0)).sum()


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A router with random weights, alone in its groups, in a step of three micro-batches."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("cpu"))  # as in a trainer on CPUs
    monkeypatch.setattr(moe_utils, "reduce_from_tensor_model_parallel_region", lambda counts, _: counts)
    group = SimpleNamespace(size=lambda: 1)
    with cpu.accelerator_names():
        config = TransformerConfig(
            num_layers=1,
            hidden_size=HIDDEN,
            num_attention_heads=1,
            num_moe_experts=EXPERTS,
            moe_router_topk=EXPERTS_PER_TOKEN,
            moe_router_load_balancing_type="aux_loss",
            moe_aux_loss_coeff=COEFFICIENT,
            moe_router_dtype="fp32",
            add_bias_linear=False,
            use_cpu_initialization=True,
        )
        groups: Any = SimpleNamespace(tp=group, cp=group, tp_cp=group, tp_dp_cp=group)
        router = BalancedRouter(config, groups)
        router.weight.data.normal_(generator=torch.Generator().manual_seed(0))
        router.loss_sums = torch.zeros(2)
        scale, MoEAuxLossAutoScaler.main_loss_backward_scale = MoEAuxLossAutoScaler.main_loss_backward_scale, None
        MoEAuxLossAutoScaler.set_loss_scale(torch.tensor(1 / 3))
        yield router
        MoEAuxLossAutoScaler.main_loss_backward_scale = scale


def test_loss_and_gradient_are_those_of_the_formula_over_tokens_without_padding(router: Any) -> None:
    """Three micro-batches: seven tokens of which two are padding, four whole ones, and padding alone. The gradient is
    the mean of theirs, in which the empty one is 0 and not 0 / 0. The recorded loss is the mean of the other two."""
    generator = torch.Generator().manual_seed(1)
    paddings = [[0, 0, 1, 0, 0, 0, 1], [0] * 4, [1, 1]]
    micro_batches = [
        (torch.randn(len(each), HIDDEN, generator=generator), torch.tensor(each).bool()) for each in paddings
    ]
    weight = router.weight.detach().double().requires_grad_()
    losses = [formula(weight, hidden[~padding].double()) for hidden, padding in micro_batches[:2]]
    (COEFFICIENT * torch.stack(losses).sum() / 3).backward()
    with cpu.accelerator_names():
        for hidden, padding in micro_batches:
            probs, _ = router(hidden[:, None], padding[:, None])
            (0 * probs).sum().backward()
    torch.testing.assert_close(router.weight.grad.double(), weight.grad, rtol=1e-5, atol=1e-7)
    total, count = router.loss_sums.tolist()
    assert count == 2
    assert total / count == pytest.approx(float(torch.stack(losses).mean()), rel=1e-6)


def test_a_pass_without_gradients_records_nothing(router: Any) -> None:
    """Protects the recorded loss from scoring passes, and from the first of the two passes of recomputation."""
    with cpu.accelerator_names(), torch.no_grad():
        router(torch.ones(3, 1, HIDDEN), torch.zeros(3, 1, dtype=torch.bool))
    assert router.loss_sums.tolist() == [0, 0]

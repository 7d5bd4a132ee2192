"""Which share of the tokens each expert gets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tempo_megatron.megatron.expert_load import ExpertLoad, shares_of_tokens


def test_shares_are_those_of_the_extreme_experts_over_layers_with_experts() -> None:
    """Ten tokens with two experts each: 10 of 10 tokens and 1 of 10 are the extremes. Protects the dense layer between
    them from counting as a layer of idle experts."""
    counts = torch.tensor([[5, 5, 5, 5], [0, 0, 0, 0], [10, 1, 4, 5]])
    assert shares_of_tokens(counts, 2) == {"expert_share_max": 1.0, "expert_share_min": pytest.approx(0.1)}
    assert shares_of_tokens(counts[:1], 2) == {"expert_share_max": 0.5, "expert_share_min": 0.5}
    assert shares_of_tokens(counts[1:2], 2) == {}


class Router(torch.nn.Module):
    """Sends every token to its first expert, and even ones to the third as well."""

    def forward(self, tokens: torch.Tensor, padding: torch.Tensor | None = None) -> tuple[None, torch.Tensor]:
        is_routed = torch.zeros(len(tokens), 3, dtype=torch.bool)
        is_routed[:, 0] = True
        is_routed[::2, 2] = True
        return None, is_routed


def test_only_passes_with_gradients_count_and_each_token_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from tokens of scoring passes, from those that recomputation routes twice, and from padding. What was
    taken is forgotten."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda counts: counts)
    router = Router()
    layers = [SimpleNamespace(layer_number=1), SimpleNamespace(layer_number=2, mlp=SimpleNamespace(router=router))]
    transformer = SimpleNamespace(moe_router_topk=1, num_layers=2, num_moe_experts=3, moe_aux_loss_coeff=0.0)
    module: Any = SimpleNamespace(config=transformer, decoder=SimpleNamespace(layers=layers))
    load = ExpertLoad([module], torch.device("cpu"))
    with torch.no_grad():
        router(torch.zeros(7), None)
    assert load.take_metrics() == {}
    router(torch.zeros(4), None)
    assert load.take_metrics() == {"expert_share_max": pytest.approx(4 / 6), "expert_share_min": 0.0}
    router(torch.zeros(4), None)
    padding = torch.tensor([True, False, False, True])[:, None]
    router(torch.zeros(4), padding)
    assert load.take_metrics() == {"expert_share_max": pytest.approx(2 / 3), "expert_share_min": 0.0}
    router(torch.zeros(4), None)
    load.reset()
    assert load.take_metrics() == {}


def test_the_loss_is_the_mean_over_layers_and_micro_batches_since_the_last_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two layers add theirs of two micro-batches. A step that counted no micro-batch has no loss to divide."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda counts: counts)
    routers = [Router(), Router()]
    layers = [
        SimpleNamespace(layer_number=2 * number + 2, mlp=SimpleNamespace(router=router))
        for number, router in enumerate(routers)
    ]
    transformer = SimpleNamespace(moe_router_topk=1, num_layers=4, num_moe_experts=3, moe_aux_loss_coeff=0.1)
    module: Any = SimpleNamespace(config=transformer, decoder=SimpleNamespace(layers=layers))
    load = ExpertLoad([module], torch.device("cpu"))
    assert "aux_loss" not in load.take_metrics()
    for router, losses in zip(routers, ([1.0, 2.0], [1.5, 1.1]), strict=True):
        for loss in losses:
            sums: Any = router.loss_sums
            sums.add_(torch.tensor([loss, 1.0]))
        router(torch.zeros(4), None)
    assert load.take_metrics()["aux_loss"] == pytest.approx(1.4)
    assert load.take_metrics() == {}


def test_a_dense_model_has_no_shares() -> None:
    """Its ranks must not enter a collective that logs nothing."""
    module: Any = SimpleNamespace(config=SimpleNamespace(moe_router_topk=2, num_moe_experts=None))
    assert ExpertLoad([module], torch.device("cpu")).take_metrics() == {}

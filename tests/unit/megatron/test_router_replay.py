"""What routers and token dispatchers keep after a pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.transformer.moe.router_replay import RouterReplay

from tempo_megatron.megatron.router_replay import ReplayedRouters, forget_routers


def test_a_pass_that_raises_leaves_no_routes_and_no_tensors() -> None:
    """Protects a pass after an error, such as that of a caller who tries smaller micro-batches: its routers choose for
    themselves. A dense layer has nothing to clear."""
    router = RouterReplay()
    forget_routers()
    dispatcher = SimpleNamespace(probs=1, routing_map=2, reversed_local_input_permutation_mapping=3)
    experts = SimpleNamespace(router=SimpleNamespace(router_replay=router), token_dispatcher=dispatcher)
    layers = [SimpleNamespace(layer_number=2, mlp=SimpleNamespace()), SimpleNamespace(layer_number=4, mlp=experts)]
    config = SimpleNamespace(moe_enable_routing_replay=True, sequence_parallel=False, recompute_granularity="full")
    module: Any = SimpleNamespace(config=config, decoder=SimpleNamespace(layers=layers))
    topology: Any = SimpleNamespace(tensor_rank=0, tensor_size=1)
    routers = ReplayedRouters([module], topology)
    routes = torch.tensor([[[0, 1], [2, 3]]])
    with pytest.raises(RuntimeError, match="out of memory"), routers.cleared_after(), routers.replaying(0, routes):
        assert router.target_topk_idx is not None and router.target_topk_idx.tolist() == [[2, 3]]
        raise RuntimeError("out of memory")
    assert router.router_replay_action is None and router.target_topk_idx is None
    assert router.replay_backward_list == []
    assert set(vars(dispatcher).values()) == {None}

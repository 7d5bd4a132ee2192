"""Recording the experts that routers choose. `tests/parallel/test_router_replay.py` gathers them over ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from tempo_megatron.megatron.batch import from_sequences
from tempo_megatron.megatron.packing import PackingRule, pack
from tempo_megatron.megatron.route_recorder import RouteRecorder


def test_routes_are_those_of_each_rows_tokens_in_every_layer() -> None:
    """Two micro-batches, padded, and three layers of which the middle one is dense. Records of layers come in parts, as
    from the chunks of a pipeline stage. What is recorded is cleared, so that no pass finds another's."""
    batch = from_sequences([[1, 2, 3], [4, 5], [6]], [[7, 8], [9, 10, 11], [12]])
    topology: Any = SimpleNamespace(context_size=1, context_group=None, tensor_size=2, tensor_group=None)
    topology.pipeline_size = topology.data_size = 1
    topology.pipeline_group = topology.data_group = None
    recorder = RouteRecorder(topology, layers=3, experts=300, is_split=False)
    routers: Any = {layer: SimpleNamespace(recorded_topk_idx=None) for layer in (0, 2)}
    for rows in ([2, 0], [1]):
        micro = pack(batch, rows, PackingRule(100, 1, 8, 0.0))
        for layer, router in routers.items():
            router.recorded_topk_idx = torch.stack([micro.tokens + 100 * layer, micro.tokens], -1)
            recorder.add(micro, routers)
            assert router.recorded_topk_idx is None
    routes = recorder.routes(3)
    assert [route.dtype for route in routes] == [torch.uint16] * 3
    for row, route in enumerate(routes):
        tokens = batch.tokens[row, : batch.lengths[row] - 1]
        assert route.shape == (len(tokens), 3, 2)
        for layer in routers:
            assert route[:, layer].int().tolist() == torch.stack([tokens + 100 * layer, tokens], -1).tolist()

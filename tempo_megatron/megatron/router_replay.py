"""Router replay: the routers of a model choose the experts that the generator or an earlier pass chose.

Generator and trainer round differently, so that some tokens go to other experts in each, which changes their log-probs
by far more than rounding. Under replay the trainer takes the generator's choice of experts and weights them by its own
router, which still learns (Rollout Routing Replay, arXiv 2510.11370). Or an update takes the choice of the pass that
computed the old log-probs, so that no change of the router's choice changes a ratio.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from tempo_megatron.megatron.packing import MicroBatch
from tempo_megatron.megatron.route_recorder import RouteRecorder
from tempo_megatron.megatron.topology import Topology

_DISPATCHED_TENSORS = ("probs", "routing_map", "reversed_local_input_permutation_mapping")
"""The attributes in which a token dispatcher keeps tensors of the last pass."""


class ReplayedRouters:
    """The routers in this rank's chunks of a model. Models have routers of their own, which megatron-core lists
    process-wide."""

    def __init__(self, chunks: Sequence[Any], topology: Topology) -> None:
        transformer = chunks[0].config
        self._routers = [
            {
                (layer.layer_number - 1) // 2: layer.mlp.router.router_replay  # A layer is two of a HybridModel.
                for layer in chunk.decoder.layers
                if getattr(getattr(getattr(layer, "mlp", None), "router", None), "router_replay", None) is not None
            }
            for chunk in chunks
        ]
        """For each chunk its routers by the Hugging Face number of their layer."""
        self._by_layer = {layer: router for routers in self._routers for layer, router in routers.items()}
        dispatchers = (
            getattr(getattr(layer, "mlp", None), "token_dispatcher", None)
            for chunk in chunks
            for layer in chunk.decoder.layers
        )
        self._dispatchers = [dispatcher for dispatcher in dispatchers if dispatcher is not None]
        self.is_active = transformer.moe_enable_routing_replay
        """Whether the model was built to replay routes, on every stage the same."""
        self._split = (topology.tensor_rank, topology.tensor_size) if transformer.sequence_parallel else (0, 1)
        self._recomputes = _recomputes_routers(transformer)
        self._topology, self._transformer = topology, transformer
        self._recorder: RouteRecorder | None = None

    def padding_mask(self, padding: Bool[Tensor, " tokens"]) -> Bool[Tensor, "1 local_tokens"] | None:
        """Returns which of this rank's tokens are padding, as megatron-core's layers with experts read it; None for a
        dense model."""
        rank, ranks = self._split
        return padding.chunk(ranks)[rank][None] if self._dispatchers else None

    @contextlib.contextmanager
    def replaying(self, chunk: int, routes: Shaped[Tensor, "tokens layers experts_per_token"] | None) -> Iterator[None]:
        """Lets a chunk's forward pass in the block take these experts; without routes its routers choose themselves.

        Every route names experts that differ. A backward pass that recomputes the forward pass takes the same experts:
        micro-batches go backward through a chunk in the order in which they went forward.
        """
        if routes is None:
            yield
            return
        from megatron.core.transformer.moe.router_replay import RouterReplayAction

        rank, ranks = self._split
        local = routes.chunk(ranks)[rank]
        for layer, router in self._routers[chunk].items():
            router.set_target_indices(local[:, layer].to(torch.int64))
            router.set_router_replay_action(RouterReplayAction.REPLAY_FORWARD)
        yield
        for router in self._routers[chunk].values():
            router.set_router_replay_action(RouterReplayAction.REPLAY_BACKWARD)
            if not (self._recomputes and torch.is_grad_enabled()):
                router.clear_indices()

    @contextlib.contextmanager
    def recording(self) -> Iterator[RouteRecorder]:
        """Records what the routers choose in the pass without gradients in the block; yields what holds the records."""
        from megatron.core.transformer.moe.router_replay import RouterReplayAction

        transformer = self._transformer
        self._recorder = recorder = RouteRecorder(
            self._topology, transformer.num_layers // 2, transformer.num_moe_experts, transformer.sequence_parallel
        )
        for router in self._by_layer.values():
            router.set_router_replay_action(RouterReplayAction.RECORD)
        try:
            yield recorder
        finally:
            self._recorder = None

    def record(self, micro: MicroBatch) -> None:
        """Records what the routers chose for a micro-batch, after its forward pass; nothing outside `recording`."""
        if self._recorder is not None:
            self._recorder.add(micro, self._by_layer)

    @contextlib.contextmanager
    def cleared_after(self) -> Iterator[None]:
        """Forgets all routes after the block, even if it raises. The routers choose for themselves again.

        Token dispatchers forget the last pass too. Their tensors would take device memory until the next one, and their
        autograd graph would keep a deleted model alive.
        """
        try:
            yield
        finally:
            for router in self._by_layer.values():
                router.clear_indices()
                router.clear_router_replay_action()
            for dispatcher in self._dispatchers:
                for name in _DISPATCHED_TENSORS:
                    setattr(dispatcher, name, None)


def forget_routers() -> None:
    """Empties megatron-core's process-wide list of routers, which would keep the routes of every model alive."""
    from megatron.core.transformer.moe.router_replay import RouterReplay

    RouterReplay.clear_global_router_replay_instances()


def _recomputes_routers(transformer: Any) -> bool:
    """Returns whether backward passes compute routers again."""
    if transformer.recompute_granularity == "selective":
        return "moe" in transformer.recompute_modules
    return transformer.recompute_granularity == "full"

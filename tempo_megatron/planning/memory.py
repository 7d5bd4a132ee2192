"""Bytes of torch's tensors on a GPU during a training step or a forward pass of one model, part by part."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import prod

from tempo_megatron.config import Config, Fp8, Precision
from tempo_megatron.conversion.mapping import BackboneSettings, Role
from tempo_megatron.planning.activations import Activations
from tempo_megatron.planning.layout import Layout
from tempo_megatron.planning.parameters import EXPERTS, RankParameters, rank_parameters
from tempo_megatron.planning.pipeline import passes_in_flight

GIB = 2**30
Parts = dict[str, int]
"""The bytes of each named part."""

_WORKSPACE_BYTES = 110 * 2**20
"""cuBLAS workspaces of torch and Transformer Engine (32 MiB each), packing indices and reductions. Measured."""
_GROUPED_WORKSPACE_BYTES = 4 * 32 * 2**20
"""Transformer Engine multiplies experts on four streams, each with a workspace of cuBLAS."""


@dataclass(frozen=True)
class ModelMemory:
    """A policy or a critic under a config and a layout."""

    settings: BackboneSettings
    role: Role
    config: Config
    layout: Layout
    tokens: int
    """The token budget of a micro-batch over all context-parallel ranks."""
    micro_batches: int
    """The micro-batches of a step on one data-parallel rank."""

    def parameters(self, stage: int) -> RankParameters:
        layout = self.layout
        return rank_parameters(
            self.settings, self.role, layout.tensor, layout.pipeline, stage, layout.expert, layout.chunks
        )

    @property
    def activations(self) -> Activations:
        return Activations(self.settings, self.config, self.layout, self.tokens)

    def state(self, stage: int) -> Parts:
        """Return the bytes of weights, gradients and optimizer state on a rank of this stage."""
        kinds = self.state_by_kind(stage).values()
        return {part: sum(state[part] for state in kinds) for part in ("weights", "gradients", "optimizer")}

    def state_by_kind(self, stage: int) -> dict[str, Parts]:
        """Return the same for each kind of parameter. Experts and the rest are shared by other numbers of ranks."""
        is_bf16, layout = self.config.model.precision is Precision.bf16, self.layout
        return {
            kind: {
                "weights": count * (2 if is_bf16 else 4),
                "gradients": count * 4,
                "optimizer": count
                * (12 if is_bf16 else 8)
                // (layout.expert_optimizer_ranks if kind == EXPERTS else layout.optimizer_ranks),
            }
            for kind, count in self.parameters(stage).by_kind.items()
        }

    def saved_bytes(self, stage: int, *, learns: bool) -> tuple[int, int]:
        """Return the bytes that a rank of this stage saves of all but its experts, and of its experts.

        These are the weights, and of a model that learns the whole optimizer state of the rank's part of the model.
        """
        kinds, layout = self.state_by_kind(stage), self.layout

        def saved(kind: str, ranks: int) -> int:
            return kinds[kind]["weights"] + learns * kinds[kind]["optimizer"] * ranks

        others = sum(saved(kind, layout.optimizer_ranks) for kind in kinds if kind != EXPERTS)
        return others, saved(EXPERTS, layout.expert_optimizer_ranks) if EXPERTS in kinds else 0

    def step_peak(self) -> Parts:
        """Return the parts at the memory peak of a training step, on the stage with the highest peak."""
        moments = [moment for stage in range(self.layout.pipeline) for moment in self._step_moments(stage)]
        return max(moments, key=lambda parts: sum(parts.values()))

    def pass_peak(self) -> Parts:
        """Return the parts at the memory peak of a pass without gradients, on the stage with the highest peak."""
        passes = [self._pass(stage) for stage in range(self.layout.pipeline)]
        return max(passes, key=lambda parts: sum(parts.values()))

    def _step_moments(self, stage: int) -> list[Parts]:
        """Return the parts at each moment of a step that may be its peak.

        These are the backward pass of a chunk's last layer and, on the last stage, that of the output layer. They come
        when all activations are kept.
        """
        activations, layout = self.activations, self.layout
        is_last = stage == layout.pipeline - 1
        kept: Parts = self.state(stage) | {
            "weights in 8 bits": 2 * self._fp8_copy_bytes(stage),
            "dummy weight gradients": self._dummy_gradient_bytes(stage),
            "activations": self._kept_activations(stage),
            "workspaces": self._workspaces,
        }
        last_layers = {chunk[-1] for chunk in self._sparse_layers(stage)}
        moments = [kept | {"backward pass": activations.at_backward(is_sparse)} for is_sparse in last_layers]
        if is_last:
            moments.append(kept | activations.at_loss(self.role))
        return moments

    def _kept_activations(self, stage: int) -> int:
        """Return the most bytes that a stage keeps for backward passes, with what it has sent to the next stage."""
        layout, hidden = self.layout, self.activations.hidden
        of_chunk = [self.activations.kept(layers) for layers in self._sparse_layers(stage)]
        most = 0
        for passes in passes_in_flight(stage, layout.pipeline, layout.chunks, self.micro_batches):
            last = passes[layout.chunks - 1] if stage == layout.pipeline - 1 else 0  # The model's end sends nothing.
            sent = max(0, passes.total() - last - 1)
            most = max(most, sum(count * of_chunk[chunk] for chunk, count in passes.items()) + sent * hidden)
        return most

    def _pass(self, stage: int) -> Parts:
        return {
            "weights": self.state(stage)["weights"],
            "weights in 8 bits": self._fp8_copy_bytes(stage),
            "forward pass": self.activations.pass_peak(self.role),
            "workspaces": self._workspaces,
        }

    @property
    def _workspaces(self) -> int:
        return _WORKSPACE_BYTES + (_GROUPED_WORKSPACE_BYTES if self.settings.experts else 0)

    def _sparse_layers(self, stage: int) -> list[list[bool]]:
        """Return for each chunk of a stage whether each of its layers has experts."""
        chunks = self.settings.stage_chunks(self.layout.pipeline, self.layout.chunks, self.role)[stage]
        return [[self.settings.sparse_layers[layer] for layer in layers] for layers in chunks]

    def _fp8_copy_bytes(self, stage: int) -> int:
        """Return the bytes of one 8-bit copy of the weights. The backward pass needs another, transposed copy."""
        model, parameters = self.config.model, self.parameters(stage)
        if model.fp8 is Fp8.none:
            return 0
        sparse_layers = list(itertools.chain(*self._sparse_layers(stage)))
        first = model.fp8_edges_in_bf16 if stage == 0 else 0
        last = model.fp8_edges_in_bf16 if stage == self.layout.pipeline - 1 else 0
        in_fp8 = sparse_layers[first : max(first, len(sparse_layers) - last)]
        experts = parameters.by_kind[EXPERTS] * sum(in_fp8) // max(1, sum(sparse_layers))
        return parameters.linear * len(in_fp8) // len(sparse_layers) + experts

    def _dummy_gradient_bytes(self, stage: int) -> int:
        """Return the bytes of dummy weight gradients.

        Transformer Engine adds weight gradients to the buffers itself. It gives autograd a tensor of each shape that is
        never read.
        """
        return self.activations.width * sum(map(prod, self.parameters(stage).linear_shapes))

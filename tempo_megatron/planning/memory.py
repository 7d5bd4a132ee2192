"""Bytes on a GPU while a model learns or reads: what torch's tensors take, part by part."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tempo_megatron.config import Config, Fp8, Precision
from tempo_megatron.conversion.mapping import BackboneSettings, Role
from tempo_megatron.planning.activations import Activations
from tempo_megatron.planning.layout import Layout
from tempo_megatron.planning.parameters import Parameters, parameters

GIB = 2**30
Parts = dict[str, int]
"""name of a part -> bytes"""

_WORKSPACES = 110 * 2**20
"""cuBLAS's workspaces in torch and Transformer Engine (32 MiB each), indices of the packing, reductions; measured"""


@dataclass(frozen=True)
class Model:
    """A policy or a critic under a config and a layout. `micro_batches` are those of a step on a data-parallel rank;
    `tokens` the budget of one of them, over the context-parallel ranks."""

    settings: BackboneSettings
    role: Role
    config: Config
    layout: Layout
    tokens: int
    micro_batches: int

    def held(self, stage: int) -> Parameters:
        return parameters(self.settings, self.role, self.layout.tensor, self.layout.pipeline, stage)

    @property
    def activations(self) -> Activations:
        return Activations(self.settings, self.config, self.layout, self.tokens)

    def state(self, stage: int) -> Parts:
        """Weights, gradients and optimizer state of a rank of this stage."""
        mixed = self.config.model.precision is Precision.bf16
        count = self.held(stage).total
        return {
            "weights": count * (2 if mixed else 4),
            "gradients": count * 4,
            "optimizer": count * (12 if mixed else 8) // self.layout.optimizer_ranks,
        }

    def learning(self) -> Parts:
        """The highest moment of a step, on the stage where it is highest."""
        moments = [moment for stage in range(self.layout.pipeline) for moment in self._moments(stage)]
        return max(moments, key=lambda parts: sum(parts.values()))

    def reading(self) -> Parts:
        """The highest moment of a pass without gradients, on the stage that holds most."""
        passes = [self._pass(stage) for stage in range(self.layout.pipeline)]
        return max(passes, key=lambda parts: sum(parts.values()))

    def _moments(self, stage: int) -> list[Parts]:
        """Of a step: the backward pass of a stage's last layer, and on the last stage that of the output layer."""
        act, layout = self.activations, self.layout
        last = stage == layout.pipeline - 1
        in_flight = min(self.micro_batches, layout.pipeline - stage)
        resting: Parts = self.state(stage) | {
            "weights in 8 bits": 2 * self._in_eight_bits(stage),
            "dummy weight gradients": self._dummies(stage),
            "activations": in_flight * act.kept(self._layers) + (0 if last else (in_flight - 1) * act.hidden),
            "workspaces": _WORKSPACES,
        }
        moments = [resting | {"backward pass": act.at_backward()}]
        if last:
            moments.append(resting | act.at_loss(self.role))
        return moments

    def _pass(self, stage: int) -> Parts:
        return {
            "weights": self.state(stage)["weights"],
            "weights in 8 bits": self._in_eight_bits(stage),
            "forward pass": self.activations.reading(self.role),
            "workspaces": _WORKSPACES,
        }

    @property
    def _layers(self) -> int:
        """Transformer layers of a stage."""
        return self.settings.num_layers // self.layout.pipeline

    def _in_eight_bits(self, stage: int) -> int:
        """Bytes of one 8-bit copy of the weights; products of the backward pass want another, transposed."""
        model = self.config.model
        if model.fp8 is Fp8.none:
            return 0
        edges = model.fp8_edges_in_bf16 * ((stage == 0) + (stage == self.layout.pipeline - 1))
        return self.held(stage).linear * (self._layers - edges) // self._layers

    def _dummies(self, stage: int) -> int:
        """Transformer Engine adds weight gradients to the buffers itself and hands autograd a tensor of each shape that
        nobody reads."""
        return self.activations.width * sum(map(prod, self.held(stage).linear_shapes))

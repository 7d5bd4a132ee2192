"""Estimates the seconds of one model's passes and optimizer steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tempo_megatron.config import CriticConfig, Fp8, Numerics, PolicyConfig, Recompute
from tempo_megatron.conversion.mapping import Role
from tempo_megatron.planning import rates
from tempo_megatron.planning.flops import ModelFlops
from tempo_megatron.planning.parameters import EXPERTS
from tempo_megatron.planning.phases import PlannedRun, total_bytes
from tempo_megatron.planning.pipeline import bubble_share
from tempo_megatron.planning.workload import Workload

Work = Literal["pass", "step"]


@dataclass(frozen=True)
class ModelTime:
    """Estimates the times of one model of a run under a workload, from the rates of `rates.py`."""

    run: PlannedRun
    workload: Workload
    role: Role

    def pass_seconds(self, rollouts: int) -> float:
        """Return the seconds of one forward pass over this many rollouts.

        The policy reads them in the mini-batches that its steps have (`training/phases/advantages.py`).
        """
        mini_batches = self.run.config.policy.mini_batches if self.role == "policy" else 1
        return self._compute_seconds("pass", rollouts, mini_batches)

    def training_seconds(self, rollouts: int, settings: PolicyConfig | CriticConfig) -> float:
        """Return the seconds of the optimizer steps on this many rollouts."""
        steps = settings.mini_batches * settings.epochs
        return self._compute_seconds("step", rollouts * settings.epochs, steps) + steps * self._reduce_seconds()

    def _rate(self, work: Work) -> float:
        """Return the FLOP/s of one GPU."""
        flops = rates.PASS_FLOPS if work == "pass" else rates.STEP_FLOPS
        return self._numerics_speed(work) * flops[self.role, self.run.config.model.fp8 is not Fp8.none]

    def _numerics_speed(self, work: Work) -> float:
        """Return the speed relative to default numerics. The setting is about the policy."""
        is_exact = self.role == "policy" and self.run.config.numerics is Numerics.exact
        return rates.EXACT_SPEED[work] if is_exact else 1.0

    def _recomputed_passes(self) -> float:
        """Return the work that recomputation adds, in forward passes."""
        recompute, shape = self.run.config.model.recompute, self.run.settings
        if recompute is Recompute.mlp:
            return shape.mlp_weights / ModelFlops(shape, self.role).weights
        return float(recompute is Recompute.full)

    def _forward_passes(self, work: Work) -> float:
        """Return the work in forward passes. A backward pass counts as two."""
        return 1.0 if work == "pass" else 3 + self._recomputed_passes()

    def _compute_seconds(self, work: Work, rollouts: int, mini_batches: int) -> float:
        """Return the seconds of passes or steps over all rollouts in so many mini-batches.

        Host and device work side by side in dense layers, and the slower one decides. In layers with experts they take
        turns: the host waits for the number of tokens of each expert. For each mini-batch a data-parallel rank computes
        at least one sequence, as long as the longest one.
        """
        run, layout, workload = self.run, self.run.layout, self.workload

        def response_seconds(length: int) -> float:
            return self._sequence_seconds(workload.prompt + length, work)

        rank_rollouts = rollouts / layout.data
        tokens = rank_rollouts * (workload.prompt + workload.mean)
        fewest = layout.pipeline if layout.chunks > 1 else 1  # The interleaved schedule needs a multiple of the stages.
        micro_batches = max(fewest, math.ceil(tokens / mini_batches / run.models[self.role].tokens))
        bubble = 1 + bubble_share(layout.pipeline, layout.chunks, micro_batches)
        device = rank_rollouts * workload.average(response_seconds) * bubble * self._slowest_stage_factor()
        host = mini_batches * micro_batches * bubble * (rollouts > 0)
        side_by_side, in_turn = (host * layers / layout.pipeline for layers in self._layer_host_seconds(work))
        longest = mini_batches * response_seconds(max(workload.lengths)) * layout.pipeline
        return max(device, side_by_side, longest) + in_turn

    def _layer_host_seconds(self, work: Work) -> tuple[float, float]:
        """Return the host's seconds for a micro-batch in all dense layers, and in all layers with experts."""
        shape, sparse = self.run.settings, sum(self.run.settings.sparse_layers)
        recomputed = self._recomputed_passes() if work == "step" else 0.0

        def layer_seconds(kind: str) -> float:
            seconds = rates.LAYER_HOST_SECONDS[kind]
            return seconds[work] + recomputed * seconds["pass"]

        dense = layer_seconds("TP" if self.run.layout.tensor > 1 else "dense")
        return (shape.num_layers - sparse) * dense, sparse * layer_seconds("experts")

    def _slowest_stage_factor(self) -> float:
        """Return the time of the slowest pipeline stage relative to the mean. The last one has the output layer."""
        shape, stages, chunks = self.run.settings, self.run.layout.pipeline, self.run.layout.chunks
        outputs = shape.output_weights(self.role) / ModelFlops(shape, self.role).weights
        lengths = [sum(map(len, layers)) for layers in shape.stage_chunks(stages, chunks, self.role)]
        shares = [length * (1 - outputs) / shape.num_layers for length in lengths]
        return stages * max(*shares[:-1], shares[-1] + outputs) if stages > 1 else 1.0

    def _sequence_seconds(self, tokens: int, work: Work) -> float:
        """Return the seconds of one sequence on one data-parallel rank with all its pipeline stages busy."""
        run, layout, forward_passes = self.run, self.run.layout, self._forward_passes(work)
        ranks = layout.tensor * layout.pipeline * layout.context
        speed = self._rate(work) * rates.CONTEXT_PARALLEL_SPEED ** math.log2(layout.context)
        flops = self._paced_flops(tokens) * forward_passes
        values = tokens / layout.context * run.settings.num_layers / layout.pipeline * run.settings.hidden_size
        from_other_ranks = (layout.tensor - 1) / layout.tensor * (1 + self._recomputed_passes() / 3)
        exposed = rates.PASS_EXPOSED_SHARE if work == "pass" else 1.0
        is_fp8 = run.config.model.fp8 is not Fp8.none
        exposed_seconds = exposed * rates.EXPOSED_SECONDS_PER_VALUE[is_fp8] * values * from_other_ranks
        exchanges = 1 if work == "pass" else forward_passes - 1  # A backward pass exchanges as often as a forward pass.
        return flops / speed / ranks + exposed_seconds + self._exchange_seconds(tokens) * exchanges

    def _paced_flops(self, tokens: int) -> float:
        """Return the FLOPs of a forward pass, those of layers with experts as many more as these layers are slower."""
        shape = self.run.settings
        flops = ModelFlops(shape, self.role).forward([tokens])
        layers = flops - 2 * tokens * shape.output_weights(self.role)
        return flops + (1 / rates.EXPERT_SPEED - 1) * layers * sum(shape.sparse_layers) / shape.num_layers

    def _exchange_seconds(self, tokens: int) -> float:
        """Return the seconds in which a forward pass sends a sequence's tokens to their experts and back.

        Each rank exchanges its tokens, with one copy for each expert of a token. Nothing overlaps it.
        """
        run, layout, experts = self.run, self.run.layout, self.run.settings.experts
        if experts is None or layout.expert == 1:
            return 0.0
        copies = tokens / layout.context / layout.tensor * experts.experts_per_token * (1 - 1 / layout.expert)
        layers = sum(experts.sparse_layers) / layout.pipeline
        crosses_nodes = layout.expert > run.machine.gpus_per_node
        speed = rates.EXCHANGE_BYTES_PER_SECOND["network" if crosses_nodes else "node"]
        return 2 * layers * copies * run.settings.hidden_size * run.models[self.role].activations.width / speed

    def _reduce_seconds(self) -> float:
        """Return the seconds to reduce gradients and gather weights once per step. Half of it overlaps the passes."""
        run, layout, model = self.run, self.run.layout, self.run.models[self.role]
        stage = max(range(layout.pipeline), key=lambda stage: total_bytes(model.state(stage)))
        reduced = sum(
            state["gradients"] + state["weights"]
            for kind, state in model.state_by_kind(stage).items()
            if (layout.expert_optimizer_ranks if kind == EXPERTS else layout.optimizer_ranks) > 1
        )
        crosses_nodes = layout.optimizer_ranks * layout.tensor > run.machine.gpus_per_node
        speed = rates.REDUCE_BYTES_PER_SECOND["network" if crosses_nodes else "node"]
        return reduced / speed / 2

"""Estimates the seconds of one model's passes and optimizer steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tempo_megatron.config import CriticConfig, Fp8, Numerics, PolicyConfig, Recompute
from tempo_megatron.conversion.mapping import Role
from tempo_megatron.planning import rates
from tempo_megatron.planning.flops import ModelFlops
from tempo_megatron.planning.parameters import EXPERTS
from tempo_megatron.planning.phases import PlannedRun, total_bytes
from tempo_megatron.planning.pipeline import bubble_share
from tempo_megatron.planning.workload import Workload


@dataclass(frozen=True)
class ModelTime:
    """Estimates the times of one model of a run under a workload, from the rates of `rates.py`."""

    run: PlannedRun
    workload: Workload
    role: Role

    def pass_seconds(self, rollouts: int) -> float:
        """Return the seconds of one forward pass over this many rollouts."""
        rate = self._numerics_speed("pass") * rates.PASS_FLOPS[self.role, self._is_fp8]
        return self._compute_seconds(rollouts, rate, 1, rates.PASS_EXPOSED_SHARE, 1)

    def training_seconds(self, rollouts: int, settings: PolicyConfig | CriticConfig) -> float:
        """Return the seconds of the optimizer steps on this many rollouts."""
        steps = settings.mini_batches * settings.epochs
        rate = self._numerics_speed("step") * rates.STEP_FLOPS[self.role, self._is_fp8]
        forward_passes = 3 + self._recomputed_passes()
        compute = self._compute_seconds(rollouts * settings.epochs, rate, forward_passes, 1.0, steps)
        return compute + steps * self._reduce_seconds()

    def _numerics_speed(self, work: str) -> float:
        """Return the speed relative to default numerics. The setting is about the policy."""
        is_exact = self.role == "policy" and self.run.config.numerics is Numerics.exact
        return rates.EXACT_SPEED[work] if is_exact else 1.0

    @property
    def _is_fp8(self) -> bool:
        return self.run.config.model.fp8 is not Fp8.none

    def _recomputed_passes(self) -> float:
        """Return the work that recomputation adds, in forward passes."""
        recompute, shape = self.run.config.model.recompute, self.run.settings
        if recompute is Recompute.mlp:
            return shape.mlp_weights / ModelFlops(shape, self.role).weights
        return float(recompute is Recompute.full)

    def _compute_seconds(self, rollouts: int, rate: float, forward_passes: float, exposed: float, steps: int) -> float:
        """Return the seconds of `forward_passes` passes over all rollouts in `steps` steps.

        In each step a data-parallel rank computes at least one sequence, and the step lasts as long as the longest one.
        `exposed` is the share of a step's exposed communication.
        """
        run, layout, workload = self.run, self.run.layout, self.workload

        def response_seconds(length: int) -> float:
            return self._sequence_seconds(workload.prompt + length, rate, forward_passes, exposed)

        rank_rollouts = rollouts / layout.data
        tokens = rank_rollouts * (workload.prompt + workload.mean)
        fewest = layout.pipeline if layout.chunks > 1 else 1  # The interleaved schedule needs a multiple of the stages.
        micro_batches = max(fewest, tokens / steps / run.models[self.role].tokens)
        bubble = 1 + bubble_share(layout.pipeline, layout.chunks, micro_batches)
        balanced = rank_rollouts * workload.average(response_seconds) * bubble * self._slowest_stage_factor()
        return max(balanced, steps * response_seconds(max(workload.lengths)) * layout.pipeline)

    def _slowest_stage_factor(self) -> float:
        """Return the time of the slowest pipeline stage relative to the mean. The last one has the output layer."""
        shape, stages, chunks = self.run.settings, self.run.layout.pipeline, self.run.layout.chunks
        outputs = shape.output_weights(self.role) / ModelFlops(shape, self.role).weights
        lengths = [sum(map(len, layers)) for layers in shape.stage_chunks(stages, chunks, self.role)]
        shares = [length * (1 - outputs) / shape.num_layers for length in lengths]
        return stages * max(*shares[:-1], shares[-1] + outputs) if stages > 1 else 1.0

    def _sequence_seconds(self, tokens: int, rate: float, forward_passes: float, exposed: float) -> float:
        """Return the seconds of one sequence on one data-parallel rank with all its pipeline stages busy."""
        run, layout = self.run, self.run.layout
        ranks = layout.tensor * layout.pipeline * layout.context
        speed = rate * rates.CONTEXT_PARALLEL_SPEED ** math.log2(layout.context)
        flops = ModelFlops(run.settings, self.role).forward([tokens]) * forward_passes
        values = tokens / layout.context * run.settings.num_layers / layout.pipeline * run.settings.hidden_size
        from_other_ranks = (layout.tensor - 1) / layout.tensor * (1 + self._recomputed_passes() / 3)
        exposed_seconds = exposed * rates.EXPOSED_SECONDS_PER_VALUE[self._is_fp8] * values * from_other_ranks
        return flops / speed / ranks + exposed_seconds + self._exchange_seconds(tokens) * forward_passes

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
        speed = rates.REDUCE_BYTES_PER_SECOND["network" if crosses_nodes else "node"]
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

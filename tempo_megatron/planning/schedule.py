"""Estimates the seconds of each phase of an iteration, and of the whole run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tempo_megatron.algorithms.methods import method
from tempo_megatron.config import CriticConfig, CriticTraining, Fp8, LearnsFrom, PolicyConfig, Recompute
from tempo_megatron.conversion.mapping import Role
from tempo_megatron.planning import host, rates
from tempo_megatron.planning.flops import ModelFlops
from tempo_megatron.planning.phases import PlannedRun, total_bytes

_QUANTILES = 16
"""The number of response lengths that stand for a uniform distribution."""


@dataclass(frozen=True)
class Workload:
    """What a recipe does not say about the work of a run."""

    lengths: tuple[int, ...]
    """The tokens of responses, as equally likely values."""
    prompt: int = 256
    """The tokens of a prompt."""
    questions: int = 300
    """The number of questions of each evaluation."""
    storage_gbs: float = 2.0
    """The GB/s that all nodes together write."""
    uniform_share: float = 0.5
    """The share of labeled prompts whose responses all score alike."""

    @classmethod
    def uniform(cls, mean: int, longest: int, **fields: Any) -> Workload:
        """Return a workload of responses between 0 and twice the mean, cut at `longest`."""
        lengths = (2 * mean * (index + 0.5) / _QUANTILES for index in range(_QUANTILES))
        return cls(tuple(max(1, min(longest, round(length))) for length in lengths), **fields)

    @property
    def mean(self) -> float:
        return self.average(lambda length: length)

    def average(self, function: Callable[[int], float]) -> float:
        """Return the mean over responses of a function of their length."""
        return sum(map(function, self.lengths)) / len(self.lengths)


@dataclass(frozen=True)
class Schedule:
    """Estimates the times of a run under a workload, from the rates of `rates.py`."""

    run: PlannedRun
    workload: Workload

    @property
    def labeled_rollouts(self) -> int:
        """The labeled rollouts of an iteration's first generate call."""
        loop = self.run.config.loop
        return loop.e_steps * self._labeled_batch if self._has_e_step else self.labeled_rollouts_per_step

    @property
    def labeled_rollouts_per_step(self) -> int:
        """The labeled rollouts that are generated for each further policy step."""
        learns_labeled = self.run.config.policy.learns_from is not LearnsFrom.unlabeled
        return learns_labeled * self._labeled_batch

    @property
    def _labeled_batch(self) -> int:
        loop = self.run.config.loop
        return loop.labeled_prompts * loop.samples_per_prompt

    @property
    def unlabeled_rollouts(self) -> int:
        """The unlabeled rollouts of a policy step, including those that only vote."""
        loop = self.run.config.loop
        learns_unlabeled = self.run.config.policy.learns_from is not LearnsFrom.labeled
        return learns_unlabeled * loop.unlabeled_prompts * max(loop.samples_per_prompt, loop.votes_per_prompt)

    @property
    def trained_rollouts(self) -> int:
        """The rollouts that one M-step learns from."""
        loop, source = self.run.config.loop, self.run.config.policy.learns_from
        unlabeled = (source is not LearnsFrom.labeled) * loop.unlabeled_prompts * loop.samples_per_prompt
        return self.labeled_rollouts_per_step + unlabeled

    @property
    def _has_e_step(self) -> bool:
        return self.run.config.critic.training is CriticTraining.calibrated

    def phase_seconds(self) -> dict[str, float]:
        """Return the seconds of each phase of an iteration with an E-step.

        `moving` is the transfer of state between GPUs and host memory.
        """
        config = self.run.config
        steps = config.loop.m_steps
        further_steps = (steps - 1) * self._collect_seconds(self.labeled_rollouts_per_step, self.unlabeled_rollouts)
        phases = {"generate": self._collect_seconds(self.labeled_rollouts, self.unlabeled_rollouts) + further_steps}
        if self._has_e_step:
            passes = self._pass_seconds("critic", self.labeled_rollouts)
            phases["e_step"] = passes + self.training_seconds("critic", self.labeled_rollouts, config.critic)
        passes = self._pass_seconds("policy", self.trained_rollouts) * len(self._scoring_models)
        if "values" in method(config.method).needs:
            passes += self._pass_seconds("critic", self.trained_rollouts)
        phases["advantages"] = steps * passes
        if config.critic.training is CriticTraining.returns:
            phases["e_step"] = steps * self.training_seconds("critic", self.trained_rollouts, config.critic)
        phases["m_step"] = steps * self.training_seconds("policy", self.trained_rollouts, config.policy)
        for phase in {"e_step", "advantages", "m_step"}.intersection(phases):
            phases[phase] /= rates.RUN_SPEED
        phases["sync"] = steps * (self._sync_seconds + rates.SWITCH_SECONDS)
        phases["moving"] = self._offload_seconds
        return phases

    @property
    def _scoring_models(self) -> list[str]:
        """The models whose log-probs are computed."""
        return [name for name in ("policy", "reference") if name in self.run.models]

    @property
    def _sync_seconds(self) -> float:
        return self.run.engine.weight_bytes / rates.SYNC_BYTES_PER_SECOND

    @property
    def _offload_seconds(self) -> float:
        """The seconds in which each model moves to host memory and back once per iteration."""
        return 2 * total_bytes(host.pinned_memory(self.run)) / rates.HOST_BYTES_PER_SECOND

    def _collect_seconds(self, labeled: int, unlabeled: int) -> float:
        """Return the seconds of one collection of rollouts: a generate call, and one for each refill round."""
        return self.generate_seconds(labeled + unlabeled) + sum(
            map(self.generate_seconds, self.refill_rollouts(labeled))
        )

    def refill_rollouts(self, labeled: int) -> list[int]:
        """Return the rollouts of each refill round, which replaces prompts whose responses all score alike."""
        loop = self.run.config.loop
        prompts = labeled / loop.samples_per_prompt if loop.drop_uniform_prompts else 0.0
        replaced = [round(prompts * self.workload.uniform_share**number) for number in range(1, loop.refill_tries + 1)]
        return [count * loop.samples_per_prompt for count in replaced if count]

    def generate_seconds(self, requests: int) -> float:
        """Return the seconds until this many responses are generated."""
        if not requests:
            return 0.0
        run, engine, workload = self.run, self.run.engine, self.workload
        bandwidth = rates.decode_bytes_per_second(run.machine.gpu_gb)
        replica_requests = requests * run.layout.replica / run.machine.gpus
        mean_tokens = workload.prompt + workload.average(lambda length: length**2) / (2 * workload.mean)
        concurrent = min(replica_requests, engine.concurrent_sequences(mean_tokens))
        if not concurrent:
            return math.inf
        longest = max(workload.lengths)
        steps = max(longest, replica_requests * workload.mean / concurrent + (longest - workload.mean) / 2)
        products = engine.weight_bytes * concurrent / rates.PASS_FLOPS["policy", False]
        all_reduces = 2 * run.settings.num_layers * rates.DECODE_REDUCE_SECONDS * (run.layout.replica > 1)
        step = rates.DECODE_STEP_SECONDS + all_reduces + max(engine.weight_bytes / bandwidth, products)
        cache_read = workload.average(
            lambda length: length * engine.sequence_cache_bytes(workload.prompt + length // 2)
        )
        return steps * step + replica_requests * cache_read / bandwidth

    def _pass_seconds(self, role: Role, rollouts: int) -> float:
        rate = rates.PASS_FLOPS[role, self._is_fp8]
        return self._compute_seconds(role, rollouts, rate, 1, rates.PASS_EXPOSED_SHARE, 1)

    def training_seconds(self, role: Role, rollouts: int, settings: PolicyConfig | CriticConfig) -> float:
        """Return the seconds of the optimizer steps on this many rollouts."""
        steps = settings.mini_batches * settings.epochs
        rate = rates.STEP_FLOPS[role, self._is_fp8]
        forward_passes = 3 + self._recomputed_passes(role)
        compute = self._compute_seconds(role, rollouts * settings.epochs, rate, forward_passes, 1.0, steps)
        return compute + steps * self._reduce_seconds(role)

    @property
    def _is_fp8(self) -> bool:
        return self.run.config.model.fp8 is not Fp8.none

    def _recomputed_passes(self, role: Role) -> float:
        """Return the work that recomputation adds, in forward passes."""
        recompute, shape = self.run.config.model.recompute, self.run.settings
        if recompute is Recompute.mlp:
            mlp = 3 * shape.num_layers * shape.hidden_size * shape.ffn_hidden_size
            return mlp / ModelFlops(shape, role).weights
        return float(recompute is Recompute.full)

    def _compute_seconds(
        self, role: Role, rollouts: int, rate: float, forward_passes: float, exposed: float, steps: int
    ) -> float:
        """Return the seconds of `forward_passes` passes over all rollouts in `steps` steps.

        In each step a data-parallel rank computes at least one sequence, and the step lasts as long as the longest one.
        `exposed` is the share of a step's exposed communication.
        """
        run, layout, workload = self.run, self.run.layout, self.workload

        def response_seconds(length: int) -> float:
            return self._sequence_seconds(role, workload.prompt + length, rate, forward_passes, exposed)

        rank_rollouts = rollouts / layout.data
        tokens = rank_rollouts * (workload.prompt + workload.mean)
        micro_batches = max(1.0, tokens / steps / run.models[role].tokens)
        bubble = 1 + (layout.pipeline - 1) / micro_batches
        balanced = rank_rollouts * workload.average(response_seconds) * bubble * self._last_stage_factor(role)
        return max(balanced, steps * response_seconds(max(workload.lengths)) * layout.pipeline)

    def _last_stage_factor(self, role: Role) -> float:
        """Return the time of the last pipeline stage, which has the output layer, relative to the mean."""
        stages, flops = self.run.layout.pipeline, ModelFlops(self.run.settings, role)
        outputs = flops.outputs * self.run.settings.hidden_size / flops.weights
        return 1 + (stages - 1) * outputs

    def _sequence_seconds(self, role: Role, tokens: int, rate: float, forward_passes: float, exposed: float) -> float:
        """Return the seconds of one sequence on one data-parallel rank with all its pipeline stages busy."""
        run, layout = self.run, self.run.layout
        ranks = layout.tensor * layout.pipeline * layout.context
        speed = rate * rates.CONTEXT_PARALLEL_SPEED ** math.log2(layout.context)
        flops = ModelFlops(run.settings, role).forward([tokens]) * forward_passes
        values = tokens / layout.context * run.settings.num_layers / layout.pipeline * run.settings.hidden_size
        from_other_ranks = (layout.tensor - 1) / layout.tensor * (1 + self._recomputed_passes(role) / 3)
        return (
            flops / speed / ranks + exposed * rates.EXPOSED_SECONDS_PER_VALUE[self._is_fp8] * values * from_other_ranks
        )

    def _reduce_seconds(self, role: Role) -> float:
        """Return the seconds to reduce gradients and gather weights once per step. Half of it overlaps the passes."""
        run, layout = self.run, self.run.layout
        if layout.optimizer_ranks == 1:
            return 0.0
        state = run.state(role)
        crosses_nodes = layout.optimizer_ranks * layout.tensor > run.machine.gpus_per_node
        speed = rates.REDUCE_BYTES_PER_SECOND["network" if crosses_nodes else "node"]
        return (state["gradients"] + state["weights"]) / speed / 2

    def iteration_seconds(self) -> float:
        return sum(self.phase_seconds().values())

    def save_seconds(self) -> float:
        """Return the seconds to write a checkpoint."""
        return host.checkpoint_bytes(self.run) / (self.workload.storage_gbs * 1e9)

    @property
    def save_iterations(self) -> list[int]:
        """The iterations after which a checkpoint is saved. 0 is the start."""
        count, every = self.run.config.loop.iterations, self.run.config.checkpoint.every
        return sorted({0, count, *range(0, count + 1, every)})

    def candidate_counts(self) -> list[int]:
        """Return how many candidates each choice of the best checkpoint scores.

        These are the present policy, the newest kept checkpoints, the best one (assumed to be older), and those of
        `checkpoint.keep_every`.
        """
        config, saves = self.run.config.checkpoint, self.save_iterations
        counts = []
        for number in range(len(saves)):
            older = saves[: max(0, number - (config.keep - 1))]
            multiples = [save for save in older if config.keep_every and save and save % config.keep_every == 0]
            counts.append(1 + number - len(older) + min(len(older), len(multiples) + 1))
        return counts

    def selection_seconds(self) -> float:
        """Return the seconds of all choices of the best checkpoint: sampling candidates, and the critic's passes."""
        config = self.run.config
        # The critic scores the prompts that the policy adapts to. Without either, labeled accuracy alone decides.
        critic_scores = "critic" in self.run.models and config.policy.learns_from is not LearnsFrom.labeled
        unlabeled = critic_scores * config.checkpoint.selection_prompts * config.checkpoint.selection_samples
        labeled = config.calibration.questions * config.checkpoint.selection_samples
        seconds = len(self.save_iterations) * self.generate_seconds(labeled + unlabeled)
        if critic_scores:
            passes = sum(self._pass_seconds("critic", count * unlabeled) for count in self.candidate_counts())
            seconds += passes / rates.RUN_SPEED
        return seconds

    def critic_start_seconds(self) -> float:
        """Return the seconds of the critic start."""
        config = self.run.config
        rollouts = config.stages.critic_start.prompts * config.loop.samples_per_prompt
        learning = self._pass_seconds("critic", rollouts) + self.training_seconds("critic", rollouts, config.critic)
        iteration = self._collect_seconds(rollouts, 0) + learning / rates.RUN_SPEED
        return config.stages.critic_start.iterations * iteration

    def evaluation_seconds(self) -> float:
        """Return the seconds of all evaluations, at both ends and between them.

        Those between the ends may have fewer questions (`evaluation.questions`).
        """
        config, questions = self.run.config.evaluation, self.workload.questions
        sets = bool(self.run.config.data.unlabeled) + bool(self.run.config.data.held_out)
        questions_between = min(questions, config.questions * max(1, sets)) if config.questions else questions
        between = max(0, self.run.config.loop.iterations - 1) // config.every if config.every else 0
        ends = 2 * self.generate_seconds(questions * (config.final_samples or config.samples))
        return ends + between * self.generate_seconds(questions_between * config.samples)

    def run_seconds(self) -> dict[str, float]:
        """Return the seconds of the run by activity. Every iteration is assumed to have an E-step."""
        config = self.run.config
        count = config.loop.iterations
        measured_rollouts = config.calibration.questions * config.calibration.samples
        seconds = {"iterations": count * self.iteration_seconds(), "evaluation": self.evaluation_seconds()}
        if measured_rollouts:
            seconds["measuring the critic"] = (
                count // config.calibration.every * self.generate_seconds(measured_rollouts)
            )
        if config.checkpoint.select_best:
            seconds["choosing the best"] = self.selection_seconds()
        if "critic" in self.run.models and config.stages.critic_start.iterations:
            seconds["critic start"] = self.critic_start_seconds()
        seconds["checkpoints"] = len(self.save_iterations) * self.save_seconds()
        return seconds

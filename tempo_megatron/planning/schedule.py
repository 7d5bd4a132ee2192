"""Estimates the seconds of each phase of an iteration, and of the whole run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tempo_megatron.algorithms.methods import method
from tempo_megatron.config import CriticConfig, CriticTraining, LearnsFrom, PolicyConfig
from tempo_megatron.conversion.mapping import Role
from tempo_megatron.planning import host, rates
from tempo_megatron.planning.decoding import Decoding
from tempo_megatron.planning.flops import ModelFlops
from tempo_megatron.planning.model_time import ModelTime
from tempo_megatron.planning.partial_rollouts import PartialCall, typical_calls
from tempo_megatron.planning.phases import PlannedRun, total_bytes
from tempo_megatron.planning.rollout_counts import RolloutCounts
from tempo_megatron.planning.workload import Workload


@dataclass(frozen=True)
class Schedule:
    """Estimates the times of a run under a workload, from the rates of `rates.py`."""

    run: PlannedRun
    workload: Workload

    @property
    def rollouts(self) -> RolloutCounts:
        """The numbers of rollouts of an iteration."""
        return RolloutCounts(self.run.config)

    def phase_seconds(self) -> dict[str, float]:
        """Return the seconds of each phase of an iteration with an E-step.

        `moving` is the transfer of state between GPUs and host memory.
        """
        config = self.run.config
        steps = config.loop.m_steps
        further_steps = (steps - 1) * self._collect_seconds(self.rollouts.labeled_per_step, self.rollouts.unlabeled)
        phases = {"generate": self._collect_seconds(self.rollouts.labeled, self.rollouts.unlabeled) + further_steps}
        if self.rollouts.has_e_step:
            passes = self._pass_seconds("critic", self.rollouts.labeled)
            phases["e_step"] = passes + self.training_seconds("critic", self.rollouts.labeled, config.critic)
        passes = self._pass_seconds("policy", self.rollouts.trained) * len(self._scoring_models)
        if "values" in method(config.method).needs:
            passes += self._pass_seconds("critic", self.rollouts.trained)
        phases["advantages"] = steps * passes
        if config.critic.training is CriticTraining.returns:
            phases["e_step"] = steps * self.training_seconds("critic", self.rollouts.trained, config.critic)
        phases["m_step"] = steps * self.training_seconds("policy", self.rollouts.trained, config.policy)
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
        """Return the seconds of one collection of rollouts: a generate call, and one for each refill round.

        Labeled rollouts always finish, so that a call with any of them lasts as long as their longest.
        """
        pauses = self.run.config.loop.partial_rollouts and not labeled
        first = self.partial_generate_seconds() if pauses else self.generate_seconds(labeled + unlabeled)
        return first + sum(map(self.generate_seconds, self.rollouts.refills(labeled, self.workload.uniform_share)))

    def partial_generate_seconds(self) -> float:
        """Return the mean seconds of a generate call with `loop.partial_rollouts`, without labeled rollouts."""
        calls = typical_calls(self.run.config.loop, self.workload)
        return sum(map(self.partial_call_seconds, calls)) / len(calls)

    def partial_call_seconds(self, call: PartialCall) -> float:
        """Return the seconds of a generate call that pauses.

        What pauses leaves its place to what goes on, so that a mean number of sequences is live in every step.
        """
        run, decoding = self.run, Decoding(self.run, self.workload)
        if not decoding.slots:
            return math.inf
        tokens = call.tokens * run.layout.replica / run.machine.gpus
        steps = max(call.steps, math.ceil(tokens / decoding.slots))
        if not steps:
            return 0.0
        seconds = steps * decoding.step_seconds(round(tokens / steps), round(decoding.mean_tokens))
        return seconds + self._resuming_seconds(call)

    def _resuming_seconds(self, call: PartialCall) -> float:
        """Return the seconds in which all replicas read what continued responses have: a sync empties their caches."""
        if not call.resumed:
            return 0.0
        mean_tokens = round(call.resumed_tokens / call.resumed)
        flops = call.resumed * ModelFlops(self.run.settings, "policy").forward([mean_tokens])
        return flops / rates.PASS_FLOPS["policy", False] / self.run.machine.gpus

    def generate_seconds(self, requests: int) -> float:
        """Return the seconds until this many responses are generated."""
        return Decoding(self.run, self.workload).time(requests).seconds

    def _pass_seconds(self, role: Role, rollouts: int) -> float:
        return ModelTime(self.run, self.workload, role).pass_seconds(rollouts)

    def training_seconds(self, role: Role, rollouts: int, settings: PolicyConfig | CriticConfig) -> float:
        """Return the seconds of a model's optimizer steps on this many rollouts."""
        return ModelTime(self.run, self.workload, role).training_seconds(rollouts, settings)

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
            seconds += sum(self._pass_seconds("critic", count * unlabeled) for count in self.candidate_counts())
        return seconds

    def critic_start_seconds(self) -> float:
        """Return the seconds of the critic start."""
        config = self.run.config
        rollouts = config.stages.critic_start.prompts * config.loop.samples_per_prompt
        learning = self._pass_seconds("critic", rollouts) + self.training_seconds("critic", rollouts, config.critic)
        return config.stages.critic_start.iterations * (self._collect_seconds(rollouts, 0) + learning)

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

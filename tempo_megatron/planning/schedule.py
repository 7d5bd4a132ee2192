"""Seconds of each phase of an iteration, and of the whole run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tempo_megatron.algorithms.methods import method
from tempo_megatron.config import CriticConfig, CriticTraining, Fp8, LearnsFrom, PolicyConfig, Recompute
from tempo_megatron.conversion.mapping import Role
from tempo_megatron.planning import host, rates
from tempo_megatron.planning.phases import PlannedRun, total
from tempo_megatron.planning.work import Work

_QUANTILES = 16


@dataclass(frozen=True)
class Load:
    """What nobody can read off a recipe.

    `lengths`: tokens of responses, as equally likely values; `prompt`: those of a prompt. `questions`: how many are
    evaluated each time. `storage_gbs`: GB/s that all nodes together write. `uniform_share`: of labeled prompts, those
    whose responses all score alike.
    """

    lengths: tuple[int, ...]
    prompt: int = 256
    questions: int = 300
    storage_gbs: float = 2.0
    uniform_share: float = 0.5

    @classmethod
    def uniform(cls, mean: int, most: int, **others: Any) -> Load:
        """Responses between 0 and twice the mean, cut at the most there may be."""
        drawn = (2 * mean * (at + 0.5) / _QUANTILES for at in range(_QUANTILES))
        return cls(tuple(max(1, min(most, round(length))) for length in drawn), **others)

    @property
    def mean(self) -> float:
        return self.average(lambda length: length)

    def average(self, of: Callable[[int], float]) -> float:
        """Over responses, of a figure of one's length."""
        return sum(map(of, self.lengths)) / len(self.lengths)


@dataclass(frozen=True)
class Schedule:
    """Times of a run under a load, from the rates of `rates.py`."""

    run: PlannedRun
    load: Load

    @property
    def labeled(self) -> int:
        """Labeled rollouts that an iteration begins with."""
        loop = self.run.config.loop
        return loop.e_steps * self._labeled_batch if self._calibrates else self.labeled_of_a_step

    @property
    def labeled_of_a_step(self) -> int:
        """Labeled rollouts of each policy step after the first, which are generated for it alone."""
        wanted = self.run.config.policy.learns_from is not LearnsFrom.unlabeled
        return wanted * self._labeled_batch

    @property
    def _labeled_batch(self) -> int:
        loop = self.run.config.loop
        return loop.labeled_prompts * loop.samples_per_prompt

    @property
    def unlabeled(self) -> int:
        """Unlabeled rollouts of a policy step, those that only vote included."""
        loop = self.run.config.loop
        wanted = self.run.config.policy.learns_from is not LearnsFrom.labeled
        return wanted * loop.unlabeled_prompts * max(loop.samples_per_prompt, loop.votes_per_prompt)

    @property
    def learned(self) -> int:
        """Rollouts that an M-step learns from."""
        loop, source = self.run.config.loop, self.run.config.policy.learns_from
        unlabeled = (source is not LearnsFrom.labeled) * loop.unlabeled_prompts * loop.samples_per_prompt
        return self.labeled_of_a_step + unlabeled

    @property
    def _calibrates(self) -> bool:
        return self.run.config.critic.training is CriticTraining.calibrated

    def phases(self) -> dict[str, float]:
        """Seconds of each phase of an iteration that calibrates; `moving` is state between GPUs and host memory."""
        config = self.run.config
        steps = config.loop.m_steps
        further = (steps - 1) * self._collecting(self.labeled_of_a_step, self.unlabeled)
        found = {"generate": self._collecting(self.labeled, self.unlabeled) + further}
        if self._calibrates:
            reads = self._passing("critic", self.labeled)
            found["e_step"] = reads + self.learning("critic", self.labeled, config.critic)
        reads = self._passing("policy", self.learned) * len(self._readers)
        if "values" in method(config.method).needs:
            reads += self._passing("critic", self.learned)
        found["advantages"] = steps * reads
        if config.critic.training is CriticTraining.returns:
            found["e_step"] = steps * self.learning("critic", self.learned, config.critic)
        found["m_step"] = steps * self.learning("policy", self.learned, config.policy)
        for phase in {"e_step", "advantages", "m_step"}.intersection(found):
            found[phase] /= rates.SPEED_IN_A_RUN
        found["sync"] = steps * (self._sync_seconds + rates.SWITCH_SECONDS)
        found["moving"] = self._moving
        return found

    @property
    def _readers(self) -> list[str]:
        """Models whose log-probs are read."""
        return [name for name in ("policy", "reference") if name in self.run.models]

    @property
    def _sync_seconds(self) -> float:
        return self.run.engine.weights / rates.SYNC_BYTES

    @property
    def _moving(self) -> float:
        """Each model goes to the host and comes back once an iteration."""
        return 2 * total(host.pinned(self.run)) / rates.HOST_BYTES

    def _collecting(self, labeled: int, unlabeled: int) -> float:
        """Seconds of one collection of rollouts: a generate call, and one for each round that replaces prompts."""
        return self.generating(labeled + unlabeled) + sum(map(self.generating, self.refills(labeled)))

    def refills(self, labeled: int) -> list[int]:
        """Rollouts of each round that looks for other prompts in the place of those whose responses all score alike."""
        loop = self.run.config.loop
        prompts = labeled / loop.samples_per_prompt if loop.drop_uniform_prompts else 0.0
        left = [round(prompts * self.load.uniform_share**number) for number in range(1, loop.refill_tries + 1)]
        return [count * loop.samples_per_prompt for count in left if count]

    def generating(self, requests: int) -> float:
        """Seconds until so many responses are there."""
        if not requests:
            return 0.0
        run, engine, load = self.run, self.run.engine, self.load
        bandwidth = rates.decode_bytes(run.machine.gpu_gb)
        mine = requests * run.layout.replica / run.machine.gpus
        held = load.prompt + load.average(lambda length: length**2) / (2 * load.mean)
        together = min(mine, engine.together(held))
        if not together:
            return math.inf
        longest = max(load.lengths)
        steps = max(longest, mine * load.mean / together + (longest - load.mean) / 2)
        products = engine.weights * together / rates.PASS_FLOPS["policy", False]
        reduced = 2 * run.settings.num_layers * rates.DECODE_REDUCE_SECONDS * (run.layout.replica > 1)
        step = rates.DECODE_STEP_SECONDS + reduced + max(engine.weights / bandwidth, products)
        read = load.average(lambda length: length * engine.sequence(load.prompt + length // 2))
        return steps * step + mine * read / bandwidth

    def _passing(self, role: Role, rollouts: int) -> float:
        rate = rates.PASS_FLOPS[role, self._eight_bits]
        return self._computing(role, rollouts, rate, 1, rates.EXPOSED_OF_A_PASS, 1)

    def learning(self, role: Role, rollouts: int, settings: PolicyConfig | CriticConfig) -> float:
        """Seconds of the optimizer steps on so many rollouts."""
        steps = settings.mini_batches * settings.epochs
        rate = rates.STEP_FLOPS[role, self._eight_bits]
        work = 3 + self._again(role)
        whole = self._computing(role, rollouts * settings.epochs, rate, work, 1.0, steps)
        return whole + steps * self._reducing(role)

    @property
    def _eight_bits(self) -> bool:
        return self.run.config.model.fp8 is not Fp8.none

    def _again(self, role: Role) -> float:
        """What recomputation adds, in forward passes."""
        recompute, shape = self.run.config.model.recompute, self.run.settings
        if recompute is Recompute.mlp:
            mlp = 3 * shape.num_layers * shape.hidden_size * shape.ffn_hidden_size
            return mlp / Work(shape, role).weights
        return float(recompute is Recompute.full)

    def _computing(self, role: Role, rollouts: int, rate: float, work: float, exposed: float, steps: int) -> float:
        """Seconds of `work` forward passes over all rollouts in so many steps. A data-parallel rank does at least one
        sequence of each, and as long as the longest takes."""
        run, layout, load = self.run, self.run.layout, self.load

        def one(length: int) -> float:
            return self._sequence(role, load.prompt + length, rate, work, exposed)

        mine = rollouts / layout.data
        micro_batches = max(1.0, mine * (load.prompt + load.mean) / steps / run.models[role].tokens)
        bubble = 1 + (layout.pipeline - 1) / micro_batches
        balanced = mine * load.average(one) * bubble * self._uneven(role)
        return max(balanced, steps * one(max(load.lengths)) * layout.pipeline)

    def _uneven(self, role: Role) -> float:
        """What the last pipeline stage takes, which has the output layer beside its layers, over the mean."""
        stages, work = self.run.layout.pipeline, Work(self.run.settings, role)
        outputs = work.outputs * self.run.settings.hidden_size / work.weights
        return 1 + (stages - 1) * outputs

    def _sequence(self, role: Role, tokens: int, rate: float, work: float, exposed: float) -> float:
        """Seconds of a sequence on the ranks of one data-parallel rank, its pipeline stages all busy."""
        run, layout = self.run, self.run.layout
        ranks = layout.tensor * layout.pipeline * layout.context
        speed = rate * rates.CONTEXT ** math.log2(layout.context)
        flops = Work(run.settings, role).forward([tokens]) * work
        values = tokens / layout.context * run.settings.num_layers / layout.pipeline * run.settings.hidden_size
        shared = (layout.tensor - 1) / layout.tensor * (1 + self._again(role) / 3)
        return flops / speed / ranks + exposed * rates.EXPOSED_A_VALUE[self._eight_bits] * values * shared

    def _reducing(self, role: Role) -> float:
        """Gradients reduced and weights gathered once a step; half of it runs beside the passes."""
        run, layout = self.run, self.run.layout
        if layout.optimizer_ranks == 1:
            return 0.0
        state = run.state(role)
        beyond = layout.optimizer_ranks * layout.tensor > run.machine.gpus_per_node
        speed = rates.REDUCE_BYTES["network" if beyond else "node"]
        return (state["gradients"] + state["weights"]) / speed / 2

    def iteration(self) -> float:
        return sum(self.phases().values())

    def saving(self) -> float:
        """Seconds of a checkpoint."""
        return host.checkpoint(self.run) / (self.load.storage_gbs * 1e9)

    @property
    def saves(self) -> list[int]:
        """The iterations after which a checkpoint is saved; 0 is the start."""
        count, every = self.run.config.loop.iterations, self.run.config.checkpoint.every
        return sorted({0, count, *range(0, count + 1, every)})

    def candidates(self) -> list[int]:
        """Of each choice of the best checkpoint how many are scored: the present policy, the newest that are kept, the
        best, taken to be older, and those of `checkpoint.keep_every`."""
        config, saves = self.run.config.checkpoint, self.saves
        scored = []
        for number in range(len(saves)):
            older = saves[: max(0, number - (config.keep - 1))]
            multiples = [save for save in older if config.keep_every and save and save % config.keep_every == 0]
            scored.append(1 + number - len(older) + min(len(older), len(multiples) + 1))
        return scored

    def choosing(self) -> float:
        """Seconds of all choices of the best checkpoint: sampling each candidate, and the critic's passes."""
        config = self.run.config
        # A critic values what the policy adapts to; without either labeled accuracy alone decides.
        valued = "critic" in self.run.models and config.policy.learns_from is not LearnsFrom.labeled
        unlabeled = valued * config.checkpoint.selection_prompts * config.checkpoint.selection_samples
        labeled = config.calibration.questions * config.checkpoint.selection_samples
        seconds = len(self.saves) * self.generating(labeled + unlabeled)
        if valued:
            passes = sum(self._passing("critic", scored * unlabeled) for scored in self.candidates())
            seconds += passes / rates.SPEED_IN_A_RUN
        return seconds

    def starting(self) -> float:
        """Seconds of the critic start."""
        config = self.run.config
        rollouts = config.stages.critic_start.prompts * config.loop.samples_per_prompt
        learning = self._passing("critic", rollouts) + self.learning("critic", rollouts, config.critic)
        one = self._collecting(rollouts, 0) + learning / rates.SPEED_IN_A_RUN
        return config.stages.critic_start.iterations * one

    def evaluating(self) -> float:
        """Seconds of all evaluations: both ends, and those between them, of fewer questions where that is set."""
        config, questions = self.run.config.evaluation, self.load.questions
        sets = bool(self.run.config.data.unlabeled) + bool(self.run.config.data.held_out)
        part = min(questions, config.questions * max(1, sets)) if config.questions else questions
        between = max(0, self.run.config.loop.iterations - 1) // config.every if config.every else 0
        ends = 2 * self.generating(questions * (config.final_samples or config.samples))
        return ends + between * self.generating(part * config.samples)

    def whole(self) -> dict[str, float]:
        """Seconds of the run, by what they are spent on; every iteration is taken to calibrate."""
        config = self.run.config
        count = config.loop.iterations
        measured = config.calibration.questions * config.calibration.samples
        found = {"iterations": count * self.iteration(), "evaluation": self.evaluating()}
        if measured:
            found["measuring the critic"] = count // config.calibration.every * self.generating(measured)
        if config.checkpoint.select_best:
            found["choosing the best"] = self.choosing()
        if "critic" in self.run.models and config.stages.critic_start.iterations:
            found["critic start"] = self.starting()
        found["checkpoints"] = len(self.saves) * self.saving()
        return found

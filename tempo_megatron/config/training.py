"""The E-step, the M-step, their schedule, and what comes before them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tempo_megatron.config.fields import setting


class Truncated(StrEnum):
    value = "value"
    wrong = "wrong"
    mask = "mask"


class Baseline(StrEnum):
    before_token = "before_token"
    after_token = "after_token"


class Labels(StrEnum):
    graded = "graded"
    shuffled = "shuffled"


class LearnsFrom(StrEnum):
    unlabeled = "unlabeled"
    labeled = "labeled"
    both = "both"


class CriticTraining(StrEnum):
    calibrated = "calibrated"
    returns = "returns"
    frozen = "frozen"
    none = "none"

    @property
    def learns(self) -> bool:
        """Whether iterations teach the critic; a frozen one may have learned in the critic start."""
        return self in (CriticTraining.calibrated, CriticTraining.returns)


class PolicyLoss(StrEnum):
    gspo = "gspo"
    ppo = "ppo"


class AverageOver(StrEnum):
    sequences = "sequences"
    tokens = "tokens"
    constant = "constant"


class Order(StrEnum):
    critic_first = "critic_first"
    values_first = "values_first"


class GateOn(StrEnum):
    auroc = "auroc"
    auroc_within_prompts = "auroc_within_prompts"


class LearningRateSchedule(StrEnum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class ScheduleUnit(StrEnum):
    optimizer_step = "optimizer_step"
    batch = "batch"


class TargetRange(StrEnum):
    zero_one = "zero_one"
    minus_one_one = "minus_one_one"

    @property
    def wrong(self) -> float:
        """The target of a wrong answer; that of a right one is 1."""
        return 0.0 if self is TargetRange.zero_one else -1.0

    def to(self, other: TargetRange) -> tuple[float, float]:
        """(scale, offset) with which a value of this range, scale * value + offset, is one of the other."""
        scale = (1 - other.wrong) / (1 - self.wrong)
        return scale, other.wrong - scale * self.wrong


@dataclass
class OptimizerConfig:
    learning_rate: float = setting(1e-6, "Adam's step size after warm-up", at_least=0)
    schedule: LearningRateSchedule = setting(
        LearningRateSchedule.constant, "how the step size goes from there: constant, or linear or cosine decay"
    )
    schedule_unit: ScheduleUnit = setting(
        ScheduleUnit.optimizer_step,
        "what the next settings count: optimizer steps, or batches, each the optimizer steps of one E-step or M-step",
    )
    warmup_steps: int = setting(0, "units over which the step size rises from 0", at_least=0)
    warmup_share: float = setting(
        0.0, "warm-up as a share of decay_steps, rounded down to a unit, instead of warmup_steps", at_least=0, below=1
    )
    decay_steps: int = setting(0, "units, warm-up included, after which a decay has reached its end", at_least=0)
    minimum_learning_rate: float = setting(0.0, "step size at the end of a decay and after it", at_least=0)
    weight_decay: float = setting(0.0, "decoupled weight decay; norms and biases have none", at_least=0)
    beta1: float = setting(0.9, "Adam's decay of the first moment", at_least=0, below=1)
    beta2: float = setting(0.999, "Adam's decay of the second moment", at_least=0, below=1)
    epsilon: float = setting(1e-8, "Adam's denominator offset", above=0)
    gradient_clip: float = setting(1.0, "largest global gradient norm; larger ones are scaled down to it", above=0)


@dataclass
class CriticConfig:
    training: CriticTraining = setting(
        CriticTraining.calibrated,
        "what the critic learns: correctness of labeled rollouts, the policy step's returns, nothing any more "
        "(frozen); none: there is no critic",
    )
    optimizer: OptimizerConfig = setting(OptimizerConfig(), "the critic's optimizer")
    labels: Labels = setting(Labels.graded, "target of calibration; `shuffled` is a control of an experiment")
    checkpoint: str = setting(
        "", "directory of a checkpoint whose critic this one starts from; empty: model.hf_path and a fresh value head"
    )
    target_range: TargetRange = setting(TargetRange.zero_one, "targets of a wrong and a right answer: 0, 1 or -1, 1")
    value_clip: float = setting(
        0.0, "a value gains nothing by moving farther than this in one update; 0: unlimited", at_least=0
    )
    mini_batches: int = setting(4, "optimizer steps that one epoch over the critic's rollouts is cut into", at_least=1)
    epochs: int = setting(1, "passes over an iteration's rollouts", at_least=1)
    micro_batch_tokens: int = setting(
        0,
        "tokens of one forward pass, over the CP ranks that share it; 0: those of the longest sequence there can be",
        at_least=0,
    )


@dataclass
class PolicyConfig:
    learns_from: LearnsFrom = setting(LearnsFrom.unlabeled, "rollouts that train the policy: unlabeled, labeled, both")
    optimizer: OptimizerConfig = setting(OptimizerConfig(), "the policy's optimizer")
    checkpoint: str = setting("", "directory of a checkpoint whose policy this one starts from; empty: model.hf_path")
    mini_batches: int = setting(4, "optimizer steps that one epoch over the policy's rollouts is cut into", at_least=1)
    epochs: int = setting(1, "passes over an iteration's rollouts", at_least=1)
    micro_batch_tokens: int = setting(
        0,
        "tokens of one forward pass, over the CP ranks that share it; 0: those of the longest sequence there can be",
        at_least=0,
    )
    loss: PolicyLoss = setting(PolicyLoss.gspo, "gspo clips a ratio a sequence, ppo one a token")
    average_over: AverageOver = setting(
        AverageOver.sequences,
        "the loss is a mean over sequences of means over their tokens (as published, biased by their lengths), a mean "
        "over tokens, or a mean over sequences of sums over a constant, generation.max_response_tokens (unbiased)",
    )
    clip_range_low: float = setting(3e-4, "the ratio is clipped below at 1 - clip_range_low", above=0)
    clip_range_high: float = setting(5e-4, "the ratio is clipped above at 1 + clip_range_high", above=0)
    dual_clip: float = setting(
        0.0,
        "bound, as a multiple above 1 of a negative advantage, on what a large ratio makes of it; 0: none",
        at_least=0,
    )
    kl_coefficient: float = setting(
        0.0,
        "weight of KL(policy || policy at the first iteration); above 0 a third model is held",
        at_least=0,
    )
    entropy_coefficient: float = setting(0.0, "weight of the entropy bonus", at_least=0)
    importance_cap: float = setting(
        0.0,
        "weight tokens by min(p_trainer / p_generator, this): truncated importance sampling; 0: no weights",
        at_least=0,
    )
    baseline: Baseline = setting(
        Baseline.before_token, "value that token t's advantage subtracts: V(x, y_<t), unbiased, or V(x, y_<=t), literal"
    )
    gamma: float = setting(1.0, "gamma of generalized advantages, a token", at_least=0, at_most=1)
    gae_lambda: float = setting(1.0, "lambda of generalized advantages", at_least=0, at_most=1)
    whiten_advantages: bool = setting(
        False, "shift and scale the batch's advantages to mean 0 and variance 1 over tokens"
    )
    truncated: Truncated = setting(
        Truncated.value, "reward of a response cut at the limit: as of any other, that of a wrong answer, or left out"
    )


@dataclass
class LoopConfig:
    iterations: int = setting(100, "iterations: E-steps and M-steps as below; 0 ends after the stages", at_least=0)
    labeled_prompts: int = setting(
        128, "labeled prompts of an E-step, or of a policy step that learns from them", at_least=1
    )
    unlabeled_prompts: int = setting(128, "unlabeled prompts of an M-step", at_least=1)
    samples_per_prompt: int = setting(8, "responses a prompt", at_least=1)
    votes_per_prompt: int = setting(
        0,
        "responses that vote on an unlabeled prompt's answer, the first samples_per_prompt train; 0: those alone",
        at_least=0,
    )
    e_steps: int = setting(1, "E-steps of an iteration that recalibrates, each on prompts of its own", at_least=1)
    m_steps: int = setting(1, "M-steps an iteration, each on rollouts of the policy that the last one made", at_least=1)
    e_step_interval: int = setting(1, "iterations from one E-step to the next", at_least=1)
    order: Order = setting(
        Order.critic_first, "values_first reads the M-step's values before the E-step moves the critic"
    )
    drop_uniform_prompts: bool = setting(False, "replace labeled prompts whose responses are all right or all wrong")
    refill_tries: int = setting(10, "rounds of sampling that look for their replacements", at_least=0)
    gate: float = setting(
        0.0,
        "the policy waits while the critic's AUROC on questions set aside (`calibration`) is below this; 0: never",
        at_least=0,
        below=1,
    )
    gate_on: GateOn = setting(GateOn.auroc_within_prompts, "over all pairs of rollouts, or those of one prompt")


@dataclass
class WarmStartConfig:
    steps: int = setting(
        0, "supervised steps on data.warm_start before anything else; 0 leaves the policy as it is", at_least=0
    )
    batch_size: int = setting(64, "examples a step", at_least=1)
    optimizer: OptimizerConfig = setting(OptimizerConfig(), "the optimizer of the warm start, dropped after it")


@dataclass
class CriticStartConfig:
    iterations: int = setting(0, "E-steps on labeled prompts alone before the first M-step", at_least=0)
    prompts: int = setting(128, "labeled prompts of each", at_least=1)


@dataclass
class StagesConfig:
    warm_start: WarmStartConfig = setting(WarmStartConfig(), "supervised warm start of the policy")
    critic_start: CriticStartConfig = setting(CriticStartConfig(), "labeled-only calibration of the critic")

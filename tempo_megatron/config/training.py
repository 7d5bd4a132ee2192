"""Settings of the E-step, the M-step, their schedule, and the stages before them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from tempo_megatron.config.fields import setting
from tempo_megatron.config.methods import ScrlConfig, TrapoConfig


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
        """Whether iterations train the critic. A frozen critic may have been trained in the critic start."""
        return self in (CriticTraining.calibrated, CriticTraining.returns)


class PolicyLoss(StrEnum):
    gspo = "gspo"
    ppo = "ppo"


class AverageOver(StrEnum):
    sequences = "sequences"
    tokens = "tokens"
    constant = "constant"


class ImportanceWeight(StrEnum):
    none = "none"
    token = "token"
    sequence = "sequence"
    geometric_mean = "geometric_mean"


class ReplayedRoutes(StrEnum):
    none = "none"
    generator = "generator"
    old_log_probs = "old_log_probs"


class Rejection(StrEnum):
    none = "none"
    token = "token"
    any_token = "any_token"
    sequence = "sequence"
    geometric_mean = "geometric_mean"


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
        """The target of a wrong answer. The target of a right answer is 1."""
        return 0.0 if self is TargetRange.zero_one else -1.0

    def to(self, other: TargetRange) -> tuple[float, float]:
        """Returns (scale, offset) such that scale * value + offset maps a value of this range to the other range."""
        scale = (1 - other.wrong) / (1 - self.wrong)
        return scale, other.wrong - scale * self.wrong


@dataclass
class OptimizerConfig:
    learning_rate: float = setting(1e-6, "Adam's learning rate after warm-up", at_least=0)
    schedule: LearningRateSchedule = setting(
        LearningRateSchedule.constant, "schedule of the learning rate after warm-up: constant, linear or cosine decay"
    )
    schedule_unit: ScheduleUnit = setting(
        ScheduleUnit.optimizer_step,
        "unit of warmup_steps and decay_steps: optimizer_step, or batch, the optimizer steps of one E-step or M-step",
    )
    warmup_steps: int = setting(0, "units over which the learning rate rises from 0", at_least=0)
    warmup_share: float = setting(
        0.0, "warm-up as a share of decay_steps, rounded down, instead of warmup_steps", at_least=0, below=1
    )
    decay_steps: int = setting(0, "units until a decay ends, warm-up included", at_least=0)
    minimum_learning_rate: float = setting(0.0, "learning rate at the end of a decay and after it", at_least=0)
    weight_decay: float = setting(0.0, "decoupled weight decay of all parameters but norms and biases", at_least=0)
    beta1: float = setting(0.9, "Adam's decay of the first moment", at_least=0, below=1)
    beta2: float = setting(0.999, "Adam's decay of the second moment", at_least=0, below=1)
    epsilon: float = setting(1e-8, "constant that Adam adds to its denominator", above=0)
    gradient_clip: float = setting(1.0, "largest global gradient norm; larger gradients are scaled down to it", above=0)


@dataclass
class CriticConfig:
    training: CriticTraining = setting(
        CriticTraining.calibrated,
        "what the critic learns: calibrated (correctness of labeled rollouts), returns (those of the policy step), "
        "frozen (nothing in iterations); none: there is no critic",
    )
    optimizer: OptimizerConfig = setting(OptimizerConfig(), "the critic's optimizer")
    labels: Labels = setting(
        Labels.graded, "targets of calibration: graded, or shuffled among rollouts as a control experiment"
    )
    checkpoint: str = setting(
        "", "checkpoint directory that the critic starts from; empty: the policy's start, with a new value head"
    )
    target_range: TargetRange = setting(
        TargetRange.zero_one, "targets of a wrong and a right answer: zero_one or minus_one_one"
    )
    aux_loss_coefficient: float = setting(
        0.0,
        "for models with experts: weight of the load-balancing loss of the critic's routers, the mean over "
        "micro-batches of one that is 1 if all experts are alike; 0: no such loss",
        at_least=0,
    )
    value_clip: float = setting(
        0.0, "the value loss clips a value's change within one update to this distance; 0: no clip", at_least=0
    )
    mini_batches: int = setting(4, "optimizer steps of one epoch over the critic's rollouts", at_least=1)
    epochs: int = setting(1, "epochs over an iteration's rollouts", at_least=1)
    micro_batch_tokens: int = setting(
        0,
        "tokens of one forward pass, counted over its CP ranks; 0: those of the longest possible sequence",
        at_least=0,
    )


@dataclass
class RolloutCorrectionConfig:
    weight: ImportanceWeight = setting(
        ImportanceWeight.none,
        "ratio p_trainer / p_generator that weights a token's loss: none (the weight is 1), token (its own), sequence "
        "(the product over its response), geometric_mean (that product to the power 1 / tokens)",
    )
    cap: float = setting(
        0.0, "largest weight; larger weights are truncated to it; 0: no cap, else 1 or more", at_least=0
    )
    reject: Rejection = setting(
        Rejection.none,
        "what is left out where a ratio is out of bounds: none, token (tokens, each by its own ratio), or whole "
        "responses: any_token (by their most extreme tokens), sequence (by the product), geometric_mean",
    )
    reject_below: float = setting(0.0, "smallest ratio that is kept; 0: no bound", at_least=0, below=1)
    reject_above: float = setting(0.0, "largest ratio that is kept; 0: no bound, else above 1", at_least=0)

    @property
    def is_active(self) -> bool:
        """Whether the setting changes the loss."""
        return self.weight is not ImportanceWeight.none or self.reject is not Rejection.none


@dataclass
class PolicyConfig:
    learns_from: LearnsFrom = setting(
        LearnsFrom.unlabeled, "rollouts that train the policy: unlabeled, labeled or both"
    )
    optimizer: OptimizerConfig = setting(OptimizerConfig(), "the policy's optimizer")
    checkpoint: str = setting("", "checkpoint directory that the policy starts from; empty: model.hf_path")
    mini_batches: int = setting(4, "optimizer steps of one epoch over the policy's rollouts", at_least=1)
    epochs: int = setting(1, "epochs over an iteration's rollouts", at_least=1)
    micro_batch_tokens: int = setting(
        0,
        "tokens of one forward pass, counted over its CP ranks; 0: those of the longest possible sequence",
        at_least=0,
    )
    loss: PolicyLoss = setting(PolicyLoss.gspo, "policy loss: gspo clips one ratio per sequence, ppo one per token")
    average_over: AverageOver = setting(
        AverageOver.sequences,
        "average of the loss: sequences (mean over sequences of the mean over tokens, as published, biased by length), "
        "tokens (mean over tokens), constant (mean over sequences of the sum over tokens, divided by "
        "generation.max_response_tokens, unbiased)",
    )
    clip_range_low: float = setting(3e-4, "the ratio is clipped below at 1 - clip_range_low", above=0)
    clip_range_high: float = setting(5e-4, "the ratio is clipped above at 1 + clip_range_high", above=0)
    dual_clip: float = setting(
        0.0,
        "largest multiple, above 1, of a negative advantage that a large ratio may cause; 0: no bound",
        at_least=0,
    )
    kl_coefficient: float = setting(
        0.0,
        "weight of KL(policy || policy at the first iteration); above 0 the run holds a third model, the reference",
        at_least=0,
    )
    entropy_coefficient: float = setting(0.0, "weight of the entropy bonus", at_least=0)
    aux_loss_coefficient: float = setting(
        0.0,
        "for models with experts: weight of the load-balancing loss of the policy's routers, the mean over "
        "micro-batches of one that is 1 if all experts are alike; 0: no such loss",
        at_least=0,
    )
    router_replay: ReplayedRoutes = setting(
        ReplayedRoutes.none,
        "for models with experts: the experts that each token of a rollout goes to in the policy's updates and in the "
        "reference: none (those that their routers choose), generator (those of the generator, in the pass of the old "
        "log-probs too), old_log_probs (those that the policy chose in that pass); routers still weight them and learn",
    )
    rollout_correction: RolloutCorrectionConfig = setting(
        RolloutCorrectionConfig(),
        "correction of the difference between the trainer's log-probs and those of the policies that sampled",
    )
    baseline: Baseline = setting(
        Baseline.before_token,
        "baseline of token t's advantage: before_token, V(x, y_<t), which is unbiased, or after_token, V(x, y_<=t)",
    )
    gamma: float = setting(
        1.0, "discount factor gamma per token, of generalized advantage estimation", at_least=0, at_most=1
    )
    gae_lambda: float = setting(1.0, "lambda of generalized advantage estimation", at_least=0, at_most=1)
    whiten_advantages: bool = setting(
        False, "shift and scale the advantages of a batch to mean 0 and variance 1 over tokens"
    )
    truncated: Truncated = setting(
        Truncated.value,
        "reward of a truncated response: value (as any other), wrong (as a wrong answer), mask (it is left out)",
    )
    scrl: ScrlConfig = setting(ScrlConfig(), "labels of method scrl")
    trapo: TrapoConfig = setting(TrapoConfig(), "selection of unlabeled questions by method trapo")


@dataclass
class LoopConfig:
    iterations: int = setting(
        100, "number of iterations of E-steps and M-steps; 0: the run ends after the stages", at_least=0
    )
    labeled_prompts: int = setting(
        128, "labeled prompts of an E-step, or of an M-step that learns from labeled prompts", at_least=1
    )
    unlabeled_prompts: int = setting(128, "unlabeled prompts of an M-step", at_least=1)
    samples_per_prompt: int = setting(8, "responses to a prompt", at_least=1)
    votes_per_prompt: int = setting(
        0,
        "responses that vote on an unlabeled prompt's answer; the first samples_per_prompt of them also train; 0: "
        "samples_per_prompt",
        at_least=0,
    )
    e_steps: int = setting(1, "E-steps of an iteration that has any, each on new prompts", at_least=1)
    m_steps: int = setting(1, "M-steps of an iteration, each on rollouts of the current policy", at_least=1)
    e_step_interval: int = setting(1, "every so many iterations have E-steps", at_least=1)
    partial_rollouts: float = setting(
        0.0,
        "share, from 0.5 to below 1, of the sampled unlabeled prompts that must have all their responses; then the "
        "other responses pause and go on under the next policy; labeled responses always finish, so an iteration with "
        "an E-step saves almost nothing; 0: none pauses",
        at_least=0,
        below=1,
    )
    staleness: int = setting(
        1,
        "largest age of a token that partial rollouts train on, in M-steps since it was sampled; no response pauses "
        "before the prompts with a token of this age have all their responses",
        at_least=1,
    )
    order: Order = setting(
        Order.critic_first,
        "critic that values the M-step's rollouts: critic_first (after the E-step), values_first (before)",
    )
    drop_uniform_prompts: bool = setting(
        False, "replace labeled prompts whose responses are all right or all wrong by others"
    )
    refill_tries: int = setting(10, "largest number of sampling rounds that look for such replacements", at_least=0)
    gate: float = setting(
        0.0,
        "the M-step is skipped while the critic's AUROC on questions set aside (`calibration`) is below this; 0: never",
        at_least=0,
        below=1,
    )
    gate_on: GateOn = setting(
        GateOn.auroc_within_prompts,
        "AUROC of the gate: auroc (over all pairs of rollouts), auroc_within_prompts (over pairs of one prompt)",
    )

    @property
    def prompts_in_flight(self) -> int:
        """The number of prompts with unfinished or untrained responses, carried ones included.

        An M-step learns from the share `partial_rollouts` of them.
        """
        return math.ceil(round(self.unlabeled_prompts / (self.partial_rollouts or 1.0), 6))


@dataclass
class WarmStartConfig:
    steps: int = setting(
        0, "supervised optimizer steps on data.warm_start before all other stages; 0: no warm start", at_least=0
    )
    batch_size: int = setting(64, "examples of a step", at_least=1)
    optimizer: OptimizerConfig = setting(
        OptimizerConfig(), "the optimizer of the warm start; its state is dropped afterwards"
    )


@dataclass
class CriticStartConfig:
    iterations: int = setting(0, "E-steps before the first M-step", at_least=0)
    prompts: int = setting(128, "labeled prompts of each of these E-steps", at_least=1)


@dataclass
class StagesConfig:
    warm_start: WarmStartConfig = setting(WarmStartConfig(), "supervised warm start of the policy")
    critic_start: CriticStartConfig = setting(
        CriticStartConfig(), "calibration of the critic before the first iteration"
    )

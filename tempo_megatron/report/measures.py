"""The metrics that the report draws, with a sentence about each for readers who do not know it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tempo_megatron.report.outcome import SETS
from tempo_megatron.report.words import set_name


@dataclass(frozen=True)
class Measure:
    """A panel that is drawn from metrics as they are."""

    title: str
    meaning: str
    keys: dict[str, str]
    """Line name -> key of metrics.jsonl."""
    share: bool = False
    reference: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Subject:
    """Measures that are read together."""

    title: str
    about: str
    measures: list[Measure] = field(default_factory=list)


ROLLOUTS = "evaluation/unlabeled_rollouts"
_SETS_ASIDE = "labeled questions set aside"
_GUESSING = 0.5

SUBJECTS = (
    Subject(
        "Reward against truth",
        "What the method believed about responses to unlabeled questions, against what was right. Training never sees "
        "the truth; it is measured for this page alone.",
        [
            Measure(
                "Reward less truth",
                "Mean reward less the share of right responses. Above 0 the reward is too optimistic; a growing gap "
                "means that the policy pleases the reward without being right.",
                {"difference": f"{ROLLOUTS}/reward_minus_truth"},
                reference=0.0,
            ),
            Measure(
                "Does the reward favor right responses?",
                "The chance that a right response has a higher reward than a wrong one. 0.5 is guessing, 1 is perfect.",
                {
                    "all responses": f"{ROLLOUTS}/reward_auroc",
                    "same question": f"{ROLLOUTS}/reward_auroc_within_prompts",
                },
                share=True,
                reference=_GUESSING,
            ),
        ],
    ),
    Subject(
        "Critic",
        "The critic predicts whether a response is right. Iterations of 0 and below are its own training before the "
        "policy learns.",
        [
            Measure(
                f"Telling right from wrong, {_SETS_ASIDE}",
                "Of two responses to one question, one right and one wrong: how often the critic prefers the right one "
                "(AUROC within prompts). 0.5 is guessing.",
                {
                    "before the E-step": "calibration/before/auroc_within_prompts",
                    "after the E-step": "calibration/after/auroc_within_prompts",
                },
                share=True,
                reference=_GUESSING,
            ),
            Measure(
                "Telling right from wrong, fresh labeled responses",
                "How often the critic prefers a right response to a wrong one, among the labeled responses that it "
                "is about to learn from. 0.5 is guessing.",
                {"same question": "critic/auroc_within_prompts", "all responses": "critic/auroc"},
                share=True,
                reference=_GUESSING,
            ),
            Measure(
                "Belief and truth, fresh labeled responses",
                "The critic's mean value, and the share of right responses. A calibrated critic has both "
                "at one height.",
                {"critic's mean value": "critic/mean_value", "right responses": "critic/correct"},
            ),
            Measure(
                f"Brier score, {_SETS_ASIDE}",
                "Mean squared distance of value and correctness. 0 is perfect.",
                {"before the E-step": "calibration/before/brier", "after the E-step": "calibration/after/brier"},
            ),
            Measure(
                f"Calibration error, {_SETS_ASIDE}",
                "How far values are from the share of right responses among responses with such values. 0 is perfect.",
                {
                    "before the E-step": "calibration/before/calibration_error",
                    "after the E-step": "calibration/after/calibration_error",
                },
            ),
            Measure(
                "How early the critic knows",
                "AUROC of its value after a part of the response. At 0% it has seen the question alone.",
                {f"{percent}% read": f"critic/auroc_at_{percent:03d}" for percent in (0, 25, 50, 75)},
                share=True,
                reference=_GUESSING,
            ),
            Measure("Critic's loss", "Mean squared error of value and target.", {"loss": "critic/loss"}),
        ],
    ),
    Subject(
        "Policy",
        "The model that is trained, and how its responses change.",
        [
            Measure(
                "Entropy",
                "How undecided the policy is at a token. Near 0 all responses to a question are alike.",
                {"policy": "policy/entropy"},
                unit="nats",
            ),
            Measure(
                "Length of a response",
                "Mean length, in training and in evaluations.",
                {"training": "policy/response_tokens"} | {set_name(name): f"evaluation/{name}/length" for name in SETS},
                unit="tokens",
            ),
            Measure(
                "Responses cut at the token limit",
                "They count as wrong.",
                {"training": "policy/truncated"} | {set_name(name): f"evaluation/{name}/truncated" for name in SETS},
                share=True,
            ),
            Measure("Reward", "Mean reward, on the method's own scale.", {"reward": "policy/reward"}),
            Measure(
                "Ratio of new to old policy",
                "Extremes over the responses of an iteration. 1 means that a response is as likely as before.",
                {"largest": "policy/ratio_max", "smallest": "policy/ratio_min"},
                reference=1.0,
            ),
            Measure(
                "Clipped tokens",
                "Share of tokens whose gradient the clip removed.",
                {"clipped": "policy/clip_fraction"},
            ),
            Measure("Gradient norm", "Before clipping.", {"policy": "policy/gradient_norm"}),
            Measure(
                "Distance from the reference",
                "Estimate of KL(policy || reference).",
                {"KL": "policy/kl_to_reference"},
                unit="nats",
            ),
            Measure(
                "Rejected by the rollout correction",
                "Share of tokens and of whole responses that do not learn.",
                {"tokens": "policy/rejected_tokens", "responses": "policy/rejected_sequences"},
            ),
        ],
    ),
    Subject(
        "Generator against trainer",
        "The generator samples responses, the trainer computes their probabilities again. Both should agree.",
        [
            Measure(
                "Disagreement",
                "Mean of exp|difference of log-probs| over tokens. 1 is agreement.",
                {"mean": "generation/exp_log_prob_difference_mean"},
                reference=1.0,
            ),
            Measure(
                "Age of tokens",
                "M-steps since a response's first token was sampled (partial rollouts).",
                {"mean": "rollouts/staleness_mean", "largest": "rollouts/staleness_max"},
                unit="M-steps",
            ),
        ],
    ),
    Subject(
        "Experts",
        "How evenly the updates used the experts of a model that has some.",
        [
            Measure(
                "Load of the experts",
                "The share of a layer's tokens that the busiest and the idlest expert of any layer got. An expert "
                "without tokens learns nothing.",
                {
                    f"{model}, {extreme}": f"{model}/expert_share_{suffix}"
                    for model in ("policy", "critic")
                    for extreme, suffix in (("busiest", "max"), ("idlest", "min"))
                },
                share=True,
            ),
            Measure(
                "Load-balancing loss",
                "The mean over layers and micro-batches; 1 if all experts get the same tokens.",
                {model: f"{model}/aux_loss" for model in ("policy", "critic")},
            ),
        ],
    ),
    Subject(
        "Evidence bound",
        "The lower bound on log P(correct) that the E-step and the M-step raise in turn, and its two terms.",
        [
            Measure("Bound", "Evidence lower bound.", {"bound": "evidence/bound"}, unit="nats"),
            Measure(
                "Expected log value",
                "E_q[log V]: the log of the critic's values, averaged over the weighted responses.",
                {"E[log V]": "evidence/expected_log_correctness"},
                unit="nats",
            ),
            Measure(
                "Divergence from the policy",
                "KL(q || policy): what the weighting costs.",
                {"KL": "evidence/divergence_from_policy"},
                unit="nats",
            ),
        ],
    ),
)

"""The studies of the miniature: for each a question and the runs that answer it."""

from __future__ import annotations

from dataclasses import dataclass

Settings = tuple[str, ...]
"""Overrides of a size's loop.yaml. `{data}` is the directory of the questions, `{start}` that of the start's
checkpoints, and `{start_learning_rate}` the policy's learning rate in the start."""

GROUPS = ("loop.unlabeled_prompts=32", "loop.samples_per_prompt=8")
"""As many rollouts as the other methods', of prompts whose responses can be compared."""
VOTES = ("loop.unlabeled_prompts=16", "loop.samples_per_prompt=16", "loop.votes_per_prompt=32")
"""As many rollouts for the M-step. SCRL votes with twice as many, as in its paper: 8 votes give no negative label."""
LABELED = ("loop.labeled_prompts=64",)
"""As many rollouts for the M-step as unlabeled methods have."""
LABELED_GROUPS = ("loop.labeled_prompts=32", "loop.samples_per_prompt=8")
RLVR = ("policy.optimizer.learning_rate={start_learning_rate}", "policy.kl_coefficient=0")
"""The start's learning rate, and no anchor, as at the start."""
NO_ANCHOR = ("policy.kl_coefficient=0",)
WEAK_ANCHOR = ("policy.kl_coefficient=0.05",)
"""A quarter of the recipe's."""
STRONG_ANCHOR = ("policy.kl_coefficient=0.8",)
"""Four times the recipe's."""
GATE = ("loop.gate=0.9",)
NEW_CRITIC_STEPS = (6, 9, 12)
"""E-steps of 1,024 rollouts. Within 12 of them the critics of the starts came from an AUROC of 0.5 to about 0.9."""


def _labeled(name: str) -> Settings:
    """Returns the settings for a smaller set of labeled questions.

    The start has learned from all of them, so none is set aside, and no checkpoint is selected.
    """
    return (
        f"data.labeled=[{{path: {{data}}/{name}.jsonl}}]",
        "calibration.questions=0",
        "checkpoint.select_best=false",
    )


def _new_critic(steps: int) -> Settings:
    """Returns the settings for a critic that starts from the policy, with some E-steps before the first M-step."""
    return ("critic.checkpoint=''", f"stages.critic_start.iterations={steps}", "stages.critic_start.prompts=256")


def _shifted(name: str) -> Settings:
    """Returns the settings that adapt to, and hold out, questions of another shift."""
    return (
        f"data.unlabeled=[{{path: {{data}}/{name}_unlabeled.jsonl}}]",
        f"data.held_out=[{{path: {{data}}/{name}_held_out.jsonl}}, {{path: {{data}}/familiar.jsonl}}]",
    )


REFERENCE = "tempo"
"""The run that a study's other runs are compared with."""


@dataclass(frozen=True)
class Study:
    """Runs that answer one question, `REFERENCE` among them."""

    question: str
    runs: dict[str, Settings]
    """The runs by name. A name has the same settings in every study, so that studies share runs."""
    compares_critics: bool = False
    """Whether gains are also set against the critic's AUROC at the start."""


TEMPO: dict[str, Settings] = {REFERENCE: ("method=tempo",)}
FROZEN: dict[str, Settings] = {"frozen_critic": ("method=frozen_critic",)}
UNANCHORED: dict[str, Settings] = {"no_anchor": ("method=tempo", *NO_ANCHOR)}

STUDIES: dict[str, Study] = {
    "methods": Study(
        "Which method gains most on unlabeled questions, and which keeps pass@k?",
        {
            **TEMPO,
            **FROZEN,
            "ttrl": ("method=ttrl", *GROUPS),
            "empo": ("method=empo", *GROUPS),
            "scrl": ("method=scrl", *VOTES),
            # TraPO compares questions once labeled ones have come back 8 times: 64 iterations for 256 questions, 2,000
            # for all. Its M-step learns from labeled rollouts too.
            "trapo": (
                "method=trapo",
                *GROUPS,
                "loop.labeled_prompts=32",
                "policy.entropy_coefficient=0.01",
                *_labeled("labeled_256"),
            ),
            "ppo": ("method=ppo", *LABELED, *RLVR),
            "grpo": ("method=grpo", *LABELED_GROUPS, *RLVR),
        },
    ),
    "intervals": Study(
        "How often must the critic be recalibrated?",
        {
            **TEMPO,
            **{f"interval_{interval}": ("method=tempo", f"loop.e_step_interval={interval}") for interval in (2, 4, 8)},
            **FROZEN,
        },
    ),
    "anchors": Study(
        "How near to its start must the policy stay?",
        {
            **TEMPO,
            **UNANCHORED,
            "weak_anchor": ("method=tempo", *WEAK_ANCHOR),
            "strong_anchor": ("method=tempo", *STRONG_ANCHOR),
        },
    ),
    "gates": Study(
        "Does a gate on the critic replace the anchor, or add to it?",
        {
            **TEMPO,
            "gate": ("method=tempo", *GATE),
            **UNANCHORED,
            "gate_no_anchor": ("method=tempo", *GATE, *NO_ANCHOR),
        },
    ),
    "shares": Study(
        "How many labeled prompts does an E-step need?",
        {
            **TEMPO,
            **{f"prompts_{count}": ("method=tempo", f"loop.labeled_prompts={count}") for count in (16, 32, 64)},
        },
    ),
    "labels": Study(
        "How many labeled questions do E-steps need?",
        {
            **TEMPO,
            **{f"labels_{size}": ("method=tempo", *_labeled(f"labeled_{size}")) for size in (64, 256, 1024)},
        },
    ),
    "critics": Study(
        "How good must the critic be at the start?",
        {
            **TEMPO,
            **{
                f"critic_{iteration}": ("method=tempo", f"critic.checkpoint={{start}}/iteration-{iteration:06d}")
                for iteration in (20, 40, 60)
            },
            **{f"new_critic_{steps}": ("method=tempo", *_new_critic(steps)) for steps in NEW_CRITIC_STEPS},
        },
        compares_critics=True,
    ),
    "frozen_critics": Study(
        "How good must a critic be that is not recalibrated?",
        {
            **TEMPO,
            **FROZEN,
            **{
                f"frozen_new_critic_{steps}": ("method=frozen_critic", *_new_critic(steps))
                for steps in NEW_CRITIC_STEPS
            },
        },
        compares_critics=True,
    ),
    "baselines": Study(
        "Does it matter whether the baseline has seen the token?",
        {**TEMPO, "after_token": ("method=tempo", "policy.baseline=after_token")},
    ),
    "averages": Study(
        "Does the loss's average over tokens matter?",
        {**TEMPO, "constant": ("method=tempo", "policy.average_over=constant")},
    ),
    "targets": Study(
        "Do the critic's targets matter?",
        {**TEMPO, "minus_one_one": ("method=tempo", "critic.target_range=minus_one_one")},
    ),
    # Exact numerics need a GPU and heads of 128 channels, which the small size has not.
    "numerics": Study(
        "Does equality of the log-probs of generator and trainer matter?",
        {
            **TEMPO,
            "exact": ("method=tempo", "numerics=exact"),
            "importance_sampling": (
                "method=tempo",
                "policy.rollout_correction.weight=token",
                "policy.rollout_correction.cap=2",
            ),
        },
    ),
    "shifts": Study(
        "How far may unlabeled questions be from labeled ones?",
        {
            **TEMPO,
            **{f"shift_{name}": ("method=tempo", *_shifted(name)) for name in ("none", "small", "large")},
            **{
                f"ppo_shift_{name}": ("method=ppo", *LABELED, *RLVR, *_shifted(name))
                for name in ("none", "small", "large")
            },
        },
    ),
}

"""Alarms of a run in plain words: what went wrong, what may have, and where to look."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from tempo_megatron.report.outcome import Change, Verdict
from tempo_megatron.report.reading import RunRecord
from tempo_megatron.report.words import percent, plural, points, set_name

_CHANCE_AUROC = 0.55
"""A critic below this AUROC within prompts is close to guessing, which has 0.5."""
_DRIFT = 0.15
"""A reward whose mean is so far above the share of right responses promises more than is true."""
_TRUNCATED = 0.25
_ENTROPY_LEFT = 0.2
"""Below this share of its first entropy the policy hardly varies its responses."""
_RARELY_RIGHT = 0.02
"""A share of right responses below this, or as far from 1, leaves nothing to compare."""
_RECENT = 10
"""Judgments about the end of a run average its last iterations, at most so many."""


@dataclass(frozen=True)
class Alarm:
    """Something to look at."""

    title: str
    text: str
    panel: str
    """The title of the section of the page to look at; empty where there is none."""
    serious: bool = True
    """Whether it puts the result in doubt. Others are only worth knowing."""


def alarms(record: RunRecord, all_changes: Sequence[Change]) -> list[Alarm]:
    """Return all alarms of a run and of its `changes`, the serious ones first."""
    checks: list[Callable[[RunRecord], Iterator[Alarm]]] = [
        _settings,
        _critic,
        _accuracy,
        _reward,
        _policy,
        _generator,
        _updates,
        _records,
    ]
    raised = [*(alarm for check in checks for alarm in check(record)), *_falls(all_changes)]
    return sorted(raised, key=lambda alarm: not alarm.serious)


def _recent(record: RunRecord, key: str) -> float | None:
    """Return the mean of a metric over the last iterations after the start; None where there is none."""
    values = [value for iteration, value in record.curve(key) if iteration > 0]
    return mean(values[-_RECENT:]) if values else None


def _first(record: RunRecord, key: str) -> float | None:
    values = [value for iteration, value in record.curve(key) if iteration > 0]
    return values[0] if values else None


def _raised(record: RunRecord, key: str) -> list[int]:
    """Return the iterations in which an alarm of the log was raised."""
    return [int(iteration) for iteration, value in record.curve(key) if value]


def _settings(record: RunRecord) -> Iterator[Alarm]:
    if record.setting("critic.labels") == "shuffled":
        yield Alarm(
            "The critic's labels were shuffled",
            "critic.labels=shuffled gives each response the grade of another one. The critic learns noise. Do not use "
            "this run's model: it is a control experiment.",
            "Critic",
        )


def _critic(record: RunRecord) -> Iterator[Alarm]:
    for key, name in (
        ("calibration/after/auroc_within_prompts", "labeled questions set aside"),
        ("critic/auroc_within_prompts", "labeled questions"),
    ):
        auroc = _recent(record, key)
        if auroc is None:
            continue
        if auroc < _CHANCE_AUROC:
            yield Alarm(
                "The critic cannot tell right from wrong",
                f"Of a right and a wrong response to one question, it prefers the right one {percent(auroc)} of "
                f"the time ({name}, last iterations). Guessing gives 50%. Rewards from such a critic are noise.",
                "Critic",
            )
        return


def _accuracy(record: RunRecord) -> Iterator[Alarm]:
    """Yield an alarm where right and wrong responses can hardly be compared, because nearly all are the same."""
    share = _recent(record, "evaluation/unlabeled_rollouts/avg")
    if share is not None and share < _RARELY_RIGHT:
        yield Alarm(
            "Almost no response is right",
            f"{percent(share)} of the responses to unlabeled questions are right, over the last iterations. There is "
            "next to nothing to learn from: the model needs a better start, or easier questions.",
            "Accuracy",
        )
    if share is not None and share > 1 - _RARELY_RIGHT:
        yield Alarm(
            "Almost every response is right",
            f"{percent(share)} of the responses to unlabeled questions are right, over the last iterations. There is "
            "little left to learn from them.",
            "Accuracy",
            serious=False,
        )


def _reward(record: RunRecord) -> Iterator[Alarm]:
    drift = _recent(record, "evaluation/unlabeled_rollouts/reward_minus_truth")
    if drift is not None and drift > _DRIFT:
        yield Alarm(
            "The reward promises more than is true",
            f"Over the last iterations the mean reward is {points(drift)} above the share of right responses. The "
            "policy may be learning what the reward likes instead of what is right.",
            "Reward against truth",
        )
    auroc = _recent(record, "evaluation/unlabeled_rollouts/reward_auroc")
    if auroc is not None and auroc < _CHANCE_AUROC:
        yield Alarm(
            "The reward does not favor right responses",
            f"A right response has the higher reward {percent(auroc)} of the time, over the last iterations. Guessing "
            "gives 50%.",
            "Reward against truth",
        )


def _falls(all_changes: Sequence[Change]) -> Iterator[Alarm]:
    for row in all_changes:
        if row.measure == "avg" and row.verdict is Verdict.worse:
            yield Alarm(
                f"Accuracy fell on {set_name(row.question_set)} questions",
                f"The share of right responses changed by {points(row.difference.value)} between iterations "
                f"{row.first_iteration} and {row.last_iteration}; the 95% interval is below zero.",
                "Accuracy",
            )


def _policy(record: RunRecord) -> Iterator[Alarm]:
    truncated = _recent(record, "policy/truncated")
    if truncated is not None and truncated > _TRUNCATED:
        yield Alarm(
            "Many responses are cut off",
            f"{percent(truncated)} of the policy's responses reach generation.max_response_tokens "
            f"({record.setting('generation.max_response_tokens')}) before they end, and count as wrong.",
            "Policy",
        )
    first, last = _first(record, "policy/entropy"), _recent(record, "policy/entropy")
    if first and last is not None and last < _ENTROPY_LEFT * first:
        yield Alarm(
            "The policy hardly varies its responses",
            f"Its entropy fell from {first:.3f} to {last:.3f} nats per token. Responses to a question are nearly "
            "alike, so there is little left to learn from.",
            "Policy",
            serious=False,
        )
    closed = [iteration for iteration, value in record.curve("policy/gate_open") if not value and iteration > 0]
    if closed:
        yield Alarm(
            "The gate kept the policy from learning",
            f"In {plural(len(closed), 'iteration')} the critic was not good enough (loop.gate), so the policy "
            "did not learn.",
            "Critic",
            serious=False,
        )


def _generator(record: RunRecord) -> Iterator[Alarm]:
    if iterations := _raised(record, "generation/log_prob_alarm"):
        yield Alarm(
            "Generator and trainer disagree",
            f"{_iterations(iterations)}: the generator's probabilities of its own tokens differ from the trainer's by "
            "more than generation.log_prob_alarm. Then the policy learns from other responses than it would give.",
            "Generator against trainer",
        )
    if iterations := _raised(record, "policy/noise_alarm"):
        yield Alarm(
            "Rounding decides which tokens learn",
            f"{_iterations(iterations)}: ratios differ from 1 before any update, by more than 30% of the clip "
            "range. See docs/faults.md, and model.fp8.",
            "Policy",
        )


def _updates(record: RunRecord) -> Iterator[Alarm]:
    for model in ("policy", "critic"):
        skipped = sum(value for _, value in record.curve(f"{model}/skipped_updates"))
        if skipped:
            yield Alarm(
                f"Updates of the {model} were skipped",
                f"{plural(round(skipped), 'update')} had a number that is not finite. The batches are in "
                "non_finite/ of the run directory.",
                "",
            )
    if rejected := sum(value for _, value in record.curve("policy/rejected_updates")):
        yield Alarm(
            "Updates of the policy were rejected",
            f"{plural(round(rejected), 'update')} had no token within the bounds of policy.rollout_correction.",
            "Policy",
        )
    if errors := record.last("grading/errors"):
        yield Alarm(
            "The grader failed on some responses",
            f"{plural(round(errors), 'response')} made it fail. They count as wrong.",
            "",
            serious=False,
        )


def _records(record: RunRecord) -> Iterator[Alarm]:
    if names := _not_finite(record):
        name, iteration = next(iter(names.items()))
        yield Alarm(
            "Metrics are not finite",
            f"{plural(len(names), 'metric')} became NaN or infinite: {name} in iteration {iteration} was the first. "
            "The curves leave out such values. The run has probably diverged.",
            "",
        )
    for sentence in record.unreadable:
        yield Alarm("A file of the run is damaged", sentence, "", serious=False)


def _not_finite(record: RunRecord) -> dict[str, int]:
    """Return metric -> the first iteration with a value that is not finite, in the order of the log."""
    names: dict[str, int] = {}
    for row in record.rows:
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                names.setdefault(name, row["iteration"])
    return names


def _iterations(iterations: list[int]) -> str:
    """Return the iterations of an alarm in words: how many, the first and the last."""
    if len(iterations) == 1:
        return f"In iteration {iterations[0]}"
    return f"In {len(iterations)} iterations, from {iterations[0]} to {iterations[-1]}"

"""From rollouts to rewards and advantages: the models score the rollouts, the recipe's method judges them.

`algorithms/methods/` has each method's rewards and advantages, `algorithms/advantages.py` the formulas that they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from tempo_megatron.algorithms.advantages import whiten
from tempo_megatron.algorithms.experience import STATISTICS, Experience, PassRates, Votes, count_votes
from tempo_megatron.algorithms.methods import Method
from tempo_megatron.algorithms.rollout_correction import Correction, rollout_correction
from tempo_megatron.config import PolicyConfig, ReplayedRoutes, RolloutCorrectionConfig
from tempo_megatron.data.types import Rollout
from tempo_megatron.grading import RolloutGrader
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.megatron.trainer import MegatronModel, NamedTensors, Score, Trainer
from tempo_megatron.training.phases.grade import clustered, extracted
from tempo_megatron.training.phases.scoring import Scores, mini_batches, to_batch, values


@dataclass(frozen=True)
class PolicyRollouts:
    """The rollouts that one policy step learns from."""

    rollouts: list[Rollout]
    correct: list[float]
    """The correctness of each rollout, NaN where it is not labeled."""
    votes: Votes | None = None
    """The votes of each rollout's prompt, where the method needs them."""
    pass_rates: PassRates | None = None
    """The pass rates of each rollout's question, where the method needs them."""


@dataclass(frozen=True)
class AdvantageBatch:
    """The rollouts of one policy step as a batch, with their rewards and advantages."""

    batch: Batch
    """The rollouts with the columns that the loss reads: old_log_probs, advantages, learn (bool, tokens to learn from),
    and reference_log_probs, importance and rejected (bool) where they are used."""
    first_epoch: list[Int64[Tensor, " _mini_batch"]]
    """The row indices of the first epoch's mini-batches. The old log-probs are computed in the same mini-batches, so
    that the first ratios are exactly 1."""
    experience: Experience
    rewards: Float[Tensor, " rows"]
    advantages: Float[Tensor, "rows sequence"]
    """The advantages before whitening."""
    learning_rows: Bool[Tensor, " rows"]
    """The rows that the method selected to learn from."""
    entropy: Float32[Tensor, "rows sequence"]
    """The policy's entropy at each token."""
    generator_difference: Float32[Tensor, " tokens"]
    """|log p_trainer - log p_generator| of every response token that the present policy sampled."""
    stale_difference: Float32[Tensor, " stale_tokens"]
    """The same of the response tokens that earlier policies sampled: how far the policy has moved since."""
    correction: Correction | None
    """The correction of that difference at the tokens to learn from, where the settings ask for one."""


def compute_advantages(
    step: PolicyRollouts,
    method: Method,
    policy: Trainer,
    critic: MegatronModel | None,
    reference: MegatronModel | None,
    scores: Scores,
    config: PolicyConfig,
    *,
    wrong: float,
    seed: Sequence[object],
    critic_values: Float32[Tensor, "rows sequence"] | None = None,
) -> AdvantageBatch:
    """Score the rollouts with the models that the method needs; return its rewards and advantages.

    `wrong` is the critic's target of a wrong answer. `critic_values` are computed here unless they are passed.
    """
    batch = to_batch(step.rollouts)
    first_epoch = list(mini_batches(batch.rows, config.mini_batches, *seed, "m_step", 0))
    statistics = sorted(method.needs & set(STATISTICS))
    records = config.router_replay is ReplayedRoutes.old_log_probs
    scored, batch = _score_in_mini_batches(policy, batch, first_epoch, scores("entropy", *statistics), records=records)
    if "values" in method.needs and critic_values is None:
        assert critic is not None  # validated at start
        critic_values = values(critic, batch)
    experience = Experience(
        response_mask=batch.response_mask,
        truncated=torch.tensor([rollout.truncated for rollout in step.rollouts]),
        prompts=group_numbers(step.rollouts),
        labeled=~torch.tensor(step.correct).isnan(),
        correct=torch.tensor(step.correct),
        wrong=wrong,
        values=critic_values,
        votes=step.votes,
        pass_rates=step.pass_rates,
        statistics={name: scored[name] for name in statistics},
    )
    rewards, learning_rows = method.rewards(experience, config), method.learning_rows(experience, config)
    learn = batch.response_mask & learning_rows[:, None]
    if config.truncated == "wrong":
        rewards = torch.where(experience.truncated, wrong, rewards)
    elif config.truncated == "mask":
        learn = learn & ~experience.truncated[:, None]
    advantages = method.advantages(experience, rewards, config)
    columns = {
        "old_log_probs": scored["log_probs"],
        "advantages": whiten(advantages, learn) if config.whiten_advantages and learn.any() else advantages,
        "learn": learn,
    }
    if reference is not None:
        columns["reference_log_probs"] = reference.score(batch, scores())["log_probs"]
    sampled_log_probs = generator_log_probs(batch, step.rollouts)
    correction = _correction(scored["log_probs"], sampled_log_probs, learn, config.rollout_correction)
    if correction and config.rollout_correction.weight != "none":
        columns["importance"] = correction.weights
    if correction and config.rollout_correction.reject != "none":
        columns["rejected"] = correction.rejected
    difference = (scored["log_probs"] - sampled_log_probs).abs()
    stale = stale_mask(batch.response_mask, step.rollouts)
    return AdvantageBatch(
        batch=batch.with_columns(**columns),
        first_epoch=first_epoch,
        experience=experience,
        rewards=rewards,
        advantages=advantages,
        learning_rows=learning_rows,
        entropy=scored["entropy"],
        generator_difference=difference[batch.response_mask & ~stale],
        stale_difference=difference[stale],
        correction=correction,
    )


def stale_mask(
    response_mask: Bool[Tensor, "rows sequence"], rollouts: Sequence[Rollout]
) -> Bool[Tensor, "rows sequence"]:
    """Return which response tokens earlier policies sampled."""
    stale_tokens = torch.tensor([rollout.stale_tokens for rollout in rollouts])
    return response_mask & (response_mask.cumsum(1) <= stale_tokens[:, None])


def rollout_votes(grader: RolloutGrader, rollouts: Sequence[Rollout], trained: Sequence[int]) -> Votes:
    """Return the votes of the rollouts at the indices `trained`, counted among all of `rollouts`. Collective."""
    clusters = torch.tensor(clustered(grader, rollouts))
    answered = torch.tensor([bool(text) for text in extracted(grader, rollouts)])
    votes = count_votes(clusters, answered, group_numbers(rollouts))
    indices = torch.tensor(trained)
    return Votes(**{column.name: getattr(votes, column.name)[indices] for column in fields(votes)})


def generator_log_probs(batch: Batch, rollouts: Sequence[Rollout]) -> Float32[Tensor, "rows sequence"]:
    """Return the log-prob of each response token under the policy that sampled it, 0 elsewhere."""
    log_probs = torch.zeros(batch.tokens.shape)
    log_probs[batch.response_mask] = torch.tensor(
        [log_prob for rollout in rollouts for log_prob in rollout.generator_log_probs]
    )
    return log_probs


def _correction(
    old_log_probs: Float32[Tensor, "rows sequence"],
    generator_log_probs: Float32[Tensor, "rows sequence"],
    learn: Bool[Tensor, "rows sequence"],
    config: RolloutCorrectionConfig,
) -> Correction | None:
    """Return the correction at the tokens to learn from, None where no setting asks for one."""
    if not config.is_active:
        return None
    return rollout_correction(
        old_log_probs,
        generator_log_probs,
        learn,
        weight=config.weight,
        cap=config.cap,
        reject=config.reject,
        reject_below=config.reject_below,
        reject_above=config.reject_above,
    )


def _score_in_mini_batches(
    policy: Trainer, batch: Batch, indices: Sequence[Int64[Tensor, " _mini_batch"]], score: Score, *, records: bool
) -> tuple[NamedTensors, Batch]:
    """Return the scores of every row, computed in the mini-batches with these row indices, and the batch.

    With `records` the batch gets the routes that the policy chose.
    """
    parts: list[NamedTensors] = []
    routes: list[Tensor] = []
    for rows in indices:
        if records:
            part, chosen = policy.score_with_routes(batch.select(rows), score)
            routes += chosen
        else:
            part = policy.score(batch.select(rows), score)
        parts.append(part)
    original_order = torch.cat(list(indices)).argsort()
    scored = {name: torch.cat([part[name] for part in parts])[original_order] for name in parts[0]}
    return scored, replace(batch, routes=tuple(routes[row] for row in original_order)) if records else batch


def group_numbers(rollouts: Sequence[Rollout]) -> Int64[Tensor, " rollouts"]:
    """Return a number for each rollout, equal for rollouts of one prompt that began in one iteration."""
    numbers: dict[tuple[str, int], int] = {}
    return torch.tensor([numbers.setdefault((each.prompt.id, each.started), len(numbers)) for each in rollouts])

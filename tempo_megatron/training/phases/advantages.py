"""From rollouts to rewards and advantages, by the recipe's method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tempo_megatron.algorithms.advantages import whiten
from tempo_megatron.algorithms.experience import STATISTICS, Experience, Votes, count_votes
from tempo_megatron.algorithms.methods import Method
from tempo_megatron.algorithms.policy_loss import truncated_importance
from tempo_megatron.config import PolicyConfig
from tempo_megatron.data.types import Rollout
from tempo_megatron.grading import Grader
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.megatron.trainer import MegatronModel, NamedTensors, Score, Trainer
from tempo_megatron.training.phases.grade import clustered, extracted
from tempo_megatron.training.phases.scoring import Scores, mini_batches, to_batch, values


@dataclass(frozen=True)
class PolicyRollouts:
    """What one policy step learns from. `correct` is NaN where a rollout is not labeled; `votes` are the rows' own."""

    rollouts: list[Rollout]
    correct: list[float]
    votes: Votes | None = None


@dataclass(frozen=True)
class Estimate:
    """Rewards and advantages of one policy step.

    `batch` has the columns that the loss reads: old_log_probs, advantages, learn (bool, tokens to learn from), and
    reference_log_probs and importance where they are used. `order` holds the first epoch's mini-batches: the old
    log-probs come from them, so that the first ratios are exactly 1.
    """

    batch: Batch
    order: list[Tensor]
    experience: Experience
    rewards: Tensor
    advantages: Tensor
    """[rows, sequence], before whitening"""
    entropy: Tensor
    """[rows, sequence]"""
    generator_difference: Tensor
    """|log p_trainer - log p_generator| of every response token, [tokens]"""


def estimate(
    rows: PolicyRollouts,
    method: Method,
    policy: Trainer,
    critic: MegatronModel | None,
    reference: MegatronModel | None,
    scores: Scores,
    config: PolicyConfig,
    *,
    wrong: float,
    seed: Sequence[object],
    critic_values: Tensor | None = None,
) -> Estimate:
    """Score the rollouts with the models that the method needs, and let it judge them.

    `wrong` is the critic's target of a wrong answer; `critic_values` [rows, sequence] are read now unless given.
    """
    batch = to_batch(rows.rollouts)
    order = list(mini_batches(batch.rows, config.mini_batches, *seed, "m_step", 0))
    statistics = sorted(method.needs & set(STATISTICS))
    scored = _in_order(policy, batch, order, scores("entropy", *statistics))
    if "values" in method.needs and critic_values is None:
        assert critic is not None  # validated at start
        critic_values = values(critic, batch)
    experience = Experience(
        response_mask=batch.response_mask,
        truncated=torch.tensor([rollout.truncated for rollout in rows.rollouts]),
        prompts=_numbers([rollout.prompt.id for rollout in rows.rollouts]),
        labeled=~torch.tensor(rows.correct).isnan(),
        correct=torch.tensor(rows.correct),
        wrong=wrong,
        values=critic_values,
        votes=rows.votes,
        statistics={name: scored[name] for name in statistics},
    )
    rewards, learn = method.rewards(experience), batch.response_mask
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
    generated = torch.zeros_like(scored["log_probs"])
    generated[batch.response_mask] = torch.tensor([v for r in rows.rollouts for v in r.generator_log_probs])
    if config.importance_cap:
        columns["importance"] = truncated_importance(scored["log_probs"], generated, learn, config.importance_cap)
    difference = (scored["log_probs"] - generated).abs()[batch.response_mask]
    return Estimate(
        batch.with_columns(**columns), order, experience, rewards, advantages, scored["entropy"], difference
    )


def read_votes(grader: Grader, rollouts: Sequence[Rollout], trained: Sequence[int]) -> Votes:
    """The votes of the rollouts at the indices `trained`, among all those given."""
    clusters = torch.tensor(clustered(grader, rollouts))
    answered = torch.tensor([bool(text) for text in extracted(grader, rollouts)])
    votes = count_votes(clusters, answered, _numbers([rollout.prompt.id for rollout in rollouts]))
    chosen = torch.tensor(trained)
    return Votes(votes.count[chosen], votes.total[chosen], votes.majority[chosen])


def _in_order(policy: Trainer, batch: Batch, order: Sequence[Tensor], score: Score) -> NamedTensors:
    """Scores of every row from the mini-batches that the update will use."""
    parts = [policy.score(batch.select(rows), score) for rows in order]
    back = torch.cat(list(order)).argsort()
    return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}


def _numbers(ids: Sequence[str]) -> Tensor:
    """A number for each distinct id, [len(ids)] int64."""
    seen: dict[str, int] = {}
    return torch.tensor([seen.setdefault(id_, len(seen)) for id_ in ids])

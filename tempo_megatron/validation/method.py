"""Checks whether a run's method can learn: its needs, its dry run on synthetic rows, and the schedule."""

from __future__ import annotations

from collections.abc import Iterator

from tempo_megatron.algorithms.dry_run import dry_run
from tempo_megatron.algorithms.experience import STATISTICS
from tempo_megatron.algorithms.methods import method
from tempo_megatron.config import Config, CriticTraining, GateOn, LearnsFrom, LoopConfig, Order, TargetRange


def method_problems(config: Config) -> list[str]:
    """Return a line for each problem; [] when the method can learn by this schedule. It reads no file."""
    return [
        *([*_unmet_needs(config)] or _dry_run_problems(config)),
        *_schedule_problems(config),
        *_partial_rollout_problems(config),
    ]


def _unmet_needs(config: Config) -> Iterator[str]:
    """Yield a line for each thing that the method needs and the recipe does not provide."""
    needs, critic, learns_from = method(config.method).needs, config.critic.training, config.policy.learns_from
    known = ("values", "votes", "pass_rates", "correct", *STATISTICS)
    unknown = needs.difference(known)
    if unknown:
        yield f"method: {config.method} needs {', '.join(sorted(unknown))}; there are {', '.join(known)}"
    if "pass_rates" in needs and "votes" not in needs:
        yield f"method: {config.method} needs pass_rates, which are counted from votes: it must name both in its needs"
    if "correct" in needs and learns_from is not LearnsFrom.labeled:
        yield (
            f"policy.learns_from: {learns_from}, but method {config.method} needs the verified correctness of every "
            "row: set labeled"
        )
    if "values" in needs and critic is CriticTraining.none:
        yield f"critic.training: method {config.method} needs a critic"
    if "values" not in needs and critic is CriticTraining.returns:
        yield f"critic.training: method {config.method} reads no values, so there are no returns to learn"
    if "pass_rates" in needs and learns_from is not LearnsFrom.both:
        yield f"policy.learns_from: method {config.method} compares unlabeled with labeled questions: set both"
    elif "votes" in needs and "pass_rates" not in needs and learns_from is not LearnsFrom.unlabeled:
        yield f"policy.learns_from: method {config.method} votes on unlabeled questions"
    loop = config.loop
    if "votes" in needs and max(loop.samples_per_prompt, loop.votes_per_prompt) < 2:
        yield f"loop.votes_per_prompt: at least 2, method {config.method} reads nothing from the vote of one response"
    if method(config.method).compares_responses and loop.samples_per_prompt < 2:
        yield f"loop.samples_per_prompt: at least 2, method {config.method} compares a prompt's responses"
    if loop.order is Order.values_first and "values" not in needs:
        yield f"loop.order: method {config.method} reads no values"


def _dry_run_problems(config: Config) -> Iterator[str]:
    """Yield a line for each problem that the method's dry run on synthetic rows shows."""
    learns_from, critic = config.policy.learns_from, config.critic
    outcome = dry_run(
        method(config.method),
        config.policy,
        labeled=learns_from is not LearnsFrom.unlabeled,
        unlabeled=learns_from is not LearnsFrom.labeled,
        wrong=critic.target_range.wrong,
    )
    if outcome.failure:
        yield f"method: {config.method} fails on a few synthetic rows ({learns_from}): {outcome.failure}"
    if not outcome.finite:
        yield (
            f"method: {config.method} makes rewards or advantages that are not finite, with policy.learns_from="
            f"{learns_from}; rows that are not labeled have no correctness (a method that reads it needs 'correct')"
        )
    if not outcome.follows_values:
        return
    if critic.training is CriticTraining.returns:
        yield (
            f"critic.training: returns, but method {config.method} rewards unlabeled rows by the critic's own values: "
            "their returns would teach it its own verdict; set calibrated or frozen"
        )
    if config.loop.order is Order.values_first and not _taught_before_iterations(config):
        yield (
            f"loop.order: with values_first method {config.method} rewards the first iteration's rows by a critic that "
            "has learned nothing; needs critic.checkpoint or stages.critic_start"
        )
    if not (critic.checkpoint or critic.optimizer.learning_rate or critic.optimizer.minimum_learning_rate):
        yield (
            f"critic.optimizer.learning_rate: 0 leaves the critic untaught, by whose values method {config.method} "
            "rewards rows; needs critic.checkpoint"
        )


def _taught_before_iterations(config: Config) -> bool:
    """Whether the critic has learned before the first iteration begins."""
    return bool(config.critic.checkpoint or config.stages.critic_start.iterations)


def _schedule_problems(config: Config) -> Iterator[str]:
    """Yield a line for each combination of settings of loop, stages and checkpoint selection that cannot work."""
    needs, critic, loop = method(config.method).needs, config.critic.training, config.loop
    if loop.gate and (not config.calibration.questions or critic is not CriticTraining.calibrated):
        yield "loop.gate: needs calibration.questions, and critic.training calibrated"
    if loop.gate and loop.gate_on is GateOn.auroc_within_prompts and config.calibration.samples < 2:
        yield "calibration.samples: at least 2, loop.gate_on compares a prompt's responses"
    if loop.drop_uniform_prompts and loop.samples_per_prompt < 2:
        yield "loop.drop_uniform_prompts: a single response is always uniform; needs loop.samples_per_prompt above 1"
    if loop.votes_per_prompt and "votes" not in needs:
        yield f"loop.votes_per_prompt: method {config.method} counts no votes"
    if critic is CriticTraining.frozen and not _taught_before_iterations(config):
        yield "critic.training: a frozen critic needs critic.checkpoint or stages.critic_start to have learned"
    if critic is CriticTraining.none and config.critic.target_range is not TargetRange.zero_one:
        yield f"critic.target_range: method {config.method} has no critic; its rewards are 0 and 1"
    if 0 < loop.votes_per_prompt < loop.samples_per_prompt:
        yield f"loop.votes_per_prompt: at least loop.samples_per_prompt ({loop.samples_per_prompt}), or 0"
    if config.checkpoint.select_best and not config.calibration.questions:
        yield "checkpoint.select_best: needs calibration.questions, labeled questions set aside"
    if config.checkpoint.patience and not config.checkpoint.select_best:
        yield "checkpoint.patience: needs checkpoint.select_best"
    if config.checkpoint.patience >= config.checkpoint.keep > 0 and config.checkpoint.select_best:
        yield (
            f"checkpoint.keep: {config.checkpoint.keep} newest checkpoints are too few to wait for "
            f"{config.checkpoint.patience} candidates after the best; keep more than checkpoint.patience"
        )
    if config.policy.dual_clip and config.policy.dual_clip <= 1:
        yield f"policy.dual_clip: above 1, or 0 for none, got {config.policy.dual_clip}"


def _partial_rollout_problems(config: Config) -> Iterator[str]:
    """Yield a line for each setting that does not go with `loop.partial_rollouts`."""
    loop, policy = config.loop, config.policy
    if not loop.partial_rollouts:
        if loop.staleness != LoopConfig().staleness:
            yield f"loop.staleness: {loop.staleness} does nothing without loop.partial_rollouts"
        return
    if loop.partial_rollouts < 0.5:
        yield (
            f"loop.partial_rollouts: 0, or at least 0.5, got {loop.partial_rollouts:g}: with less, more groups are "
            "carried over than an M-step learns from, and loop.staleness cannot be kept"
        )
    if policy.learns_from is LearnsFrom.labeled:
        yield "loop.partial_rollouts: policy.learns_from is labeled, and labeled rollouts always finish"
    if loop.m_steps > 1:
        yield (
            f"loop.m_steps: 1 with loop.partial_rollouts, got {loop.m_steps}: rollouts are carried over from iteration "
            "to iteration, each with one M-step"
        )
    if not policy.rollout_correction.is_active:
        yield (
            "policy.rollout_correction: needed with loop.partial_rollouts, for example weight=token cap=2: earlier "
            "policies sampled some of the tokens"
        )

"""The algorithm: generate, grade, calibrate, refine, sync, evaluate, save."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tempo_megatron.algorithms.experience import last_value
from tempo_megatron.config import Config, CriticTraining, Labels, LearnsFrom, Order
from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.data.types import Rollout
from tempo_megatron.megatron.checkpointing.saver import CRITIC_START, WARM_START, Position
from tempo_megatron.supervision.interruption import Interrupted, catch_stop_signals
from tempo_megatron.training.phases.advantages import PolicyRollouts, estimate, read_votes
from tempo_megatron.training.phases.collect import Collected
from tempo_megatron.training.phases.critic_metrics import evidence, measure
from tempo_megatron.training.phases.e_step import calibrate, learn_returns
from tempo_megatron.training.phases.m_step import refine
from tempo_megatron.training.phases.scoring import to_batch, values
from tempo_megatron.training.phases.warm_start import warm_start_step
from tempo_megatron.training.run import Run
from tempo_megatron.utils.distributed import broadcast_from_first

Metrics = dict[str, Any]


def train(config: Config) -> bool:
    """Run a recipe to its end, from wherever the run directory's newest checkpoint left it; False if it was asked to
    stop before that, and saved."""
    with catch_stop_signals():  # models and engine take minutes
        run = Run(config, watched=True)
        try:
            if run.course.in_stages:
                start(run)
            elif run.course.unconcluded:
                conclude(run, run.course.unconcluded)
            for iteration in run.progress(range(run.iteration + 1, config.loop.iterations + 1), "iterations"):
                if run.stopped:
                    break
                run.begin(iteration)
                metrics = iterate(run)
                run.sync()
                run.course.reached(metrics)
                conclude(run, metrics)
            if not run.has_ended:  # it was interrupted after this iteration, and is now to have no more
                conclude(run, {})
        except Interrupted as interrupted:
            run.save_interrupted(str(interrupted))
            run.watchdog.stop()
            return False
        run.finish()
    run.watchdog.stop()
    return True


def start(run: Run) -> None:
    """The stages before the first iteration, from where the run is in them, and where they lead."""
    if run.course.is_in(WARM_START):
        warm_start(run)
        run.course.keep_reference()
    run.sync()
    if not run.evaluated_at_start:
        with run.may_be_interrupted():
            run.record_evaluation(0, at_an_end=True)
    start_critic(run)
    with run.may_be_interrupted():
        chosen = run.consider()
    run.log("start", chosen)
    run.save()


def conclude(run: Run, metrics: Metrics) -> None:
    """Choose, evaluate, log and save after an iteration, what of it is due."""
    config, iteration = run.config, run.iteration
    last = iteration >= config.loop.iterations
    saves = last or iteration % config.checkpoint.every == 0
    with run.may_be_interrupted():
        if saves:
            metrics |= run.consider()
        last = last or run.stopped
        if last or (config.evaluation.every and iteration % config.evaluation.every == 0):
            metrics |= run.record_evaluation(iteration, at_an_end=last)
    run.log("train", metrics)
    if saves:
        run.save()


def iterate(run: Run) -> Metrics:
    """E-steps on labeled rollouts, then M-steps, the first of which shares the E-steps' generate call."""
    loop, critic = run.config.loop, run.config.critic
    refines = run.gate_is_open
    calibrates = critic.training is CriticTraining.calibrated and (run.iteration - 1) % loop.e_step_interval == 0
    e_steps = loop.e_steps if calibrates else int(refines and run.policy_learns_labeled)
    measures = bool(run.collector.measured) and run.iteration % run.config.calibration.every == 0
    with run.may_be_interrupted():
        drawn = run.collector.collect(
            run.iteration,
            labeled=e_steps * loop.labeled_prompts,
            unlabeled=loop.unlabeled_prompts if refines and run.policy_learns_unlabeled else 0,
            measure=measures,
        )
    metrics = run.count(drawn)
    if measures:
        metrics |= measure_critic(run, drawn, "before" if calibrates else "after")
    rows = policy_rollouts(run, drawn) if refines else None
    early = read_values(run, rows) if rows and loop.order is Order.values_first else None
    if calibrates:
        size = loop.labeled_prompts * loop.samples_per_prompt
        for step in range(e_steps):
            part = slice(step * size, (step + 1) * size)
            metrics |= e_step(run, drawn.labeled[part], drawn.correct[part], run.iteration, step)
        if measures:
            metrics |= measure_critic(run, drawn, "after")
    if rows:
        metrics |= m_step(run, rows, early)
        for step in range(1, loop.m_steps):
            run.sync()
            metrics |= m_step(run, policy_rollouts(run, more_rollouts(run, step)), step=step)
    return metrics | {"policy/gate_open": float(refines)}


def e_step(run: Run, rollouts: list[Rollout], correct: list[float], iteration: int, step: int = 0) -> Metrics:
    """Calibrate the critic on graded labeled rollouts."""
    if run.config.critic.labels is Labels.shuffled:
        order = sorted(range(len(correct)), key=lambda at: derive_seed(run.config.seed, iteration, "shuffled", at))
        correct = [correct[at] for at in order]
    with run.phase("e_step"):
        return calibrate(run.models.needed_critic, rollouts, correct, run.config.critic, run.seed(iteration, step))


def m_step(run: Run, rows: PolicyRollouts, early: Tensor | None = None, step: int = 0) -> Metrics:
    """The method judges the rollouts, the policy learns from its advantages, and PPO's critic from its returns."""
    config, seed = run.config, run.seed(run.iteration, step)
    wrong = config.critic.target_range.wrong
    with run.phase("advantages"):
        found = estimate(
            rows,
            run.method,
            run.policy,
            run.critic,
            run.reference,
            run.scores,
            config.policy,
            wrong=wrong,
            seed=seed,
            critic_values=early,
        )
    metrics = run.observe(rows, found)
    if "values" in run.method.needs and run.policy_learns_unlabeled:
        unlabeled = ~found.experience.labeled
        judged = [rollout for rollout, mine in zip(rows.rollouts, unlabeled.tolist(), strict=True) if mine]
        believed = last_value(found.experience.needed_values(), found.experience.response_mask)
        metrics |= evidence(believed[unlabeled], judged, wrong)
    if config.critic.training is CriticTraining.returns:
        with run.phase("e_step"):
            metrics |= learn_returns(run.models.needed_critic, found, config.critic, seed)
    with run.phase("m_step"):
        longest = config.generation.max_response_tokens
        return metrics | refine(run.policy, found, run.scores, config.policy, seed, longest=longest)


def policy_rollouts(run: Run, drawn: Collected) -> PolicyRollouts:
    """The rollouts that train the policy: labeled, unlabeled without those sampled for the vote alone, or both."""
    rollouts, correct, votes = [], [], None
    if run.config.policy.learns_from is not LearnsFrom.unlabeled:
        one_step = slice(run.config.loop.labeled_prompts * run.config.loop.samples_per_prompt)
        rollouts, correct = drawn.labeled[one_step], drawn.correct[one_step]
    if run.policy_learns_unlabeled:
        samples = run.config.loop.samples_per_prompt
        a_prompt = max(samples, run.config.loop.votes_per_prompt)
        trained = [at for at in range(len(drawn.unlabeled)) if at % a_prompt < samples]
        if "votes" in run.method.needs:
            with run.phase("vote"):
                votes = read_votes(run.grader, drawn.unlabeled, trained)
        rollouts += [drawn.unlabeled[at] for at in trained]
        correct += [float("nan")] * len(trained)
    return PolicyRollouts(rollouts, correct, votes)


def more_rollouts(run: Run, step: int) -> Collected:
    """Fresh rollouts of the policy that the last M-step made. A run that is to stop does not give them up: a policy
    that has learned since the boundary of the iterations cannot be saved as it was there."""
    loop = run.config.loop
    return run.collector.collect(
        run.iteration,
        labeled=loop.labeled_prompts if run.policy_learns_labeled else 0,
        unlabeled=loop.unlabeled_prompts if run.policy_learns_unlabeled else 0,
        step=step,
    )


def read_values(run: Run, rows: PolicyRollouts) -> Tensor:
    """The critic's values as they are now."""
    with run.phase("values"):
        assert run.critic is not None  # validated at start
        return values(run.critic, to_batch(rows.rollouts))


def measure_critic(run: Run, drawn: Collected, when: str) -> Metrics:
    """Accuracy on the labeled questions set aside and, with a critic, its calibration there; the gate reads it."""
    correct = drawn.measured_correct
    found = {"correct": sum(correct) / len(correct)}
    if run.critic:
        with run.phase("critic_metrics"):
            found = measure(run.critic, drawn.measured, correct, run.config.critic.target_range)
        # A figure that rollouts all right or all wrong do not have stays as it was; a critic without a value has none.
        otherwise = run.gate_value if "mean_value" in found else None
        run.gate_value = broadcast_from_first(found.get(run.config.loop.gate_on, otherwise))
    return {f"calibration/{when}/{name}": value for name, value in found.items()}


def start_critic(run: Run) -> None:
    """E-steps on labeled prompts alone, counted down to iteration 0: the first M-step needs a critic to follow."""
    if not run.critic:
        return
    start = run.config.stages.critic_start
    for step in run.stage(CRITIC_START, start.iterations, run.config.checkpoint.every):
        iteration = run.generator.iteration = step - start.iterations
        with run.may_be_interrupted():
            drawn = run.collector.collect(iteration, labeled=start.prompts)
        metrics = e_step(run, drawn.labeled, drawn.correct, iteration)
        run.log("critic_start", run.count(drawn) | metrics, iteration)
    run.models.freeze_at(Position(CRITIC_START, start.iterations))
    run.generator.iteration = 0
    if run.collector.measured:
        with run.may_be_interrupted():
            drawn = run.collector.collect(0, measure=True)
        run.log("critic_start", measure_critic(run, drawn, "after"), 0)


def warm_start(run: Run) -> None:
    """Supervised steps on `data.warm_start`; the policy's optimizer starts afresh after them, critic and reference from
    their weights."""
    stage = run.config.stages.warm_start
    if not stage.steps:
        return
    if not run.course.resumed_from:
        run.models.begin_warm_start()
    for step in run.stage(WARM_START, stage.steps, stage.steps):
        with run.phase("warm_start"):
            loss = warm_start_step(run.policy, run.examples.take(stage.batch_size), run.scores())
        if step % 50 == 0 or step == stage.steps - 1:
            run.log("warm_start", {"step": step, "warm_start/loss": loss})
    run.models.end_warm_start()

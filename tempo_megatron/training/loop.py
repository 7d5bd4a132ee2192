"""The algorithm: generate, grade, E-step, M-step, sync, evaluate, save.

Where to read on:

- The M-step's advantage: `algorithms/methods/` has each method's, `algorithms/advantages.py` the formulas that methods
  share. `phases/advantages.py` calls the method.
- The best checkpoint: `phases/select_checkpoint.py` measures candidates, `metrics/checkpoint_choice.py` has the rule.
- SIGTERM: `supervision/interruption.py` notes the signal; `lifecycle.py` raises Interrupted where the run can be saved.
- What a run consists of: `build.py` puts it together, and `state.py` lists what a checkpoint holds beside models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from jaxtyping import Float32
from torch import Tensor

from tempo_megatron.config import Config, CriticTraining, Labels, LearnsFrom, Numerics, Order
from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.data.types import Rollout
from tempo_megatron.megatron.checkpointing.saver import CRITIC_START, WARM_START, Position
from tempo_megatron.metrics.calibration import calibration_bins
from tempo_megatron.metrics.question_metrics import Metrics
from tempo_megatron.supervision.interruption import Interrupted, catch_stop_signals
from tempo_megatron.training.build import build_run
from tempo_megatron.training.phases.advantages import PolicyRollouts, compute_advantages, rollout_votes
from tempo_megatron.training.phases.agreement import require_equal_log_probs
from tempo_megatron.training.phases.collect import Collected
from tempo_megatron.training.phases.critic_metrics import critic_metrics, evidence_metrics, mean_final_values
from tempo_megatron.training.phases.e_step import e_step, learn_returns
from tempo_megatron.training.phases.expert_metrics import expert_metrics, reset_expert_load
from tempo_megatron.training.phases.m_step import m_step
from tempo_megatron.training.phases.scoring import to_batch, values
from tempo_megatron.training.phases.warm_start import warm_start_step
from tempo_megatron.training.run import Run
from tempo_megatron.utils.distributed import broadcast_from_first


def train(config: Config, build: Callable[..., Run] = build_run) -> bool:
    """Train by a recipe, from the run directory's newest checkpoint to the end; return whether the end was reached.

    A run that is asked to stop earlier (SIGTERM, SIGUSR1, a deadline) is saved, and the result is False.
    """
    with catch_stop_signals():  # from here on signals are noted: building models and engine takes minutes
        run = build(config, watched=True)
        try:
            if run.lifecycle.in_stages:
                start(run)
            elif run.lifecycle.unconcluded:
                conclude(run, run.lifecycle.unconcluded)
            for iteration in run.console.progress(range(run.iteration + 1, config.loop.iterations + 1), "iterations"):
                if run.selector.has_stopped:
                    break
                run.begin_iteration(iteration)
                metrics = iterate(run)
                run.sync()
                run.lifecycle.end_learning(run.snapshot(), metrics)
                conclude(run, metrics)
            if not run.has_ended:  # interrupted after this iteration, and resumed with fewer loop.iterations
                conclude(run, {})
        except Interrupted as interrupted:
            run.save_interrupted(str(interrupted))
            run.watchdog.stop()
            return False
        run.finish()
    run.watchdog.stop()
    return True


def start(run: Run) -> None:
    """Run the stages before iteration 1 that are still to do, and save their outcome."""
    if run.lifecycle.is_in(WARM_START):
        warm_start(run)
        run.lifecycle.keep_reference()
    run.sync()
    if run.state.initial_evaluation is None:
        with run.interruptible():
            figures = run.evaluate(0, at_an_end=True)
        run.log("train", figures)
    start_critic(run)
    with run.interruptible():
        selection = run.select_checkpoint()
    run.log("start", {}, selection=selection)
    run.save()


def conclude(run: Run, metrics: Metrics) -> None:
    """Select the best checkpoint, evaluate, log and save after an iteration, as far as they are due."""
    config, iteration = run.config, run.iteration
    is_last = iteration >= config.loop.iterations
    saves = is_last or iteration % config.checkpoint.every == 0
    with run.interruptible():
        selection = run.select_checkpoint() if saves else None
        is_last = is_last or run.selector.has_stopped
        if is_last or (config.evaluation.every and iteration % config.evaluation.every == 0):
            metrics = metrics | run.evaluate(iteration, at_an_end=is_last)
    run.log("train", metrics, selection=selection)
    if saves:
        run.save()


def iterate(run: Run) -> Metrics:
    """Make the E-steps on labeled rollouts, then the M-steps. The first M-step shares the E-steps' generate call."""
    loop, critic, learns_from = run.config.loop, run.config.critic, run.config.policy.learns_from
    makes_m_steps = run.gate_is_open
    makes_e_steps = critic.training is CriticTraining.calibrated and (run.iteration - 1) % loop.e_step_interval == 0
    labeled_steps = loop.e_steps if makes_e_steps else int(makes_m_steps and learns_from is not LearnsFrom.unlabeled)
    reset_expert_load(run.models.trainers)
    measures = bool(run.collector.measured) and run.iteration % run.config.calibration.every == 0
    with run.interruptible():
        collected = run.collector.collect(
            run.iteration,
            labeled=labeled_steps * loop.labeled_prompts,
            unlabeled=loop.unlabeled_prompts if makes_m_steps and learns_from is not LearnsFrom.labeled else 0,
            measure=measures,
        )
    metrics = run.collector.metrics(collected)
    if run.recorder.is_due(run.iteration):
        run.recorder.record_labeled(run.iteration, collected)
    if measures:
        metrics |= measure_critic(run, collected, "before" if makes_e_steps else "after")
    rollouts = policy_rollouts(run, collected) if makes_m_steps else None
    early_values = read_values(run, rollouts) if rollouts and loop.order is Order.values_first else None
    if makes_e_steps:
        size = loop.labeled_prompts * loop.samples_per_prompt
        for step in range(loop.e_steps):
            part = slice(step * size, (step + 1) * size)
            metrics |= run_e_step(run, collected.labeled[part], collected.correct[part], run.iteration, step)
        if measures:
            metrics |= measure_critic(run, collected, "after")
    if rollouts:
        metrics |= run_m_step(run, rollouts, early_values)
        for step in range(1, loop.m_steps):
            run.sync()
            metrics |= run_m_step(run, policy_rollouts(run, collect_again(run, step)), step=step)
    run.recorder.write_critic_line(run.iteration)
    return metrics | expert_metrics(run.models.trainers) | {"policy/gate_open": float(makes_m_steps)}


def run_e_step(run: Run, rollouts: list[Rollout], correct: list[float], iteration: int, step: int = 0) -> Metrics:
    """Train the critic on graded labeled rollouts.

    Of several E-steps in an iteration the first one's calibration is recorded. It compares values with the true grades,
    also where the critic learns shuffled ones.
    """
    labels = correct
    if run.config.critic.labels is Labels.shuffled:
        order = sorted(range(len(correct)), key=lambda row: derive_seed(run.config.seed, iteration, "shuffled", row))
        labels = [correct[row] for row in order]
    critic = run.models.needed_critic
    with run.phase("e_step"):
        seed = shuffle_seed(run, iteration, step)
        metrics, final_values = e_step(critic, rollouts, labels, run.config.critic, seed)
    if step == 0:
        run.recorder.note_bins("labeled", calibration_bins(final_values, correct))
    return metrics


def run_m_step(
    run: Run,
    rollouts: PolicyRollouts,
    early_values: Float32[Tensor, "rows sequence"] | None = None,
    step: int = 0,
) -> Metrics:
    """Compute the method's advantages, then train the policy on them, and PPO's critic on the returns."""
    config, models, seed = run.config, run.models, shuffle_seed(run, run.iteration, step)
    reads_values = "values" in run.method.needs
    if "pass_rates" in run.method.needs:
        assert rollouts.votes is not None  # validated at start
        pass_rates = run.pass_rates.observe(rollouts.rollouts, rollouts.correct, rollouts.votes)
        rollouts = replace(rollouts, pass_rates=pass_rates)
    with run.phase("advantages"):
        batch = compute_advantages(
            rollouts,
            run.method,
            models.policy,
            models.critic,
            models.reference,
            models.scores,
            config.policy,
            wrong=config.critic.target_range.wrong,
            seed=seed,
            critic_values=early_values,
        )
    if config.numerics is Numerics.exact and run.generator.last_read != run.iteration:
        require_equal_log_probs(batch, rollouts.rollouts)
    with run.phase("observe"):
        metrics = run.evaluator.observe_unlabeled(rollouts, batch, reads_values=reads_values)
    if rollouts.pass_rates:
        metrics["policy/selected_questions"] = run.pass_rates.select(rollouts.rollouts, batch.learning_rows)
    if reads_values and config.policy.learns_from is not LearnsFrom.labeled:
        metrics |= evidence_metrics(rollouts.rollouts, batch)
        run.recorder.note_values(mean_final_values(rollouts.rollouts, batch))
    if config.critic.training is CriticTraining.returns:
        with run.phase("e_step"):
            metrics |= learn_returns(models.needed_critic, batch, config.critic, seed)
    with run.phase("m_step"):
        max_tokens = config.generation.max_response_tokens
        return metrics | m_step(
            models.policy, batch, models.scores, config.policy, seed, max_response_tokens=max_tokens
        )


def shuffle_seed(run: Run, iteration: int, step: int) -> tuple[int, ...]:
    """Return what the order of an update's mini-batches is hashed from."""
    return (run.config.seed, iteration, step) if step else (run.config.seed, iteration)


def policy_rollouts(run: Run, collected: Collected) -> PolicyRollouts:
    """Return the rollouts that train the policy: labeled ones, unlabeled ones, or both.

    Unlabeled rollouts that were sampled only for the vote do not train it.
    """
    loop, learns_from = run.config.loop, run.config.policy.learns_from
    rollouts, correct, votes = [], [], None
    if learns_from is not LearnsFrom.unlabeled:
        first_step = slice(loop.labeled_prompts * loop.samples_per_prompt)
        rollouts, correct = collected.labeled[first_step], collected.correct[first_step]
    if learns_from is not LearnsFrom.labeled:
        samples = max(loop.samples_per_prompt, loop.votes_per_prompt)
        trained = [row for row in range(len(collected.unlabeled)) if row % samples < loop.samples_per_prompt]
        if "votes" in run.method.needs:
            with run.phase("vote"):
                trained_votes = [*range(len(rollouts)), *(len(rollouts) + row for row in trained)]
                votes = rollout_votes(run.grader, [*rollouts, *collected.unlabeled], trained_votes)
        rollouts += [collected.unlabeled[row] for row in trained]
        correct += [float("nan")] * len(trained)
    return PolicyRollouts(rollouts, correct, votes)


def collect_again(run: Run, step: int) -> Collected:
    """Collect rollouts of the policy that the last M-step trained.

    Generation here cannot be interrupted: the policy has learned since the iteration began, so it could not be saved as
    it was then.
    """
    loop, learns_from = run.config.loop, run.config.policy.learns_from
    return run.collector.collect(
        run.iteration,
        labeled=loop.labeled_prompts if learns_from is not LearnsFrom.unlabeled else 0,
        unlabeled=loop.unlabeled_prompts if learns_from is not LearnsFrom.labeled else 0,
        step=step,
    )


def read_values(run: Run, rollouts: PolicyRollouts) -> Float32[Tensor, "rows sequence"]:
    """Return the critic's current values."""
    with run.phase("values"):
        assert run.models.critic is not None  # validated at start
        return values(run.models.critic, to_batch(rollouts.rollouts))


def measure_critic(run: Run, collected: Collected, moment: str) -> Metrics:
    """Return the accuracy on the questions set aside and, with a critic, its calibration there; update the gate."""
    correct = collected.measured_correct
    figures = {"correct": sum(correct) / len(correct)}
    if run.models.critic:
        with run.phase("critic_metrics"):
            target_range = run.config.critic.target_range
            figures, bins = critic_metrics(run.models.critic, collected.measured, correct, target_range)
        run.recorder.note_bins(moment, bins)
        # Rollouts that are all right or all wrong have no AUROC: the gate keeps its last figure. A critic without any
        # finite value has no figure at all.
        fallback = run.state.gate_value if "mean_value" in figures else None
        run.state.gate_value = broadcast_from_first(figures.get(run.config.loop.gate_on, fallback))
    return {f"calibration/{moment}/{name}": value for name, value in figures.items()}


def start_critic(run: Run) -> None:
    """Train the critic by E-steps on labeled prompts alone, so that the first M-step has a trained critic.

    Its iterations have negative numbers that count up to 0.
    """
    if not run.models.critic:
        return
    stage = run.config.stages.critic_start
    for step in run.stage_steps(CRITIC_START, stage.iterations, run.config.checkpoint.every):
        iteration = run.generator.iteration = step - stage.iterations
        with run.interruptible():
            collected = run.collector.collect(iteration, labeled=stage.prompts)
        reset_expert_load(run.models.trainers)
        metrics = run_e_step(run, collected.labeled, collected.correct, iteration)
        metrics |= expert_metrics({"critic": run.models.needed_critic})
        run.recorder.write_critic_line(iteration)
        run.log("critic_start", run.collector.metrics(collected) | metrics, iteration=iteration)
    run.models.freeze_at(Position(CRITIC_START, stage.iterations))
    run.generator.iteration = 0
    if run.collector.measured:
        with run.interruptible():
            collected = run.collector.collect(0, measure=True)
        figures = measure_critic(run, collected, "after")
        run.recorder.write_critic_line(0)
        run.log("critic_start", figures, iteration=0)


def warm_start(run: Run) -> None:
    """Make supervised steps on `data.warm_start`; then policy, critic and reference start from the policy's weights."""
    stage = run.config.stages.warm_start
    if not stage.steps:
        return
    if not run.lifecycle.resumed_from:
        run.models.begin_warm_start()
    for step in run.stage_steps(WARM_START, stage.steps, stage.steps):
        with run.phase("warm_start"):
            loss = warm_start_step(run.models.policy, run.data.examples.take(stage.batch_size), run.models.scores())
        if step % 50 == 0 or step == stage.steps - 1:
            run.log("warm_start", {"step": step, "warm_start/loss": loss})
    run.models.end_warm_start()

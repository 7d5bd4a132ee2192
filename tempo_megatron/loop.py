"""The algorithm: generate, grade, calibrate, refine, sync, evaluate, save."""

from __future__ import annotations

from tempo_megatron.config import Config, Labels
from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.phases.calibrate import calibrate
from tempo_megatron.phases.generate import generate
from tempo_megatron.phases.refine import refine
from tempo_megatron.phases.warm_start import warm_start_step
from tempo_megatron.run import Run

Metrics = dict[str, float]


def train(config: Config) -> None:
    """Run TEMPO to its end, from wherever the run directory's newest checkpoint left it."""
    run = Run(config)
    if not run.resumed:
        warm_start(run)
        run.sync()
        run.record_evaluation(0, at_an_end=True)
        start_critic(run)
        run.save()
    for iteration in run.progress(range(run.iteration + 1, config.loop.iterations + 1), "iterations"):
        run.iteration = iteration
        metrics = iterate(run)
        run.sync()
        last = run.iteration == config.loop.iterations
        due = bool(config.evaluation.every) and run.iteration % config.evaluation.every == 0
        if last or due:
            metrics |= run.record_evaluation(run.iteration, at_an_end=last)
        run.log("tempo", metrics)
        if last or run.iteration % config.checkpoint.every == 0:
            run.save()
    run.finish()


def iterate(run: Run) -> Metrics:
    """One E-step and one M-step on one generate call."""
    loop = run.config.loop
    labelled = run.labelled.take(loop.labelled_prompts)
    unlabelled = run.unlabelled.take(loop.unlabelled_prompts)
    with run.timed("generate"):
        prompts = [("labelled", prompt) for prompt in labelled] + [("unlabelled", prompt) for prompt in unlabelled]
        rollouts = sample(run, prompts)
    cut = loop.labelled_prompts * loop.samples_per_prompt
    metrics = e_step(run, rollouts[:cut], run.iteration)
    with run.timed("refine"):
        seed = (run.config.seed, run.iteration)
        targets = run.config.critic.target_range
        metrics |= refine(run.policy, run.critic, rollouts[cut:], run.score, run.config.policy, targets, seed)
    return metrics | {"data/labelled_passes": run.labelled.passes, "data/unlabelled_passes": run.unlabelled.passes}


def e_step(run: Run, rollouts: list[Rollout], iteration: int) -> Metrics:
    """Grade labelled rollouts and calibrate the critic on them."""
    with run.timed("grade"):
        answers = {rollout.prompt.id: rollout.prompt.answer for rollout in rollouts if rollout.prompt.answer}
        correctness = run.grader.grade(rollouts, answers)
    truncated = sum(rollout.truncated for rollout in rollouts) / len(rollouts)
    counted = {"data/labelled_truncated": truncated, "grading/errors": float(run.grader.errors)}
    if run.config.critic.labels is Labels.none:
        return counted
    if run.config.critic.labels is Labels.shuffled:
        correctness = shuffled(correctness, run.config.seed, iteration)
    with run.timed("calibrate"):
        seed = (run.config.seed, iteration)
        return counted | calibrate(run.critic, rollouts, correctness, run.config.critic, seed)


def start_critic(run: Run) -> None:
    """E-steps on labelled prompts alone, counted down to iteration 0: the first M-step needs a critic to follow."""
    start = run.config.stages.critic_start
    for iteration in run.progress(range(-start.iterations, 0), "critic start"):
        with run.timed("generate"):
            rollouts = sample(run, [("labelled", prompt) for prompt in run.labelled.take(start.prompts)], iteration)
        run.log("critic_start", e_step(run, rollouts, iteration), iteration)


def warm_start(run: Run) -> None:
    """Supervised steps on `data.warm_start`; the policy's optimizer starts afresh after them, the critic from their
    weights."""
    stage = run.config.stages.warm_start
    if not stage.steps:
        return
    run.policy.reset_optimizer(stage.optimizer)
    for step in run.progress(range(stage.steps), "warm start"):
        loss = warm_start_step(run.policy, run.examples.take(stage.batch_size), run.score)
        if step % 50 == 0 or step == stage.steps - 1:
            run.log("warm_start", {"step": step, "warm_start/loss": loss})
    run.policy.reset_optimizer(run.config.policy.optimizer)
    run.copy_backbone_to_critic()


def sample(run: Run, prompts: list[tuple[str, Prompt]], iteration: int | None = None) -> list[Rollout]:
    """Training rollouts of the present policy; the generator sleeps after them, for the models to train."""
    generation = run.config.generation
    rollouts = generate(
        run.generator,
        prompts,
        seed=run.config.seed,
        iteration=run.iteration if iteration is None else iteration,
        samples=run.config.loop.samples_per_prompt,
        max_tokens=generation.max_response_tokens,
        temperature=generation.temperature,
        top_p=generation.top_p,
    )
    run.generator.sleep()
    return rollouts


def shuffled(correctness: list[float], seed: int, iteration: int) -> list[float]:
    """A control: the same grades, dealt to other responses."""
    order = sorted(range(len(correctness)), key=lambda index: derive_seed(seed, iteration, "shuffled", index))
    return [correctness[index] for index in order]

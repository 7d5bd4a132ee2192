"""Sections train, packed, scores, kernels and host: speed of policy and critic against raw Megatron."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarking import clock, host, kernels
from benchmarking.lengths import Lengths
from benchmarking.raw import RawLoop
from benchmarking.report import Figures
from benchmarking.setup import Setup, random_rollouts, release, trainer
from tempo_megatron.algorithms.methods import method
from tempo_megatron.config import Fp8
from tempo_megatron.conversion.mapping import Role
from tempo_megatron.data.types import Rollout
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.megatron.expert_load import ExpertLoad
from tempo_megatron.megatron.router_replay import ReplayedRouters
from tempo_megatron.megatron.trainer import Trainer
from tempo_megatron.training.phases.advantages import AdvantageBatch, PolicyRollouts, compute_advantages
from tempo_megatron.training.phases.e_step import e_step, learn_correctness
from tempo_megatron.training.phases.m_step import m_step
from tempo_megatron.training.phases.scoring import Scores, policy_scores, to_batch, values


@dataclass(frozen=True)
class TrainingWorkload:
    """The sequences of a step on each data-parallel rank, and how many `steps` are timed.

    Equal lengths: `sequences` of `sequence` tokens. Packed: about `packed_tokens` tokens of prompts and responses.
    Their lengths follow `packed_lengths`, in micro-batches of `packed_budget` tokens.
    """

    sequence: int
    sequences: int
    packed_lengths: Lengths
    packed_tokens: int
    packed_budget: int
    prompt_tokens: int
    steps: int

    def equal_lengths(self, ranks: int) -> list[int]:
        return [self.sequence] * self.sequences * ranks

    def random_lengths(self, ranks: int) -> list[int]:
        lengths: list[int] = []
        while sum(lengths) < self.packed_tokens * ranks:
            lengths.append(self.prompt_tokens + self.packed_lengths.draw(len(lengths)))
        return lengths


def measure(setup: Setup, workload: TrainingWorkload, sections: Sequence[str]) -> Iterator[tuple[str, Figures]]:
    """Yields the name and the figures of each measurement. Collective."""
    ranks = setup.topology.data_size
    equal = random_rollouts(workload.equal_lengths(ranks), workload.prompt_tokens, setup.settings.vocab_size)
    with trainer(setup, "policy") as policy:
        config = setup.config
        scores = policy_scores(
            setup.settings.vocab_size, config.generation.temperature, setup.topology, config.numerics
        )
        if "train" in sections:
            yield "policy step", _policy_step(setup, policy, scores, equal, workload.steps)
        if "scores" in sections:
            batch = to_batch(equal)
            yield (
                "log-probs and entropy",
                _pass(setup, "policy", batch, workload, lambda: _score(policy, scores, batch)),
            )
        if "kernels" in sections:
            advantages = _advantages(setup, policy, scores, equal)
            yield "kernels of a policy step", kernels.measure(_policy_update(setup, policy, advantages, scores))
            batch = to_batch(equal)
            yield "kernels of a pass for log-probs", kernels.measure(lambda: _score(policy, scores, batch))
        if "host" in sections:
            advantages = _advantages(setup, policy, scores, equal)
            yield "host in a policy step", host.measure(_policy_update(setup, policy, advantages, scores))
        if "packed" in sections:
            packed = random_rollouts(workload.random_lengths(ranks), workload.prompt_tokens, setup.settings.vocab_size)
            policy.rule = replace(policy.rule, budget=workload.packed_budget)
            yield "packed policy step", _policy_step(setup, policy, scores, packed, workload.steps)
        settings = (policy.wrapped_chunks[0].ddp_config, policy.optimizer.chained_optimizers[0].config)
    if {"train", "packed", "kernels", "host"}.intersection(sections):
        with _raw(setup, workload, *settings) as raw:
            if {"train", "packed"}.intersection(sections):
                yield "raw Megatron", _raw_step(setup, raw, workload)
            if "kernels" in sections:
                yield "kernels of raw Megatron", kernels.measure(raw.step)
            if "host" in sections:
                yield "host in raw Megatron", host.measure(raw.step)
    if {"train", "scores", "host"}.intersection(sections):
        with trainer(setup, "critic") as critic:
            if "train" in sections:
                yield "critic step", _critic_step(setup, critic, equal, workload.steps)
            if "scores" in sections:
                batch = to_batch(equal)
                yield "values", _pass(setup, "critic", batch, workload, lambda: values(critic, batch))
            if "host" in sections:
                yield "host in a critic step", host.measure(_critic_update(setup, critic, equal))


def _policy_step(setup: Setup, policy: Trainer, scores: Scores, rollouts: list[Rollout], steps: int) -> Figures:
    """`seconds` cover the M-step with the host's work, `step seconds` the trainer's steps alone."""
    advantages = _advantages(setup, policy, scores, rollouts)
    clock.reset_peak()
    policy.expert_load.reset()
    phase_seconds, step_seconds = _steps(policy, _policy_update(setup, policy, advantages, scores), steps)
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    figures = _figures(setup, "policy", lengths, phase_seconds) | _busiest_rank(setup, policy.expert_load)
    return figures | {"step seconds": clock.median(step_seconds)}


def _busiest_rank(setup: Setup, load: ExpertLoad) -> Figures:
    """The share of a layer's tokens that the experts of its busiest rank got, on average over layers.

    It is 1 / EP if all ranks are equally busy. A dense model has no figure.
    """
    counts = load.take_counts()
    if counts is None:
        return {}
    of_ranks = counts[counts.sum(1) > 0].double().unflatten(1, (setup.topology.expert_size, -1)).sum(2)
    return {"busiest rank's share of tokens": float((of_ranks.amax(1) / of_ranks.sum(1)).mean())}


def _policy_update(setup: Setup, policy: Trainer, advantages: AdvantageBatch, scores: Scores) -> Callable[[], Any]:
    max_tokens = setup.config.generation.max_response_tokens
    return lambda: m_step(policy, advantages, scores, setup.config.policy, (0,), max_response_tokens=max_tokens)


def _advantages(setup: Setup, policy: Trainer, scores: Scores, rollouts: list[Rollout]) -> AdvantageBatch:
    """Log-probs of the policy itself, and advantages of alternating rewards."""
    rows = PolicyRollouts(rollouts, _correctness(rollouts))
    return compute_advantages(
        rows, method("grpo"), policy, None, None, scores, setup.config.policy, wrong=0.0, seed=(0,)
    )


def _correctness(rollouts: list[Rollout]) -> list[float]:
    """Every second rollout is right."""
    return [float(number % 2) for number in range(len(rollouts))]


def _critic_update(setup: Setup, critic: Trainer, rollouts: list[Rollout]) -> Callable[[], Any]:
    """The critic's step of an E-step, without the pass for values before it."""
    batch = to_batch(rollouts)
    old_values = values(critic, batch)
    return lambda: learn_correctness(critic, batch, _correctness(rollouts), old_values, setup.config.critic, (0,))


def _critic_step(setup: Setup, critic: Trainer, rollouts: list[Rollout], steps: int) -> Figures:
    """Times the critic's steps alone. The E-step reads values first, which `values` measures."""
    correctness = _correctness(rollouts)
    clock.reset_peak()
    _, step_seconds = _steps(critic, lambda: e_step(critic, rollouts, correctness, setup.config.critic, (0,)), steps)
    return _figures(setup, "critic", [len(rollout.token_ids) for rollout in rollouts], step_seconds)


def _steps(trained: Trainer, phase: Callable[[], Any], steps: int) -> tuple[list[float], list[float]]:
    """Seconds of a phase, and of the trainer's steps in it, for each of `steps` runs after two untimed ones."""
    phase_seconds, step_seconds = [], []
    for number in range(-2, steps):
        watch = clock.Stopwatch()
        with watch.watching(trained, "step", "step"):
            seconds = clock.timed(phase)
        if number >= 0:
            phase_seconds.append(seconds)
            step_seconds.append(clock.slowest(watch.seconds["step"]))
    return phase_seconds, step_seconds


def _score(policy: Trainer, scores: Scores, batch: Batch) -> None:
    policy.score(batch, scores("entropy"))


def _pass(setup: Setup, role: Role, batch: Batch, workload: TrainingWorkload, work: Callable[[], Any]) -> Figures:
    clock.reset_peak()
    seconds = clock.repeated(work, workload.steps)
    return _figures(setup, role, batch.lengths.tolist(), seconds, learns=False)


@contextlib.contextmanager
def _raw(setup: Setup, workload: TrainingWorkload, ddp: Any, optimizer: Any) -> Iterator[RawLoop]:
    loop = RawLoop(setup, workload.sequence, workload.sequences, ddp, optimizer)
    chunks = [chunk.module for chunk in loop.chunks]
    with ReplayedRouters(chunks, setup.topology).cleared_after():  # else experts keep the model alive
        yield loop
    del loop.chunks, loop.optimizer, chunks
    release()


def _raw_step(setup: Setup, raw: RawLoop, workload: TrainingWorkload) -> Figures:
    clock.reset_peak()
    seconds = clock.repeated(raw.step, workload.steps)
    figures = _figures(setup, "policy", workload.equal_lengths(setup.topology.data_size), seconds)
    return figures | _busiest_rank(setup, raw.expert_load)


def _figures(setup: Setup, role: Role, lengths: Sequence[int], seconds: list[float], learns: bool = True) -> Figures:
    ranks, median = setup.topology.world_size, clock.median(seconds)
    work = setup.work(role)
    flops = work.step(lengths) if learns else work.forward(lengths)
    peak = clock.device_peak(setup.config.model.fp8 is not Fp8.none)
    speed = flops / median / ranks
    return {
        "seconds": median,
        "seconds of each": [round(value, 4) for value in seconds],
        "tokens": sum(lengths),
        "tokens/s/GPU": sum(lengths) / median / ranks,
        "TFLOP/s/GPU": speed / 1e12,
        "share of peak": speed / peak if peak else None,
        "peak GiB": clock.peak_gib(),
    }


def ratios(figures: dict[str, Figures]) -> Figures:
    """TFLOP/s as shares of raw Megatron's."""
    if "raw Megatron" not in figures:
        return {}
    raw = figures["raw Megatron"]["TFLOP/s/GPU"]
    steps = ("policy step", "packed policy step", "critic step")
    return {f"{name} / raw": figures[name]["TFLOP/s/GPU"] / raw for name in steps if name in figures}

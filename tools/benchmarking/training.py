"""Sections train, packed, scores and kernels: what the policy and the critic cost, beside raw Megatron."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarking import clock, kernels
from benchmarking.lengths import Lengths
from benchmarking.raw import RawLoop
from benchmarking.report import Figures
from benchmarking.setup import Setup, release, rollouts, trainer
from tempo_megatron.algorithms.methods import method
from tempo_megatron.config import Fp8
from tempo_megatron.conversion.mapping import Role
from tempo_megatron.data.types import Rollout
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.megatron.trainer import Trainer
from tempo_megatron.training.phases.advantages import AdvantageBatch, PolicyRollouts, compute_advantages
from tempo_megatron.training.phases.e_step import e_step
from tempo_megatron.training.phases.m_step import m_step
from tempo_megatron.training.phases.scoring import Scores, policy_scores, to_batch, values


@dataclass(frozen=True)
class Load:
    """What a step works on, on each data-parallel rank: `sequences` of `sequence` tokens; packed, about `packed_tokens`
    tokens of prompts and responses drawn from `packed_lengths`, in micro-batches of `packed_budget`. `steps` are timed.
    """

    sequence: int
    sequences: int
    packed_lengths: Lengths
    packed_tokens: int
    packed_budget: int
    prompt_tokens: int
    steps: int

    def equal(self, ranks: int) -> list[int]:
        return [self.sequence] * self.sequences * ranks

    def drawn(self, ranks: int) -> list[int]:
        found: list[int] = []
        while sum(found) < self.packed_tokens * ranks:
            found.append(self.prompt_tokens + self.packed_lengths.draw(len(found)))
        return found


def measure(setup: Setup, load: Load, sections: Sequence[str]) -> Iterator[tuple[str, Figures]]:
    """Figures by section, as they are found. Collective."""
    ranks = setup.place.data_size
    equal = rollouts(load.equal(ranks), load.prompt_tokens, setup.settings.vocab_size)
    with trainer(setup, "policy") as policy:
        scores = policy_scores(setup.settings.vocab_size, setup.config.generation.temperature, setup.place)
        if "train" in sections:
            yield "policy step", _policy_step(setup, policy, scores, equal, load.steps)
        if "scores" in sections:
            batch = to_batch(equal)
            yield "log-probs and entropy", _pass(setup, "policy", batch, load, lambda: _score(policy, scores, batch))
        if "kernels" in sections:
            found = _estimate(setup, policy, scores, equal)
            yield "kernels of a policy step", kernels.measure(_refining(setup, policy, found, scores))
            batch = to_batch(equal)
            yield "kernels of a pass for log-probs", kernels.measure(lambda: _score(policy, scores, batch))
        if "packed" in sections:
            drawn = rollouts(load.drawn(ranks), load.prompt_tokens, setup.settings.vocab_size)
            policy.rule = replace(policy.rule, budget=load.packed_budget)
            yield "packed policy step", _policy_step(setup, policy, scores, drawn, load.steps)
        settings = (policy.model.ddp_config, policy.optimizer.chained_optimizers[0].config)
    if {"train", "packed", "kernels"}.intersection(sections):
        with _raw(setup, load, *settings) as raw:
            if {"train", "packed"}.intersection(sections):
                yield "raw Megatron", _raw_step(setup, raw, load)
            if "kernels" in sections:
                yield "kernels of raw Megatron", kernels.measure(raw.step)
    if {"train", "scores"}.intersection(sections):
        with trainer(setup, "critic") as critic:
            if "train" in sections:
                yield "critic step", _critic_step(setup, critic, equal, load.steps)
            if "scores" in sections:
                batch = to_batch(equal)
                yield "values", _pass(setup, "critic", batch, load, lambda: values(critic, batch))


def _policy_step(setup: Setup, policy: Trainer, scores: Scores, given: list[Rollout], steps: int) -> Figures:
    """`seconds` are those of the whole phase, with all that the host does; `step seconds` those of the trainer."""
    found = _estimate(setup, policy, scores, given)
    clock.reset_peak()
    whole, inner = _steps(policy, _refining(setup, policy, found, scores), steps)
    lengths = [len(rollout.token_ids) for rollout in given]
    return _described(setup, "policy", lengths, whole) | {"step seconds": clock.median(inner)}


def _refining(setup: Setup, policy: Trainer, found: AdvantageBatch, scores: Scores) -> Callable[[], Any]:
    max_tokens = setup.config.generation.max_response_tokens
    return lambda: m_step(policy, found, scores, setup.config.policy, (0,), max_response_tokens=max_tokens)


def _estimate(setup: Setup, policy: Trainer, scores: Scores, given: list[Rollout]) -> AdvantageBatch:
    """Old log-probs of the policy itself, and advantages of alternating rewards."""
    rows = PolicyRollouts(given, [float(number % 2) for number in range(len(given))])
    return compute_advantages(
        rows, method("grpo"), policy, None, None, scores, setup.config.policy, wrong=0.0, seed=(0,)
    )


def _critic_step(setup: Setup, critic: Trainer, given: list[Rollout], steps: int) -> Figures:
    """The phase reads values first, which are measured as `values`: its steps alone are timed."""
    correct = [float(number % 2) for number in range(len(given))]
    clock.reset_peak()
    _, inner = _steps(critic, lambda: e_step(critic, given, correct, setup.config.critic, (0,)), steps)
    return _described(setup, "critic", [len(rollout.token_ids) for rollout in given], inner)


def _steps(trained: Trainer, phase: Callable[[], Any], steps: int) -> tuple[list[float], list[float]]:
    """Seconds of a phase, and of the trainer's steps in it, run by run."""
    whole, inner = [], []
    for number in range(-2, steps):
        watch = clock.Stopwatch()
        with watch.watching(trained, "step", "step"):
            seconds = clock.timed(phase)
        if number >= 0:
            whole.append(seconds)
            inner.append(clock.slowest(watch.seconds["step"]))
    return whole, inner


def _score(policy: Trainer, scores: Scores, batch: Batch) -> None:
    policy.score(batch, scores("entropy"))


def _pass(setup: Setup, role: Role, batch: Batch, load: Load, work: Callable[[], Any]) -> Figures:
    clock.reset_peak()
    seconds = clock.repeated(work, load.steps)
    return _described(setup, role, batch.lengths.tolist(), seconds, learns=False)


@contextlib.contextmanager
def _raw(setup: Setup, load: Load, ddp: Any, optimizer: Any) -> Iterator[RawLoop]:
    loop = RawLoop(setup, load.sequence, load.sequences, ddp, optimizer)
    yield loop
    del loop.model, loop.optimizer
    release()


def _raw_step(setup: Setup, raw: RawLoop, load: Load) -> Figures:
    clock.reset_peak()
    seconds = clock.repeated(raw.step, load.steps)
    return _described(setup, "policy", load.equal(setup.place.data_size), seconds)


def _described(setup: Setup, role: Role, lengths: Sequence[int], seconds: list[float], learns: bool = True) -> Figures:
    ranks, middle = setup.place.world_size, clock.median(seconds)
    work = setup.work(role)
    flops = work.step(lengths) if learns else work.forward(lengths)
    peak = clock.device_peak(setup.config.model.fp8 is not Fp8.none)
    speed = flops / middle / ranks
    return {
        "seconds": middle,
        "seconds of each": [round(value, 4) for value in seconds],
        "tokens": sum(lengths),
        "tokens/s/GPU": sum(lengths) / middle / ranks,
        "TFLOP/s/GPU": speed / 1e12,
        "share of peak": speed / peak if peak else None,
        "peak GiB": clock.peak_gib(),
    }


def ratios(found: dict[str, Figures]) -> Figures:
    """TFLOP/s as shares of raw Megatron's."""
    if "raw Megatron" not in found:
        return {}
    raw = found["raw Megatron"]["TFLOP/s/GPU"]
    steps = ("policy step", "packed policy step", "critic step")
    return {f"{name} / raw": found[name]["TFLOP/s/GPU"] / raw for name in steps if name in found}

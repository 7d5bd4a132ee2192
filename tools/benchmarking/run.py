"""Sections switch and iteration: a real Run with random weights, on questions of random words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarking import clock
from benchmarking.lengths import Lengths
from benchmarking.phases import Usage, beside_plan, planned_phases
from benchmarking.planned import planned_run
from benchmarking.report import Figures
from benchmarking.setup import Setup, randomize
from tempo_megatron.config import Config
from tempo_megatron.conversion.mapping import Role
from tempo_megatron.data.sources import Answers
from tempo_megatron.data.types import Rollout
from tempo_megatron.generation.requests import PAUSED, Completion, Request
from tempo_megatron.grading import RolloutGrader
from tempo_megatron.megatron import model
from tempo_megatron.megatron.offload import StateKind
from tempo_megatron.megatron.trainer import MegatronModel
from tempo_megatron.planning.workload import Workload
from tempo_megatron.training.build import build_run, make_vllm_generator
from tempo_megatron.training.loop import iterate
from tempo_megatron.training.models import Models
from tempo_megatron.training.run import Run

_FIGURES = (
    "generation/exp_log_prob_difference_mean",
    "generation/log_prob_difference_max",
    "policy/first_ratio_deviation",
    "policy/clip_fraction",
    "policy/response_tokens",
    "policy/gradient_norm",
    "critic/gradient_norm",
)


class SeededLengths:
    """A generator whose responses have the lengths that their seeds say. They count as complete, so they are graded.

    A paused response keeps its length: the request that continues it, or starts it later, asks for the tokens left. A
    continuation has another seed than its response had, so it is known by its tokens.
    """

    def __init__(self, generator: Any, lengths: Lengths) -> None:
        self.generator, self._lengths = generator, lengths
        self.tokens = 0
        """The prompt and response tokens of the responses that have ended."""
        self.response_lengths: list[int] = []
        """The tokens of each response that was begun so far."""
        self._tokens_left: dict[tuple[int, ...], list[int]] = {}
        """The tokens that paused responses still need, by prompt and response so far."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.generator, name)

    def generate(self, requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]:
        limited = [replace(request, max_tokens=self._take_length(request)) for request in requests]
        completions = self.generator.generate(limited, enough_groups)
        for request, completion in zip(limited, completions, strict=True):
            if completion.finish_reason == PAUSED:
                tokens = request.prompt_ids + completion.response_ids
                self._tokens_left.setdefault(tokens, []).append(request.max_tokens - len(completion.response_ids))
            else:  # the prompt of a continuation has the response so far
                self.tokens += len(request.prompt_ids) + len(completion.response_ids)
        return [
            completion if completion.finish_reason == PAUSED else replace(completion, finish_reason="stop")
            for completion in completions
        ]

    def _take_length(self, request: Request) -> int:
        """Returns the tokens that the request's response still needs. Each length is taken once."""
        lengths = self._tokens_left.get(request.prompt_ids)
        if not lengths:
            self.response_lengths.append(self._lengths.draw(request.seed))
            return self.response_lengths[-1]
        length = lengths.pop(0)
        if not lengths:
            del self._tokens_left[request.prompt_ids]
        return length


class RandomModels(Models):
    """Models that start from random weights."""

    def build(self, role: Role, start: str) -> list[Any]:
        chunks = model.build_model(role, self.settings, self._config, self._topology)
        randomize(chunks, self._topology)
        return chunks


class AlternatingGrader(RolloutGrader):
    """A grader that works as long as any, and calls every other sample right.

    Gradients of equal grades would be zero, and use less power than real ones.
    """

    def grade(self, rollouts: Sequence[Rollout], answers: Answers) -> list[float]:
        super().grade(rollouts, answers)
        return [float(rollout.sample % 2) for rollout in rollouts]


def build_benchmark_run(config: Config, lengths: Lengths) -> Run:
    """A run whose models start from random weights, and whose responses have seeded lengths."""

    def make_generator(*parts: Any) -> Any:
        generator: Any = make_vllm_generator(*parts)
        generator.eos_token_ids = []
        return SeededLengths(generator, lengths)

    return build_run(config, make_models=RandomModels, make_generator=make_generator, make_grader=AlternatingGrader)


def seeded_lengths(run: Run) -> Any:
    """The `SeededLengths` of a benchmark's run, inside the generator that records rollouts."""
    return run.generator.engine


@contextlib.contextmanager
def weights_awake(run: Run) -> Iterator[None]:
    """Keeps the policy's weights on the device, and nothing else of the models."""
    with run.phase("sync"), run.models.policy.onloaded(StateKind.weights):
        yield


def measure_switch(run: Run, steps: int) -> Figures:
    """Seconds from a policy that has just learned to an engine that can generate, and back.

    The first time allocates host memory; later ones are given as medians. Collective.
    """
    _to_training(run)
    first = {name: _timed_switch(run, switch) for name, switch in _SWITCHES.items()}
    later = [{name: _timed_switch(run, switch) for name, switch in _SWITCHES.items()} for _ in range(steps)]
    figures: Figures = {}
    for name in _SWITCHES:
        parts = {part: clock.median([switches[name][part] for switches in later]) for part in later[0][name]}
        figures[name] = {"seconds, the first time": first[name]["seconds"], **parts}
    return figures


def _to_generation(run: Run) -> None:
    run.sync()
    with run.phase("generate"):
        seeded_lengths(run).generator._wake("kv_cache")


def _to_training(run: Run) -> None:
    with run.phase("m_step"):
        run.models.policy.offloader.onload(*StateKind)
        run.models.policy.offloader.invalidate_host_copies()


_SWITCHES: dict[str, Callable[[Run], None]] = {
    "training to generating": _to_generation,
    "generating to training": _to_training,
}


def _timed_switch(run: Run, switch: Callable[[Run], None]) -> dict[str, float]:
    """Seconds in all and of each part, and the GB moved between device and host."""
    engine, mover, watch = seeded_lengths(run).generator, run.models.policy.offloader, clock.Stopwatch()
    before = mover.bytes

    def waking() -> float:
        return watch.seconds.get("generator wakes", 0.0) + watch.seconds.get("policy wakes", 0.0)

    with contextlib.ExitStack() as stack:
        stack.enter_context(watch.watching(mover, "offload", "policy rests"))
        stack.enter_context(watch.watching(mover, "onload", "policy wakes"))
        stack.enter_context(watch.watching(engine, "_wake", "generator wakes"))
        stack.enter_context(watch.watching(engine, "sleep", "generator sleeps"))
        stack.enter_context(watch.watching(engine, "load_weights", "sync", waking))
        seconds = clock.timed(lambda: switch(run))
    parts = {f"seconds, {name}": clock.slowest(value) for name, value in sorted(watch.seconds.items())}
    return {"seconds": seconds, **parts, "GB moved a rank": (mover.bytes - before) / 1e9}


def measure_iteration(run: Run, iterations: int) -> Figures:
    """Seconds of iterations, each with the sync that ends it, after an untimed one. Collective.

    Partial rollouts have a second untimed one, because only then responses continue and pause as often as later.
    Training is the time of passes and steps of policy and critic; generating is the time of the engine. Neither
    includes moving state or waking. Everything else is the rest. `phases` has those of the log beside the plan.
    """
    run.sync()
    untimed = 2 if run.config.loop.partial_rollouts else 1
    for number in range(1, untimed + 1):
        _iteration(run, number)
    seeded_lengths(run).response_lengths.clear()
    measured = [_iteration(run, number) for number in range(untimed + 1, untimed + iterations + 1)]
    timed_iterations, usages = zip(*measured, strict=True)
    medians: Figures = {}
    for name in timed_iterations[0]:
        values = [figures.get(name) for figures in timed_iterations]
        known = [value for value in values if value is not None]
        medians[name] = clock.median(known) if known else None
    seconds_of_each = [round(figures["seconds"], 2) for figures in timed_iterations]
    return medians | {"seconds of each": seconds_of_each, "phases": _phases(run, usages)}


def _phases(run: Run, usages: Sequence[Usage]) -> Figures:
    """Seconds and memory of the log's phases beside the plan for these responses. CPUs have no plan."""
    plan = planned_run(Setup(run.models.settings, run.config, run.topology))
    if plan is None:
        return beside_plan(usages, "host", {})
    workload = Workload(tuple(seeded_lengths(run).response_lengths), prompt=run.config.data.max_prompt_tokens)
    return beside_plan(usages, "device", planned_phases(plan, workload))


def _iteration(run: Run, number: int) -> tuple[Figures, Usage]:
    """Figures of one iteration, and seconds and memory of its phases, the most of any rank. Collective."""
    run.state.iteration = number
    tokens, metrics = seeded_lengths(run).tokens, {}
    watch = clock.Stopwatch()
    run.residency.take_usage()

    def work() -> None:
        metrics.update(iterate(run))
        run.sync()

    with _watching_work(run, watch):
        seconds = clock.timed(work)
    tokens = seeded_lengths(run).tokens - tokens
    usage = {name: clock.slowest(value) for name, value in sorted(run.residency.take_usage().items())}
    parts = {name: clock.slowest(value) for name, value in watch.seconds.items()}
    training = sum(value for name, value in parts.items() if name.startswith(("policy", "critic")))
    generating = parts["generate"]
    figures = {
        "seconds": seconds,
        "tokens": tokens,
        "tokens/s/GPU": tokens / seconds / run.topology.world_size,
        **{f"seconds, {name}": value for name, value in sorted(parts.items())},
        "share training": training / seconds,
        "share generating": generating / seconds,
        "share of the rest": 1 - (training + generating) / seconds,
        **_ratios(run, metrics),
        **{name: metrics.get(name) for name in _FIGURES},
        "preemptions": run.generator.take_figures().get("preemptions"),
    }
    return figures, usage


def _ratios(run: Run, metrics: dict[str, float]) -> Figures:
    """The largest distance of the policy's ratios from 1, and its share of the clip range; noise at learning rate 0."""
    farthest = max(metrics["policy/ratio_max"] - 1, 1 - metrics["policy/ratio_min"])
    return {
        "largest |ratio - 1|": farthest,
        "largest |ratio - 1| / clip_range_low": farthest / run.config.policy.clip_range_low,
    }


@contextlib.contextmanager
def _watching_work(run: Run, watch: clock.Stopwatch) -> Iterator[None]:
    engine, seconds = seeded_lengths(run).generator, watch.seconds

    def waking() -> float:
        return seconds.get("generator wakes", 0.0)

    with contextlib.ExitStack() as stack:
        for name, trained in run.models.trainers.items():
            moving = _moving_seconds(trained)
            stack.enter_context(watch.watching(trained, "step", f"{name} steps", moving))
            stack.enter_context(watch.watching(trained, "score", f"{name} reads", moving))
        stack.enter_context(watch.watching(engine, "_wake", "generator wakes"))
        stack.enter_context(watch.watching(engine, "sleep", "generator sleeps"))
        stack.enter_context(watch.watching(engine, "load_weights", "sync", waking))
        stack.enter_context(watch.watching(engine, "generate", "generate", lambda: waking() + seconds.get("sync", 0.0)))
        yield


def _moving_seconds(trained: MegatronModel) -> Callable[[], float]:
    return lambda: trained.offloader.seconds

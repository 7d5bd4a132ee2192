"""Sections switch and iteration: a real Run, with random weights, on questions without meaning."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarking import clock
from benchmarking.lengths import Lengths
from benchmarking.report import Figures
from benchmarking.setup import randomize
from tempo_megatron.config import Config
from tempo_megatron.conversion.mapping import Role
from tempo_megatron.data.sources import Answers
from tempo_megatron.data.types import Rollout
from tempo_megatron.generation.engine import Completion, Request
from tempo_megatron.grading import Grader
from tempo_megatron.megatron import model
from tempo_megatron.megatron.offload import Kind
from tempo_megatron.megatron.trainer import ScoringModel
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


class DrawnLengths:
    """A generator whose responses have lengths drawn by their seeds, and count as complete: they are graded."""

    def __init__(self, generator: Any, lengths: Lengths) -> None:
        self.within, self._lengths = generator, lengths
        self.tokens = 0
        """of prompts and responses so far"""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.within, name)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        drawn = [replace(request, max_tokens=self._lengths.draw(request.seed)) for request in requests]
        made = self.within.generate(drawn)
        read = sum(len(request.prompt_ids) for request in requests)
        self.tokens += read + sum(len(done.response_ids) for done in made)
        return [replace(done, finish_reason="stop") for done in made]


class RandomModels(Models):
    """Models that start from random weights."""

    def build(self, role: Role, start: str) -> Any:
        module = model.build(role, self.settings, self._config, self._topology)
        randomize(module, self._topology)
        return module


class AlternatingGrader(Grader):
    """Grades for the time that it takes, and calls every other sample right.

    Gradients of equal grades would be 0 and cost less power than true ones.
    """

    def grade(self, rollouts: Sequence[Rollout], answers: Answers) -> list[float]:
        super().grade(rollouts, answers)
        return [float(rollout.sample % 2) for rollout in rollouts]


def build_benchmark_run(config: Config, lengths: Lengths) -> Run:
    """Return a run whose models start from random weights, and whose responses have random lengths."""

    def make_generator(*parts: Any) -> Any:
        generator: Any = make_vllm_generator(*parts)
        generator.eos_token_ids = []
        return DrawnLengths(generator, lengths)

    return build_run(config, make_models=RandomModels, make_generator=make_generator, make_grader=AlternatingGrader)


def engine(run: Run) -> Any:
    """Return the `DrawnLengths` of a benchmark's run."""
    return run.generator.engine


@contextlib.contextmanager
def weights_awake(run: Run) -> Iterator[None]:
    """Keep the policy's weights on the device, and nothing else of the models."""
    with run.phase("sync"), run.models.policy.awake(Kind.weights):
        yield


def measure_switch(run: Run, steps: int) -> Figures:
    """From a policy that has just learned to an engine that could generate, and back: the first time, which takes host
    memory, and medians of later ones. Collective."""
    _to_training(run)
    first = {name: _watched(run, way) for name, way in _WAYS.items()}
    later = [{name: _watched(run, way) for name, way in _WAYS.items()} for _ in range(steps)]
    found: Figures = {}
    for name in _WAYS:
        parts = {part: clock.median([one[name][part] for one in later]) for part in later[0][name]}
        found[name] = {"seconds, the first time": first[name]["seconds"], **parts}
    return found


def _to_generation(run: Run) -> None:
    run.sync()
    with run.phase("generate"):
        engine(run).within._wake("kv_cache")


def _to_training(run: Run) -> None:
    with run.phase("m_step"):
        run.models.policy.offloader.wake(*Kind)
        run.models.policy.offloader.changed()


_WAYS: dict[str, Callable[[Run], None]] = {
    "training to generating": _to_generation,
    "generating to training": _to_training,
}


def _watched(run: Run, way: Callable[[Run], None]) -> dict[str, float]:
    """Seconds in all and of the parts, and what was moved between device and host."""
    vllm, mover, watch = engine(run).within, run.models.policy.offloader, clock.Stopwatch()
    before = mover.bytes

    def waking() -> float:
        return watch.seconds.get("generator wakes", 0.0) + watch.seconds.get("policy wakes", 0.0)

    with contextlib.ExitStack() as stack:
        stack.enter_context(watch.watching(mover, "rest", "policy rests"))
        stack.enter_context(watch.watching(mover, "wake", "policy wakes"))
        stack.enter_context(watch.watching(vllm, "_wake", "generator wakes"))
        stack.enter_context(watch.watching(vllm, "sleep", "generator sleeps"))
        stack.enter_context(watch.watching(vllm, "load_weights", "sync", waking))
        seconds = clock.timed(lambda: way(run))
    parts = {f"seconds, {name}": clock.slowest(value) for name, value in sorted(watch.seconds.items())}
    return {"seconds": seconds, **parts, "GB moved a rank": (mover.bytes - before) / 1e9}


def measure_iteration(run: Run, iterations: int) -> Figures:
    """Whole iterations, each with the sync that ends it; the first is not counted. Collective.

    Training is what passes and steps of policy and critic take, generating what the engine takes: neither counts
    moving or waking. All else, whoever does it, is the rest.
    """
    run.sync()
    _iteration(run, 1)
    found = [_iteration(run, number) for number in range(2, iterations + 2)]
    middle: Figures = {}
    for name in found[0]:
        values = [one.get(name) for one in found]
        known = [value for value in values if value is not None]
        middle[name] = clock.median(known) if known else None
    return middle | {"seconds of each": [round(one["seconds"], 2) for one in found]}


def _iteration(run: Run, number: int) -> Figures:
    run.state.iteration = number
    tokens, metrics = engine(run).tokens, {}
    watch = clock.Stopwatch()

    def work() -> None:
        metrics.update(iterate(run))
        run.sync()

    with _watching_work(run, watch):
        seconds = clock.timed(work)
    tokens = engine(run).tokens - tokens
    run.log("train", metrics)
    parts = {name: clock.slowest(value) for name, value in watch.seconds.items()}
    training = sum(value for name, value in parts.items() if name.startswith(("policy", "critic")))
    generating = parts["generate"]
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens/s/GPU": tokens / seconds / run.topology.world_size,
        **{f"seconds, {name}": value for name, value in sorted(parts.items())},
        "share training": training / seconds,
        "share generating": generating / seconds,
        "share of the rest": 1 - (training + generating) / seconds,
        **_ratios(run, metrics),
        **{name: metrics.get(name) for name in _FIGURES},
        **_logged(run),
    }


def _ratios(run: Run, metrics: dict[str, float]) -> Figures:
    """How far the policy's ratios went from 1, which at learning rate 0 is noise, and as a share of the clip."""
    farthest = max(metrics["policy/ratio_max"] - 1, 1 - metrics["policy/ratio_min"])
    return {
        "largest |ratio - 1|": farthest,
        "largest |ratio - 1| / clip_range_low": farthest / run.config.policy.clip_range_low,
    }


@contextlib.contextmanager
def _watching_work(run: Run, watch: clock.Stopwatch) -> Iterator[None]:
    vllm, taken = engine(run).within, watch.seconds

    def waking() -> float:
        return taken.get("generator wakes", 0.0)

    with contextlib.ExitStack() as stack:
        for name, trained in run.models.trainers.items():
            moving = _moving(trained)
            stack.enter_context(watch.watching(trained, "step", f"{name} steps", moving))
            stack.enter_context(watch.watching(trained, "score", f"{name} reads", moving))
        stack.enter_context(watch.watching(vllm, "_wake", "generator wakes"))
        stack.enter_context(watch.watching(vllm, "sleep", "generator sleeps"))
        stack.enter_context(watch.watching(vllm, "load_weights", "sync", waking))
        stack.enter_context(watch.watching(vllm, "generate", "generate", lambda: waking() + taken.get("sync", 0.0)))
        yield


def _moving(trained: ScoringModel) -> Callable[[], float]:
    return lambda: trained.offloader.seconds


def _logged(run: Run) -> Figures:
    """Seconds and memory of each phase as the run's own log has them; its first rank's."""
    if not run.console.is_first:
        return {}
    line = json.loads((run.directory / "metrics.jsonl").read_text().splitlines()[-1])
    kept = ("seconds/", "memory/", "generation/preemptions")
    return {f"log: {name}": value for name, value in line.items() if name.startswith(kept)}

"""A run of the loop whose engine, grader and models are fakes that note what they do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from tempo_megatron.config import Config, EvaluationConfig
from tempo_megatron.data.streams import Stream
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.requests import Completion, Request
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.metrics.calibration import CalibrationBin
from tempo_megatron.training import loop
from tempo_megatron.training.phases.collect import Collector
from tempo_megatron.training.phases.evaluate import Evaluator
from tempo_megatron.training.phases.length_history import LengthHistory
from tempo_megatron.training.phases.select_checkpoint import CheckpointSelector
from tempo_megatron.training.reporting import Console
from tempo_megatron.training.residency import DeviceResidency
from tempo_megatron.training.run import Run
from tempo_megatron.training.state import RunState
from tools.killing.recorded import pause_unfinished

LABELED, UNLABELED, MEASURED = 1, 2, 3
"""The first token of the prompts of each kind."""
RIGHT, WRONG = 7, 8
"""The only token of a response."""


def prompts(kind: int, count: int) -> list[Prompt]:
    answer = None if kind == UNLABELED else {"answer": "x"}
    return [Prompt(f"{kind}-{number}", (kind, number), "here", "exact", answer) for number in range(count)]


class FakeEngine:
    """Answers right and wrong in turn; notes the responses of each kind."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.requests: list[Request] = []
        self.iteration = self.sleeps = 0
        self.figures: dict[str, float] = {}

    def generate(self, requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]:
        self.requests = list(requests)
        kinds = [request.prompt_ids[0] for request in requests]
        measured = " measured" if MEASURED in kinds else ""
        self.events.append(f"generate {kinds.count(LABELED)}+{kinds.count(UNLABELED)}{measured}")
        return [Completion(((RIGHT, WRONG)[number % 2],), (0.0,), "stop") for number in range(len(requests))]

    def load_weights(self) -> None:
        self.events.append("sync")

    def sleep(self) -> None:
        self.sleeps += 1

    def take_figures(self) -> dict[str, float]:
        return {}


class UnevenEngine(FakeEngine):
    """Makes unlabeled responses of one to twelve tokens, whose log-probs are minus the iteration's number; those of
    unfinished groups pause."""

    def generate(self, requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]:
        completions = []
        for request, completion in zip(requests, super().generate(requests), strict=True):
            length = 1 + request.seed % 12 if request.prompt_ids[0] == UNLABELED else 1
            ids = completion.response_ids * length
            completions.append(Completion(ids, (-float(self.iteration),) * length, "stop"))
        return pause_unfinished(requests, completions, enough_groups)


class FakeGrader:
    errors = timeouts = 0

    def grade(self, rollouts: Sequence[Rollout], answers: Any) -> list[float]:
        return [float(rollout.response_ids == (RIGHT,)) for rollout in rollouts]

    def extract(self, rollouts: Sequence[Rollout]) -> list[str]:
        return [str(rollout.response_ids) for rollout in rollouts]

    def cluster(self, rollouts: Sequence[Rollout]) -> list[int]:
        return [rollout.response_ids[0] for rollout in rollouts]


class FakeExpertLoad:
    """Counts the updates since the last reset, as the share of the busiest expert."""

    def __init__(self) -> None:
        self.updates = 0

    def take_metrics(self) -> dict[str, float]:
        shares = {"expert_share_max": float(self.updates)}
        self.reset()
        return shares

    def reset(self) -> None:
        self.updates = 0


class FakeModel:
    """Notes the rows that it scores, and that it learns. As a critic it prefers responses of one token."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events
        self.optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}])
        self.expert_load = FakeExpertLoad()
        self.steps = 0
        self.preferred = RIGHT

    def score(self, batch: Batch, score: Any) -> dict[str, torch.Tensor]:
        self.events.append(f"{self.name} scores {batch.rows}")
        zeros = torch.zeros(batch.tokens.shape)
        return {"values": (batch.tokens == self.preferred).float(), "log_probs": zeros, "entropy": zeros}

    def step(self, batch: Batch, *functions: Any) -> tuple[dict[str, torch.Tensor], float]:
        self.events.append(f"{self.name} learns")
        self.expert_load.updates += 1
        return {name: torch.ones(batch.rows) for name in ("squared_error", "ratio", "clipped", "kl")}, 1.0


def build_fake(name: str = "tempo", **settings: Any) -> tuple[Any, list[str]]:
    """Return a run in iteration 1, of two labeled and three unlabeled prompts with two samples each, and its events."""
    events: list[str] = []
    config = Config(method=name)
    config.loop.labeled_prompts, config.loop.unlabeled_prompts, config.loop.samples_per_prompt = 2, 3, 2
    config.policy.mini_batches = config.critic.mini_batches = config.policy.epochs = config.critic.epochs = 1
    for key, value in settings.items():
        setattr(config.loop, key, value)
    engine, grader, residency = FakeEngine(events), FakeGrader(), DeviceResidency(torch.device("cpu"))
    policy, critic = FakeModel("policy", events), FakeModel("critic", events)
    streams = {kind: Stream(prompts(kind, 8), 0, str(kind)) for kind in (LABELED, UNLABELED)}
    measured = prompts(MEASURED, 1) if config.loop.gate else []

    def note(event: str) -> Callable[..., None]:
        return lambda *_, **__: events.append(event)

    noted_bins: list[tuple[str, Sequence[CalibrationBin]]] = []
    parts: dict[str, Any] = {
        "topology": None,
        "console": Console(is_first=False),
        "watchdog": SimpleNamespace(stop=lambda: None),
        "lock": None,
        "data": SimpleNamespace(labeled=streams[LABELED], unlabeled=streams[UNLABELED], examples=Stream([], 0, "")),
        "grader": grader,
        "evaluator": Evaluator({}, {}, grader, str, EvaluationConfig(), 1, None),  # type: ignore[arg-type]
        "selector": CheckpointSelector(None, [], config.checkpoint),  # type: ignore[arg-type]
        "models": SimpleNamespace(
            policy=policy,
            critic=critic,
            reference=None,
            trainers={"policy": policy, "critic": critic},
            scores=lambda *statistics: None,
            needed_critic=critic,
        ),
        "lifecycle": SimpleNamespace(
            in_stages=False,
            unconcluded=None,
            is_in=lambda stage: False,
            interruptible=lambda generator: contextlib.nullcontext(),
            saver=SimpleNamespace(check=lambda: None, newest_iteration=lambda: None),
            save=note("save"),
        ),
        "metrics_log": SimpleNamespace(write=note("log")),
        "recorder": SimpleNamespace(
            is_due=lambda iteration: False,
            record_evaluated=lambda *_: None,
            note_bins=lambda moment, bins: noted_bins.append((moment, bins)),
            noted_bins=noted_bins,
            note_values=lambda *_: None,
            write_critic_line=lambda _: None,
        ),
        "collector": Collector(
            config,
            engine,
            grader,
            streams[LABELED],
            streams[UNLABELED],
            measured,
            residency.phase,  # type: ignore[arg-type]
        ),
    }
    run = Run(config=config, residency=residency, generator=engine, state=RunState(1), start_time=0.0, **parts)  # type: ignore[arg-type]
    return run, events


def restore(run: Any, state: RunState) -> None:
    """Give the run what a checkpoint's state holds of streams, expected lengths and paused responses."""
    collector = run.collector
    collector.labeled.position, collector.unlabeled.position = state.labeled_position, state.unlabeled_position
    collector.history, collector.carried = LengthHistory(state.expected_tokens), list(state.carried)


def steps(run: Any, events: list[str], iteration: int = 1) -> list[str]:
    """Return what happens in an iteration."""
    events.clear()
    run.state.iteration = iteration
    loop.iterate(run)
    return list(events)

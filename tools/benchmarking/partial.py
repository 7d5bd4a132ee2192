"""Section partial: calls in which every response ends, and calls that pause once enough groups are whole."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from statistics import fmean
from typing import Any

from benchmarking import clock
from benchmarking.generation import RolloutWorkload, random_prompts
from benchmarking.lengths import Lengths
from benchmarking.planned import planned_run
from benchmarking.report import Figures
from benchmarking.run import SeededLengths
from benchmarking.setup import Setup
from tempo_megatron.config import Config, LearnsFrom
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.requests import PAUSED, Completion, Request
from tempo_megatron.planning.partial_rollouts import simulate_calls
from tempo_megatron.planning.schedule import Schedule
from tempo_megatron.planning.workload import Workload
from tempo_megatron.training.phases.generate import Draft, complete, new_drafts
from tempo_megatron.training.phases.partial_rollouts import Group, sample_groups

_WARM_UP = 2
"""The untimed calls with pauses. The first one carries nothing over; the second carries what the first one left."""


class TimedCalls:
    """A generator that measures its calls. Each starts with an empty prefix cache, as after a sync. Collective."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        """The response tokens of each call, of all replicas."""
        self.paused: list[float] = []
        """The share of each call's requests that paused or did not start."""

    def generate(self, requests: Sequence[Request], enough_groups: int | None) -> list[Completion]:
        completions: list[Completion] = []
        self._generator._llm.reset_prefix_cache()
        self.seconds.append(clock.timed(lambda: completions.extend(self._generator.generate(requests, enough_groups))))
        self.tokens.append(sum(len(completion.response_ids) for completion in completions))
        self.paused.append(sum(each.finish_reason == PAUSED for each in completions) / len(completions))
        return completions


def measure_partial(setup: Setup, generator: Any, workload: RolloutWorkload, share: float) -> Figures:
    """Seconds and tokens of generate calls without and with `loop.partial_rollouts`, `workload.rounds` of each.

    A call yields `workload.prompts` whole groups of `workload.samples` unlabeled responses. Both ways take the same
    prompts in the same order, and the responses to a prompt have the same lengths. No model learns in between. Calls
    with pauses differ much, so the plan predicts these very calls. Collective.
    """
    config = partial_config(setup.config, workload, share)
    prompts = _prompts(workload, config, setup.settings.vocab_size)
    generator.generate([Request(prompt.token_ids, 0, 2, 1.0, 1.0) for prompt in prompts[: 2 * generator.replicas]])
    calls = TimedCalls(generator)
    whole = finish_all(SeededLengths(calls, workload.lengths), config, prompts, workload.rounds)
    lengths = tuple(len(rollout.response_ids) for rollouts in whole for rollout in rollouts)
    planned = _planned_seconds(setup, config, prompts, workload, lengths)
    figures = {"all finish": _figures(setup, calls, whole) | planned["all finish"]}
    calls = TimedCalls(generator)
    parts = pause_some(SeededLengths(calls, workload.lengths), config, prompts, _WARM_UP + workload.rounds)[_WARM_UP:]
    figures["partial"] = _figures(setup, calls, parts) | planned["partial"]
    speeds = {name: way["trained tokens/s/GPU"] for name, way in figures.items()}
    return figures | {"trained tokens/s, partial / all finish": speeds["partial"] / speeds["all finish"]}


def partial_config(config: Config, workload: RolloutWorkload, share: float) -> Config:
    """The config with partial rollouts of this share, whose M-step learns from the workload's groups alone."""
    partial = copy.deepcopy(config)
    partial.policy.learns_from = LearnsFrom.unlabeled
    partial.loop = replace(
        config.loop,
        unlabeled_prompts=workload.prompts,
        samples_per_prompt=workload.samples,
        votes_per_prompt=0,
        partial_rollouts=share,
    )
    return partial


def finish_all(engine: Any, config: Config, prompts: Sequence[Prompt], calls: int) -> list[list[Rollout]]:
    """The rollouts of each call if all responses to its prompts end."""
    size = config.loop.unlabeled_prompts
    batches = [_drafts(config, prompts[number * size : (number + 1) * size]) for number in range(calls)]
    return [complete(engine, drafts, **_sampling(config)) for drafts in batches]


def pause_some(engine: Any, config: Config, prompts: Sequence[Prompt], calls: int) -> list[list[Rollout]]:
    """The rollouts that the M-step after each call learns from with `loop.partial_rollouts`."""
    trained: list[list[Rollout]] = []
    carried: list[Group] = []
    taken = 0
    for number in range(calls):
        new = prompts[taken : taken + config.loop.prompts_in_flight - len(carried)]
        taken += len(new)
        step = sample_groups(
            lambda drafts, enough: complete(engine, drafts, **_sampling(config), enough_groups=enough),
            [],
            _drafts(config, new),
            carried,
            samples=config.loop.samples_per_prompt,
            loop=config.loop,
            seed=config.seed,
            iteration=number,
        )
        carried = step.carried
        trained.append([rollout for group in step.trained for rollout in group.rollouts])
    return trained


def _prompts(workload: RolloutWorkload, config: Config, vocabulary: int) -> list[Prompt]:
    """As many prompts as all calls can take."""
    count = config.loop.prompts_in_flight + (_WARM_UP + workload.rounds) * workload.prompts
    all_ids = random_prompts(replace(workload, prompts=count), vocabulary)
    return [Prompt(str(number), tuple(ids), "benchmark", "exact") for number, ids in enumerate(all_ids)]


def _drafts(config: Config, prompts: Sequence[Prompt]) -> list[Draft]:
    """New drafts, whose seeds depend on their prompts alone."""
    pairs = [("unlabeled", prompt) for prompt in prompts]
    return new_drafts(pairs, seed=config.seed, iteration="benchmark", samples=config.loop.samples_per_prompt)


def _sampling(config: Config) -> dict[str, Any]:
    return {"max_tokens": config.generation.max_response_tokens, "temperature": 1.0, "top_p": 1.0}


def group_lengths(config: Config, prompts: Sequence[Prompt], lengths: Lengths) -> Iterator[list[int]]:
    """Yields the lengths of the responses to each prompt, in order."""
    for prompt in prompts:
        yield [lengths.draw(draft.seed) for draft in _drafts(config, [prompt])]


def _planned_seconds(
    setup: Setup, config: Config, prompts: Sequence[Prompt], workload: RolloutWorkload, lengths: tuple[int, ...]
) -> dict[str, Figures]:
    """What `tempo plan` predicts for calls whose responses all end, and for the timed calls that pause.

    `lengths` are those of the responses that all end. Without a prediction (on CPUs) there are no figures.
    """
    run = planned_run(setup, config)
    if run is None:
        return {"all finish": {}, "partial": {}}
    schedule = Schedule(run, Workload(lengths, prompt=workload.prompt_tokens))
    calls = simulate_calls(group_lengths(config, prompts, workload.lengths), config.loop)
    timed = [schedule.partial_call_seconds(call) for call in islice(calls, _WARM_UP, _WARM_UP + workload.rounds)]
    return {
        "all finish": {"seconds that `tempo plan` predicts": schedule.generate_seconds(schedule.rollouts.unlabeled)},
        "partial": {
            "seconds that `tempo plan` predicts": fmean(timed),
            "predicted seconds of each": [round(seconds, 3) for seconds in timed],
            "mean of all calls that `tempo plan` predicts": schedule.partial_generate_seconds(),
        },
    }


def _figures(setup: Setup, calls: TimedCalls, trained: Sequence[Sequence[Rollout]]) -> Figures:
    """Figures of the last calls, those that yielded the rollouts of `trained`."""
    timed = slice(-len(trained), None)
    seconds, world_size = calls.seconds[timed], setup.topology.world_size
    trained_tokens = sum(len(rollout.response_ids) for rollouts in trained for rollout in rollouts)
    return {
        "responses that train a call": len(trained[0]),
        "seconds": fmean(seconds),
        "seconds of each": [round(value, 3) for value in seconds],
        "tokens/s/GPU": sum(calls.tokens[timed]) / sum(seconds) / world_size,
        "trained tokens/s/GPU": trained_tokens / sum(seconds) / world_size,
        "share paused": sum(calls.paused[timed]) / len(seconds),
        "oldest token, in M-steps": max(rollout.staleness for rollouts in trained for rollout in rollouts),
    }

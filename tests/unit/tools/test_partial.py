"""The benchmark's calls without and with pauses generate the same responses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import pytest
from benchmarking.generation import RolloutWorkload
from benchmarking.lengths import Lengths
from benchmarking.partial import finish_all, group_lengths, partial_config, pause_some
from benchmarking.run import SeededLengths

from tempo_megatron.config import Config
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.requests import PAUSED, Completion, Request
from tempo_megatron.planning.partial_rollouts import PartialCall, simulate_calls

WORKLOAD = RolloutWorkload(6, 3, 1, Lengths.parse("uniform:1:50"), rounds=6)


class ParallelEngine:
    """An engine with a slot for every request, which pauses at the step that makes enough groups whole."""

    def __init__(self) -> None:
        self.calls: list[PartialCall] = []

    def generate(self, requests: Sequence[Request], enough_groups: int | None) -> list[Completion]:
        last = max(request.max_tokens for request in requests)
        if enough_groups is not None:
            groups: dict[int | None, list[Request]] = {}
            for request in requests:
                groups.setdefault(request.group, []).append(request)
            steps = {group: max(each.max_tokens for each in members) for group, members in groups.items()}
            due = [steps[group] for group, members in groups.items() if members[0].must_finish]
            last = max([sorted(steps.values())[enough_groups - 1] if enough_groups > 0 else 0, *due])
        prefixes = [len(request.prompt_ids) - 1 for request in requests]  # the prompt is one token
        tokens = sum(min(last, request.max_tokens) for request in requests)
        self.calls.append(PartialCall(last, tokens, sum(map(bool, prefixes)), sum(prefixes)))
        return [
            Completion(
                tuple(range(min(last, request.max_tokens))),
                (0.0,) * min(last, request.max_tokens),
                "length" if request.max_tokens <= last else PAUSED,
            )
            for request in requests
        ]


def lengths(rollouts: Sequence[Sequence[Rollout]]) -> dict[tuple[str, int], int]:
    """Returns the tokens of each response by prompt and sample."""
    return {(each.prompt.id, each.sample): len(each.response_ids) for call in rollouts for each in call}


def test_a_response_is_as_long_with_pauses_as_without() -> None:
    """Otherwise the two ways would not be measured on the same work. Every call trains as many whole groups."""
    config = partial_config(Config(), WORKLOAD, share=0.75)
    prompts = [Prompt(str(number), (number,), "", "exact") for number in range(60)]
    whole = finish_all(SeededLengths(ParallelEngine(), WORKLOAD.lengths), config, prompts, 10)
    parts = pause_some(SeededLengths(ParallelEngine(), WORKLOAD.lengths), config, prompts, 6)
    assert all(len(call) == 6 * 3 for call in [*whole, *parts])
    assert max(each.staleness for call in parts for each in call) == config.loop.staleness == 1
    assert lengths(parts).items() <= lengths(whole).items()


@pytest.mark.parametrize(("share", "staleness"), [(0.5, 1), (0.5, 3), (0.75, 1), (0.9, 2)])
def test_the_plan_predicts_the_very_calls_that_are_measured(share: float, staleness: int) -> None:
    """Their steps and tokens differ much, so the mean of other calls is no prediction of one."""
    config = partial_config(Config(), WORKLOAD, share)
    config.loop.staleness = staleness
    prompts = [Prompt(str(number), (number,), "", "exact") for number in range(90)]
    engine = ParallelEngine()
    pause_some(SeededLengths(engine, WORKLOAD.lengths), config, prompts, 10)
    planned = list(islice(simulate_calls(group_lengths(config, prompts, WORKLOAD.lengths), config.loop), 10))
    assert planned == engine.calls
    assert len({call.steps for call in planned}) > 5

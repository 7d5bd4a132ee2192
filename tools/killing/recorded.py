"""Replaces vLLM and the grading processes: rollouts and grades depend only on the request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tempo_megatron.data.types import Rollout
from tempo_megatron.generation.requests import PAUSED, Completion, Request


class Recorded:
    """A generator whose responses depend on neither the policy nor the layout nor the number of restarts."""

    def generate(self, requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]:
        return pause_unfinished(requests, [self._respond(request) for request in requests], enough_groups)

    def load_weights(self) -> None: ...

    def sleep(self) -> None: ...

    def take_figures(self) -> dict[str, float]:
        return {}

    def _respond(self, request: Request) -> Completion:
        length = 2 + request.seed % 5
        backward = request.prompt_ids[:0:-1][:length]
        ids = tuple((token + (request.seed >> 3) % 2) % 60 + 3 for token in backward)
        response = (*ids, 1)[: request.max_tokens]
        return Completion(response, (-1.0,) * len(response), "stop" if len(response) > len(ids) else "length")


def pause_unfinished(
    requests: Sequence[Request], completions: Sequence[Completion], enough_groups: int | None
) -> list[Completion]:
    """The completions as an engine returns them that samples a token of every request in each step, and pauses those of
    unfinished groups once enough are whole."""
    if enough_groups is None:
        return list(completions)
    ends: dict[int, int] = {}
    for request, completion in zip(requests, completions, strict=True):
        if request.group is not None:
            ends[request.group] = max(ends.get(request.group, 0), len(completion.response_ids))
    due = {request.group for request in requests if request.must_finish}
    steps = max(
        [*sorted(ends.values())[:enough_groups], *(ends[group] for group in due if group is not None)], default=0
    )
    return [
        each
        if request.group is None or len(each.response_ids) <= steps
        else Completion(each.response_ids[:steps], each.log_probs[:steps], PAUSED)
        for request, each in zip(requests, completions, strict=True)
    ]


class Parity:
    """A grader without processes. A response of even length is right."""

    errors = timeouts = 0

    def __init__(self, *args: Any) -> None: ...

    def twin(self) -> Parity:
        return self

    def grade(self, rollouts: Sequence[Rollout], answers: Any) -> list[float]:
        return [float(len(rollout.response_ids) % 2 == 0) for rollout in rollouts]

    def extract(self, rollouts: Sequence[Rollout]) -> list[str]:
        return [str(len(rollout.response_ids)) for rollout in rollouts]

    def cluster(self, rollouts: Sequence[Rollout]) -> list[int]:
        return [len(rollout.response_ids) for rollout in rollouts]

    def close(self) -> None: ...

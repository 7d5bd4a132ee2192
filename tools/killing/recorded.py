"""Replaces vLLM and the grading processes: rollouts and grades depend only on the request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tempo_megatron.data.types import Rollout
from tempo_megatron.generation.requests import Completion, Request


class Recorded:
    """A generator whose responses depend on neither the policy nor the layout nor the number of restarts."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [self._respond(request) for request in requests]

    def load_weights(self) -> None: ...

    def sleep(self) -> None: ...

    def take_figures(self) -> dict[str, float]:
        return {}

    def _respond(self, request: Request) -> Completion:
        length = 2 + request.seed % 5
        backward = request.prompt_ids[:0:-1][:length]
        ids = tuple((token + (request.seed >> 3) % 2) % 60 + 3 for token in backward)
        return Completion((*ids, 1), (-1.0,) * (len(ids) + 1), "stop")


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

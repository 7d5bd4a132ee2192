"""Runs of a real recipe with other generators, and with other factories as `build_run` takes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tempo_megatron.config import Config
from tempo_megatron.generation.requests import Completion, Request
from tempo_megatron.training.build import build_run
from tempo_megatron.training.run import Run
from tools.killing.recorded import Recorded


def build_recorded(config: Config, generator: Any = None, **factories: Any) -> Run:
    """Return a run with this generator; by default one whose responses depend on the requests alone."""
    return build_run(config, make_generator=lambda *_: generator or Recorded(), **factories)


class Disagreeing(Recorded):
    """A generator whose log-probs are up to 0.6 above and below those of a policy that has learned nothing."""

    def _respond(self, request: Request) -> Completion:
        completion = super()._respond(request)
        log_probs = tuple(-4.1 + 0.3 * (7 * token % 5 - 2) for token in completion.response_ids)
        return replace(completion, log_probs=log_probs)

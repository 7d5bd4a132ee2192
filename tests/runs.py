"""Runs of a real recipe with another generator, and with other factories as `build_run` takes them."""

from __future__ import annotations

from typing import Any

from tempo_megatron.config import Config
from tempo_megatron.training.build import build_run
from tempo_megatron.training.run import Run
from tools.killing.recorded import Recorded


def build_recorded(config: Config, generator: Any = None, **factories: Any) -> Run:
    """Return a run with this generator; by default one whose responses depend on the requests alone."""
    return build_run(config, make_generator=lambda *_: generator or Recorded(), **factories)

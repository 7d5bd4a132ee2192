"""The rank of test_methods: runs of several recipes one after another, on one vLLM engine.

usage: methods_worker.py RECIPE PLAN, where PLAN is a JSON list of lists of overrides
"""

from __future__ import annotations

import json
import sys
from typing import Any

from tempo_megatron.config import load_config
from tempo_megatron.megatron import topology
from tempo_megatron.training.loop import train
from tempo_megatron.training.run import Run
from tempo_megatron.validation.recipe import recipe_problems


def share_what_takes_long() -> None:
    """Give all runs one process group and one engine. Each run begins by sending the engine its own weights."""
    initialize, build = topology.initialize, Run._build_generator
    places: list[topology.Topology] = []
    engines: list[Any] = []

    def one_place(*arguments: Any) -> topology.Topology:
        places[:] = places or [initialize(*arguments)]
        return places[0]

    def one_engine(run: Run) -> Any:
        engines[:] = engines or [build(run)]
        engines[0].weights = run.models.policy_tensors
        return engines[0]

    topology.initialize = one_place
    topology.shutdown = lambda: None
    Run._build_generator = one_engine  # type: ignore[method-assign]


def main(recipe: str, plan: str) -> None:
    share_what_takes_long()
    for overrides in json.loads(plan):
        config = load_config(recipe, overrides)
        assert recipe_problems(config) == []
        train(config)


if __name__ == "__main__":
    main(*sys.argv[1:])

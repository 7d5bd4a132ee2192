"""The rank of test_methods: runs of several recipes one after another, on one vLLM engine and with one grader.

usage: methods_worker.py RECIPE PLAN, where PLAN is a JSON list of lists of overrides
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tempo_megatron.config import Config, load_config
from tempo_megatron.megatron import topology
from tempo_megatron.training.build import build_run, make_vllm_generator
from tempo_megatron.training.loop import train
from tempo_megatron.training.run import Run
from tempo_megatron.validation.recipe import recipe_problems
from tests.runs import lasting_graders, make_no_reports


def share_what_takes_long() -> Callable[..., Run]:
    """Return what builds each run with one process group, one engine and the same grading processes.

    Each run begins by sending the engine its own weights. No run makes a report.
    """
    initialize = topology.initialize
    places: list[topology.Topology] = []
    engines: list[Any] = []

    def one_place(*arguments: Any) -> topology.Topology:
        places[:] = places or [initialize(*arguments)]
        return places[0]

    def one_engine(config: Config, hf_path: Path, tokenizer: Any, policy_tensors: Any) -> Any:
        engines[:] = engines or [make_vllm_generator(config, hf_path, tokenizer, policy_tensors)]
        engines[0].weights = policy_tensors
        return engines[0]

    topology.initialize = one_place
    topology.shutdown = lambda: None
    make_no_reports()
    return partial(build_run, make_generator=one_engine, make_grader=lasting_graders())


def main(recipe: str, plan: str) -> None:
    build = share_what_takes_long()
    for overrides in json.loads(plan):
        config = load_config(recipe, overrides)
        assert recipe_problems(config) == []
        train(config, build)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A rank of test_supervised: whole runs whose generator makes up its responses, and troubles that befall rank 1.

usage: supervised_worker.py WHOLE RECIPE [key=value ...]      one run to its end in run_dir WHOLE, and another, in the
                                                              recipe's run_dir, that is interrupted three times
       supervised_worker.py fail|hang RECIPE [key=value ...]  `tempo train`, whose rank 1 fails or hangs in iteration 1
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tempo_megatron import cli
from tempo_megatron.config import Config, load
from tempo_megatron.generation.engine import Completion, GenerationStopped, Request
from tempo_megatron.loop import train
from tempo_megatron.megatron import topology
from tempo_megatron.phases import scoring
from tempo_megatron.run import Run
from tempo_megatron.turns import Turns
from tests.parallel.layout_worker import leave_groups
from tools.killing.recorded import Recorded

WORK = ("warm_start", "evaluate", "grade", "estimate", "observe", "calibrate", "refine", "export")
"""phases in which a rank that does nothing is held to hang, and export for the buckets that sync pulls too; here no
engine generates"""


class Troubled(Recorded):
    """Calls `trouble` with the number of the generate call, on rank 1, and stops as an engine would."""

    def __init__(self, trouble: Callable[[int], None]) -> None:
        self.should_stop: Callable[[], bool] | None = None
        self.calls, self.trouble = 0, trouble

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.calls += 1
        if dist.get_rank() == 1:
            self.trouble(self.calls)
        if self.should_stop:
            asked = torch.tensor([int(self.should_stop())])
            dist.all_reduce(asked)
            if asked:
                raise GenerationStopped
        return super().generate(requests)


def run(config: Config, trouble: Callable[[int], None] = lambda call: None) -> bool:
    topology.shutdown = leave_groups  # to make the process group anew in the same processes is not reliable
    Run._build_generator = lambda self: Troubled(trouble)
    finished = train(config)
    if not finished:
        dist.distributed_c10d._get_default_store().delete_key("tempo/interrupted")
        topology.shutdown()
    return finished


def interrupt_at(call: int) -> Callable[[int], None]:
    return lambda number: os.kill(os.getpid(), signal.SIGUSR1) if number == call else None


@contextlib.contextmanager
def counting(worked: Counter[str]) -> Iterator[None]:
    """The most that this rank tells its watchdog to have done in each phase."""

    @contextlib.contextmanager
    def phase(self: Turns, name: str) -> Iterator[None]:
        with made(self, name):
            yield
            worked[name] = max(worked[name], self.place().ticks)

    made, Turns.phase = Turns.phase, phase
    yield
    Turns.phase = made


def interrupted(recipe: str, whole: str, overrides: Sequence[str]) -> None:
    worked: Counter[str] = Counter()
    with counting(worked):
        assert run(load(recipe, [*overrides, f"run_dir={whole}"]))
    assert all(worked[phase] for phase in WORK), worked
    config = load(recipe, overrides)
    mark = Path(config.run_dir) / "interrupted"
    # 1: evaluation at the start, 2: critic start, 3 and 4: iterations 1 and 2, 5: evaluation after iteration 2.
    assert not run(config, interrupt_at(4))
    checkpoints = sorted(path.name for path in (Path(config.run_dir) / "checkpoints").glob("iteration-*"))
    assert checkpoints == ["iteration-000000", "iteration-000001"] and mark.exists()
    # Iteration 2's rollouts were given up; then comes its evaluation.
    assert not run(config, interrupt_at(2))
    # That evaluation is made now, and iteration 3 is interrupted while it learns: it goes on to its end.
    made = Run.sync

    def sync(self: Run) -> None:
        if self.iteration == 3 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        made(self)

    Run.sync = sync
    assert not run(config)
    Run.sync = made
    assert run(config) and not mark.exists()


def troubled(kind: str, recipe: str, overrides: Sequence[str]) -> None:
    def fails(self: Run, *given: object) -> dict[str, float]:
        if dist.get_rank() == 1:
            raise ValueError("what rank 1 stumbled over")
        return observe(self, *given)

    def hangs(*given: Any, **settings: Any) -> dict[str, torch.Tensor]:
        if dist.get_rank() == 1 and "entropy" in settings["statistics"] and next(micro_batches) == 1:
            time.sleep(600)
        return token_scores(*given, **settings)

    if kind == "fail":
        observe, Run.observe = Run.observe, fails
    else:  # in the second micro-batch whose old log-probs are read: rank 0 waits in the same forward pass
        micro_batches = itertools.count()
        token_scores, scoring.token_scores = scoring.token_scores, hangs
    Run._build_generator = lambda self: Recorded()
    sys.exit(cli.main(["train", recipe, *overrides]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, recipe, *overrides = sys.argv[1:]
    if what in ("fail", "hang"):
        troubled(what, recipe, overrides)
    interrupted(recipe, what, overrides)

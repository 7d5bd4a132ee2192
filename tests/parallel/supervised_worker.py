"""A rank of test_supervised: whole runs whose generator makes up its responses, and troubles that befall rank 1.

usage: supervised_worker.py WHOLE RECIPE [key=value ...]      one run to its end in run_dir WHOLE, and another, in the
                                                              recipe's run_dir, that is interrupted five times,
                                                              and started once more at its end
       supervised_worker.py fail|hang RECIPE [key=value ...]  `tempo train`, whose rank 1 fails or hangs in iteration 1
       supervised_worker.py second RECIPE [key=value ...]     `tempo train` where another run works
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
from tempo_megatron.config import Config, load_config
from tempo_megatron.generation.engine import Completion, GenerationStopped, Request, WeightSource
from tempo_megatron.megatron import topology
from tempo_megatron.megatron.checkpointing.saver import resumable_checkpoints
from tempo_megatron.megatron.trainer import Score, Trainer
from tempo_megatron.run_dir import lock
from tempo_megatron.training import loop
from tempo_megatron.training.loop import train
from tempo_megatron.training.phases import scoring
from tempo_megatron.training.phases.warm_start import Example
from tempo_megatron.training.residency import DeviceResidency
from tempo_megatron.training.run import Run
from tests.clock import UntilTouched
from tests.parallel.layout_worker import leave_groups
from tools.killing.recorded import Recorded

WORK = ("warm_start", "sync", "evaluate", "grade", "advantages", "observe", "e_step", "m_step")
"""phases in which a rank that does nothing is held to hang; here no engine generates"""


class Troubled(Recorded):
    """Calls `trouble` with the number of the generate call, on rank 1; stops, and pulls `weights`, as an engine
    would."""

    def __init__(self, trouble: Callable[[int], None], weights: WeightSource) -> None:
        self.weights = weights
        self.should_stop: Callable[[], bool] | None = None
        self.calls, self.trouble = 0, trouble

    def load_weights(self) -> None:
        for _ in self.weights():
            pass

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.calls += 1
        if dist.get_rank() == 1:
            self.trouble(self.calls)
        if self.should_stop:
            stop_requested = torch.tensor([int(self.should_stop())])
            dist.all_reduce(stop_requested)
            if stop_requested:
                raise GenerationStopped
        return super().generate(requests)


Trouble = Callable[[int, Run], None]
"""(number of the generate call, the run that asks) -> what befalls it"""


def run(config: Config, trouble: Trouble = lambda call, run: None) -> bool:
    topology.shutdown = leave_groups  # to make the process group anew in the same processes is not reliable
    Run._build_generator = lambda self: Troubled(lambda call: trouble(call, self), self.models.policy_tensors)
    finished = train(config)
    if not finished:
        dist.distributed_c10d._get_default_store().delete_key("tempo/interrupted")
        topology.shutdown()
    return finished


def interrupt_at(call: int) -> Trouble:
    return lambda number, run: os.kill(os.getpid(), signal.SIGUSR1) if number == call else None


def deadline_at(call: int) -> Trouble:
    return lambda number, run: setattr(run.course.interruption, "_deadline", 0.0) if number == call else None


@contextlib.contextmanager
def interrupted_warm_start(step_to_stop: int) -> Iterator[list[int]]:
    """Rank 1 is told to stop in that step, counted from 1; gives the number of examples of each step that is made."""
    examples_of_steps, step = [], loop.warm_start_step

    def counted(policy: Trainer, examples: Sequence[Example], score: Score) -> float:
        examples_of_steps.append(len(examples))
        if len(examples_of_steps) == step_to_stop and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(policy, examples, score)

    loop.warm_start_step = counted
    yield examples_of_steps
    loop.warm_start_step = step


@contextlib.contextmanager
def counting(worked: Counter[str]) -> Iterator[None]:
    """The most that this rank tells its watchdog to have done in each phase."""

    @contextlib.contextmanager
    def phase(self: DeviceResidency, name: str) -> Iterator[None]:
        with original_phase(self, name):
            yield
            worked[name] = max(worked[name], self.place().ticks)

    original_phase, DeviceResidency.phase = DeviceResidency.phase, phase
    yield
    DeviceResidency.phase = original_phase


def interrupted(recipe: str, whole: str, overrides: Sequence[str]) -> None:
    worked: Counter[str] = Counter()
    with counting(worked):
        assert run(load_config(recipe, [*overrides, f"run_dir={whole}"]))
    assert all(worked[phase] for phase in WORK), worked
    config = load_config(recipe, overrides)
    mark = Path(config.run_dir) / "interrupted"

    def saved() -> list[str]:
        assert mark.read_text().strip()
        return [path.name for path in resumable_checkpoints(Path(config.run_dir) / "checkpoints")]

    with interrupted_warm_start(step_to_stop=1) as steps:
        assert not run(config)
        assert saved() == ["interim-warm_start-000001"] and len(steps) == 1
        # Generate calls, 1: evaluation at the start, 2 and 3: critic start.
        assert not run(config, deadline_at(3))
        assert saved() == ["interim-critic_start-000001"] and len(steps) == 2
    # 1: the rest of the critic start, 2 and 3: iterations 1 and 2. (4: evaluation after iteration 2.)
    assert not run(config, interrupt_at(3))
    assert saved() == ["iteration-000000", "interim-iteration-000001"]
    # Iteration 2's rollouts were given up; then comes its evaluation.
    assert not run(config, interrupt_at(2))
    # That evaluation is made now, and iteration 3 is interrupted while it learns: it goes on to its end.
    original_sync = Run.sync

    def sync(self: Run) -> None:
        if self.iteration == 3 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        original_sync(self)

    Run.sync = sync
    assert not run(config)
    Run.sync = original_sync
    assert run(config) and not mark.exists()
    finished_again(config)


def finished_again(config: Config) -> None:
    """A run that is at its end says so, and what it does, when it is started once more."""
    said: list[str] = []
    say, Run.say = Run.say, lambda self, text: said.append(text)
    assert run(config)
    Run.say = say
    finished = [line for line in said if line.startswith(f"{config.run_dir} is finished, at iteration 4")]
    assert len(finished) == (os.environ["RANK"] == "0"), said


def troubled(kind: str, recipe: str, overrides: Sequence[str]) -> None:
    runs: list[Run] = []

    def fails(self: Run, *arguments: object) -> dict[str, float]:
        if dist.get_rank() == 1:
            raise ValueError("what rank 1 stumbled over")
        return observe(self, *arguments)

    def hangs(*arguments: Any, **settings: Any) -> dict[str, torch.Tensor]:
        if "entropy" in settings["statistics"] and next(micro_batches) == 1:
            # Not before: phases in which nobody hangs may take as long as a busy machine needs for them.
            runs[0].config.faults.first_stall_limit_seconds = 15.0
            if dist.get_rank() == 1:
                time.sleep(600)
        return token_scores(*arguments, **settings)

    def builds(self: Run) -> Recorded:
        runs.append(self)
        return Recorded()

    if kind == "second":
        lock.time = UntilTouched(Path(load_config(recipe, overrides).run_dir) / "running-1")
        lock._PAUSE_SECONDS = 6.0  # longer than a watch: the mark is touched in each
    elif kind == "fail":
        observe, Run.observe = Run.observe, fails
    else:  # in the second micro-batch whose old log-probs are read: rank 0 waits in the same forward pass
        micro_batches = itertools.count()
        token_scores, scoring.token_scores = scoring.token_scores, hangs
    Run._build_generator = builds
    sys.exit(cli.main(["train", recipe, *overrides]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, recipe, *overrides = sys.argv[1:]
    if what in ("fail", "hang", "second"):
        troubled(what, recipe, overrides)
    interrupted(recipe, what, overrides)

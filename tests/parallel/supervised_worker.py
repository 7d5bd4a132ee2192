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
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from tempo_megatron import cli
from tempo_megatron.config import Config, load_config
from tempo_megatron.generation.engine import GenerationStopped, WeightSource
from tempo_megatron.generation.requests import Completion, Request
from tempo_megatron.megatron import topology
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.megatron.checkpointing.saver import checkpoint_directories
from tempo_megatron.run_dir import lock
from tempo_megatron.training import loop
from tempo_megatron.training.build import build_run
from tempo_megatron.training.loop import train
from tempo_megatron.training.models import Models
from tempo_megatron.training.phases import scoring
from tempo_megatron.training.residency import DeviceResidency
from tempo_megatron.training.run import Run
from tests.clock import UntilTouched
from tests.parallel.layout_worker import leave_groups
from tests.runs import build_recorded, lasting_graders, lines_of_runs, make_no_reports
from tools.killing.recorded import Recorded

WORK = ("warm_start", "sync", "evaluate", "grade", "advantages", "observe", "e_step", "m_step")
"""phases in which a rank that does nothing is held to hang; here no engine generates"""


GRADERS = lasting_graders()


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

    def generate(self, requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]:
        self.calls += 1
        if dist.get_rank() == 1:
            self.trouble(self.calls)
        if self.should_stop:
            stop_requested = torch.tensor([int(self.should_stop())])
            dist.all_reduce(stop_requested)
            if stop_requested:
                raise GenerationStopped
        return super().generate(requests, enough_groups)


Trouble = Callable[[int, Run], None]
"""(number of the generate call, the run that asks) -> what befalls it"""


Prepare = Callable[[Run], None]


def run(
    config: Config,
    trouble: Trouble = lambda call, run: None,
    prepare: Prepare = lambda run: None,
    **factories: Any,
) -> bool:
    """Train to the end or an interruption. `prepare` changes the run once it is built."""
    topology.shutdown = leave_groups  # to make the process group anew in the same processes is not reliable

    def build(config: Config, **settings: Any) -> Run:
        runs: list[Run] = []
        settings["make_generator"] = lambda *parts: Troubled(lambda call: trouble(call, runs[0]), parts[-1])
        runs.append(build_run(config, make_grader=GRADERS, **settings, **factories))
        prepare(runs[0])
        return runs[0]

    finished = train(config, build)
    if not finished:
        dist.distributed_c10d._get_default_store().delete_key("tempo/interrupted")
        topology.shutdown()
    return finished


def interrupt_at(call: int) -> Trouble:
    return lambda number, run: os.kill(os.getpid(), signal.SIGUSR1) if number == call else None


def deadline_at(call: int) -> Trouble:
    return lambda number, run: setattr(run.lifecycle.interruption, "_deadline", 0.0) if number == call else None


class CountingModels(Models):
    """Models whose policy counts its steps in `rows`, the number of rows of each; rank 1 is told to stop in the first.

    For runs that end before the first M-step: all steps are the warm start's.
    """

    rows: ClassVar[list[int]] = []

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        policy: Any = self.policy
        step = policy.step

        def counted(batch: Batch, *functions: Any) -> Any:
            self.rows.append(batch.rows)
            if len(self.rows) == 1 and dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            return step(batch, *functions)

        policy.step = counted


@contextlib.contextmanager
def counting(worked: Counter[str]) -> Iterator[None]:
    """The most that this rank tells its watchdog to have done in each phase."""

    @contextlib.contextmanager
    def phase(self: DeviceResidency, name: str) -> Iterator[None]:
        with original_phase(self, name):
            yield
            worked[name] = max(worked[name], self.progress().ticks)

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
        return [path.name for path in checkpoint_directories(Path(config.run_dir) / "checkpoints")]

    assert not run(config, make_models=CountingModels)
    assert saved() == ["interim-warm_start-000001"] and len(CountingModels.rows) == 1
    # Generate calls, 1: evaluation at the start, 2 and 3: critic start.
    assert not run(config, deadline_at(3), make_models=CountingModels)
    assert saved() == ["interim-critic_start-000001"] and len(CountingModels.rows) == 2
    # 1: the rest of the critic start, 2 and 3: iterations 1 and 2. (4: evaluation after iteration 2.)
    assert not run(config, interrupt_at(3))
    assert saved() == ["iteration-000000", "interim-iteration-000001"]
    # Iteration 2's rollouts were given up; then comes its evaluation.
    assert not run(config, interrupt_at(2))
    # That evaluation is made now, and iteration 3 is interrupted while it learns: it goes on to its end.

    def interrupt_at_sync(run: Any) -> None:
        load_weights = run.sync

        def sync() -> None:
            if run.iteration == 3 and dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            load_weights()

        run.sync = sync

    assert not run(config, prepare=interrupt_at_sync)
    assert run(config) and not mark.exists()
    finished_again(config)


def finished_again(config: Config) -> None:
    """A run that is at its end says so, and what it does, when it is started once more."""
    with lines_of_runs() as said:
        assert run(config)
    finished = [line for line in said if line.startswith(f"{config.run_dir} is finished, at iteration 4")]
    assert len(finished) == (os.environ["RANK"] == "0"), said


def troubled(kind: str, recipe: str, overrides: Sequence[str]) -> None:
    runs: list[Run] = []

    def fails(*parts: object, **settings: object) -> dict[str, float]:
        raise ValueError("what rank 1 stumbled over")

    def hangs(*arguments: Any, **settings: Any) -> dict[str, torch.Tensor]:
        if "entropy" in settings["statistics"] and next(micro_batches) == 1:
            # Not before: phases in which nobody hangs may take as long as a busy machine needs for them.
            runs[0].config.faults.first_stall_limit_seconds = 15.0
            if dist.get_rank() == 1:
                time.sleep(600)
        return token_scores(*arguments, **settings)

    def build(config: Config, **settings: Any) -> Run:
        runs.append(build_recorded(config, **settings))
        if kind == "fail" and dist.get_rank() == 1:
            evaluator: Any = runs[0].evaluator
            evaluator.observe_unlabeled = fails
        return runs[0]

    if kind == "second":
        lock.time = UntilTouched(Path(load_config(recipe, overrides).run_dir) / "running-1")
        lock._PAUSE_SECONDS = 6.0  # longer than a watch: the mark is touched in each
    elif kind == "hang":  # the second micro-batch whose old log-probs are read: rank 0 waits in the same forward pass
        micro_batches = itertools.count()
        token_scores, scoring.token_scores = scoring.token_scores, hangs
    loop.train = partial(train, build=build)
    sys.exit(cli.main(["train", recipe, *overrides]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_no_reports()
    what, recipe, *overrides = sys.argv[1:]
    if what in ("fail", "hang", "second"):
        troubled(what, recipe, overrides)
    interrupted(recipe, what, overrides)

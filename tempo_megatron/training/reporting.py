"""What a run reports: lines for the user, progress bars, and the log of its metrics."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from tqdm import tqdm

from tempo_megatron.config import Config
from tempo_megatron.generation.recorded import RecordedGenerator
from tempo_megatron.metrics.alarms import arithmetic_alarms
from tempo_megatron.metrics.question_metrics import Metrics
from tempo_megatron.metrics.writers import MetricsLog
from tempo_megatron.training.phases.select_checkpoint import Selection
from tempo_megatron.training.residency import DeviceResidency
from tempo_megatron.training.state import RunState
from tempo_megatron.utils.distributed import barrier

_SHOWN = ("critic/correct", "critic/auroc_within_prompts", "policy/reward", "policy/clip_fraction")
"""The metrics that a training iteration's line for the user shows."""


def write_line(text: str) -> None:
    """Write lines to standard output, above a progress bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


@dataclass(frozen=True)
class Console:
    """Lines and progress bars for the user. Only the first rank shows them."""

    is_first: bool
    write: Callable[[str], None] = write_line

    def say(self, text: str) -> None:
        if self.is_first:
            self.write(text)

    def progress[Item](self, items: Iterable[Item], description: str) -> Iterator[Item]:
        """Yield the items and show a progress bar."""
        interval = 0.1 if sys.stderr.isatty() else 10.0
        yield from tqdm(items, description, disable=not self.is_first, mininterval=interval)


@dataclass
class RunLog:
    """Writes the run's metrics with the generator's figures, alarms, timings and memory."""

    config: Config
    console: Console
    state: RunState
    residency: DeviceResidency
    generator: RecordedGenerator
    writers: MetricsLog | None
    """The log's files. Only the first rank has them."""

    def write(
        self, stage: str, metrics: Mapping[str, float], iteration: int, selection: Selection | None = None
    ) -> None:
        """Write one line of metrics of a stage and iteration, with the selection of a checkpoint if there was one.

        Timings and memory differ between any two runs, so their names have prefixes of their own. Collective.
        """
        usage = self.residency.take_usage()
        self.state.log_lines += 1
        figures = {
            name if name.startswith("seconds/") else f"generation/{name}": value
            for name, value in self.generator.take_figures().items()
        }
        alarms, lines = arithmetic_alarms(metrics, self.config)
        metrics = {**metrics, **figures, **alarms}
        if self.writers:
            for line in lines:
                self.console.say(f"iteration {self.state.iteration}: {line}")
            selected = {f"selection/{name}": value for name, value in asdict(selection).items()} if selection else {}
            self.writers.write({"stage": stage, "iteration": iteration, **metrics, **selected, **usage})
            if stage == "train" and self.state.iteration:
                line = "  ".join(f"{name} {metrics[name]:.3f}" for name in _SHOWN if name in metrics)
                self.console.say(f"iteration {self.state.iteration}/{self.config.loop.iterations}  {line}")
        barrier()  # the watchdog would take a rank that writes alone for one that hangs

    def close(self) -> None:
        if self.writers:
            self.writers.close()


def evaluation_line(results: Mapping[str, Metrics]) -> str:
    """Return a line for the user with the accuracies of each whole evaluation set."""
    figures = {f"{name}/{key}": row[key] for name, row in results.items() if "/" not in name for key in row}
    accuracies = {name: value for name, value in figures.items() if "@" in name and "error" not in name}
    return "evaluation  " + "  ".join(f"{name} {value:.3f}" for name, value in accuracies.items())

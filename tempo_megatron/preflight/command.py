"""`tempo doctor`, and the part of it that `tempo train` begins with."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tempo_megatron import config as settings
from tempo_megatron.config import Config
from tempo_megatron.launch import local, slurm, torchrun
from tempo_megatron.preflight.conduct import Conductor, tasks
from tempo_megatron.preflight.limits import problems
from tempo_megatron.preflight.meeting import Meeting, MeetingError, Place
from tempo_megatron.preflight.report import Report, as_text, write

EXIT_CODE = 69
"""where nodes cannot train; sysexits' "service unavailable". Another attempt may be given others"""
_BAD_INPUT = 2


def run(given: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Exit codes: 0 training can start, 2 the settings are wrong, 69 it cannot start on these nodes."""
    slurm.join_step()
    try:
        config = settings.load(None, given.settings)
        wrong = [*problems(config.preflight)]
        if wrong:
            raise settings.ConfigError("\n".join(wrong))
    except settings.ConfigError as error:
        print(f"tempo doctor: {error}", file=sys.stderr)
        return _BAD_INPUT
    if not torchrun.is_rank():
        return local.launch(arguments, config.parallel.processes_per_node)
    place = Place.here()
    if given.nodes_file and place.rank == 0:
        given.nodes_file.unlink(missing_ok=True)
    try:
        report, may_start = examine(config, place, measure=True)
    except MeetingError as error:
        print(f"tempo doctor: rank {place.rank} on {place.node}: {error}", file=sys.stderr)
        return EXIT_CODE
    if report:
        _write(report, config, given.json, given.nodes_file)
    return 0 if may_start else EXIT_CODE


def _write(report: Report, config: Config, json_file: Path | None, nodes_file: Path | None) -> None:
    print(report.table(config), flush=True)
    if json_file:
        write(json_file, as_text(report.to_json(config)))
    use = report.nodes_to_use(config)
    if nodes_file and use:
        write(nodes_file, "".join(f"{node}\n" for node in use))


def before_training(config: Config) -> bool:
    """Whether this run's ranks may go on: every check but the measurement of bandwidth, in a second or two.

    A bad node cannot be left out of a step that has started, so that it ends the run unless `preflight.bad_nodes` is
    report. What is not good is printed by the first rank. A single process on a CPU has nothing to check.
    """
    place = Place.here()
    if not config.preflight.enabled or (place.world_size == 1 and config.model.precision is settings.Precision.fp32):
        return True
    try:
        report, may_start = examine(config, place, measure=False)
    except MeetingError as error:
        print(f"tempo: rank {place.rank} on {place.node}: {error}", file=sys.stderr)
        return False
    if report and not report.is_spotless:
        print(report.table(config), file=sys.stderr, flush=True)
    return may_start


def examine(config: Config, place: Place, *, measure: bool) -> tuple[Report | None, bool]:
    """The report, on the first rank, and on all ranks whether training may start. Collective; raises MeetingError.

    With `measure`, nodes that are left out do not stand in the way; without it, training starts on all or not at all.
    """
    limits = config.preflight
    meeting = Meeting(place, tasks(config, place), limits.presence_seconds, limits.time_limit_seconds)
    meeting.wait_for_all()
    with _hard_limit(limits.time_limit_seconds + 30):
        if place.rank:
            return None, bool(meeting.follow())
        report = Conductor(meeting, config, _awaited()).examine(measure=measure)
        use = report.nodes_to_use(config)
        may_start = bool(use) and (measure or len(use) == len(report.ranks))
        meeting.end(meeting.came(), may_start, seconds=5)
        return report, may_start


def _awaited() -> list[str]:
    try:
        return slurm.step_nodes()
    except (OSError, subprocess.CalledProcessError):  # in an image, started by hand: ranks have numbers still
        return []


@contextlib.contextmanager
def _hard_limit(seconds: float) -> Iterator[None]:
    """End this process, with a traceback of every thread, if it is not done by then: calls into a driver may hang."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()

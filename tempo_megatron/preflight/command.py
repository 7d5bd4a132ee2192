"""`tempo doctor`, and the part of it that `tempo train` begins with."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tempo_megatron import config as settings
from tempo_megatron.config import Config
from tempo_megatron.launch import local, slurm, torchrun
from tempo_megatron.preflight.conduct import Conductor, tasks
from tempo_megatron.preflight.meeting import Meeting, MeetingError, RankLocation
from tempo_megatron.preflight.report import Report, as_text
from tempo_megatron.run_dir.layout import as_saved
from tempo_megatron.utils.atomic_files import write_text_atomically

_BAD_INPUT = 2
_BAD_NODES = 69
"""sysexits' "service unavailable": another attempt may be given other nodes"""


def run(given: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Exit codes: 0 training can start, 2 the settings are wrong for any nodes, 69 it cannot start on these."""
    try:
        slurm.join_step()
        config = settings.load_config(None, given.settings)
    except settings.ConfigError as error:
        print(f"tempo doctor: {error}", file=sys.stderr)
        return _BAD_INPUT
    if not torchrun.is_rank():
        return local.launch_locally(arguments, config.parallel.processes_per_node)
    place = RankLocation.here()
    if given.nodes_file and place.rank == 0:
        given.nodes_file.unlink(missing_ok=True)
    try:
        report, code = examine(as_saved(config), place, measure=True)
    except MeetingError as error:
        print(f"tempo doctor: rank {place.rank} on {place.node}: {error}", file=sys.stderr)
        return _BAD_NODES
    if report:
        _write(report, config, given.json, given.nodes_file)
    return code


def _write(report: Report, config: Config, json_file: Path | None, nodes_file: Path | None) -> None:
    print(report.table(config), flush=True)
    if json_file:
        write_text_atomically(json_file, as_text(report.to_json(config)))
    use = report.nodes_to_use(config)
    if nodes_file and use:
        write_text_atomically(nodes_file, "".join(f"{node}\n" for node in use))


def before_training(config: Config) -> int:
    """The exit code of this run's ranks, 0 if they may go on. Every check but bandwidth's, in a second or two.

    A bad node cannot be left out of a step that has started, so that it ends the run unless `preflight.bad_nodes` is
    report. What is not good is printed by the first rank. A single process on a CPU has nothing to check.
    """
    place = RankLocation.here()
    if not config.preflight.enabled or (place.world_size == 1 and config.model.precision is settings.Precision.fp32):
        return 0
    try:
        report, code = examine(config, place, measure=False)
    except MeetingError as error:
        print(f"tempo: rank {place.rank} on {place.node}: {error}", file=sys.stderr)
        return _BAD_NODES
    if report and not report.is_spotless:
        print(report.table(config), file=sys.stderr, flush=True)
    return code


def examine(config: Config, place: RankLocation, *, measure: bool) -> tuple[Report | None, int]:
    """The report, on the first rank, and on all ranks the exit code. Collective; raises MeetingError.

    With `measure`, nodes that are left out do not stand in the way; without it, training starts on all or not at all.
    """
    limits = config.preflight
    meeting = Meeting(place, tasks(config, place), limits.presence_seconds, limits.time_limit_seconds)
    meeting.wait_for_all()
    with _hard_limit(limits.time_limit_seconds + 30):
        if place.rank:
            return None, int(meeting.follow())
        report = Conductor(meeting, config, _awaited()).examine(measure=measure)
        use = report.nodes_to_use(config)
        may_start = bool(use) and (measure or len(use) == len(report.ranks))
        code = 0 if may_start else _BAD_NODES if report.others_may_do else _BAD_INPUT
        meeting.end(meeting.came(), code, seconds=5)
        return report, code


def _awaited() -> list[str]:
    try:
        return slurm.step_nodes()
    except settings.ConfigError:  # in an image, started by hand: ranks have numbers still
        return []


@contextlib.contextmanager
def _hard_limit(seconds: float) -> Iterator[None]:
    """End this process, with a traceback of every thread, if it is not done by then: calls into a driver may hang."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()

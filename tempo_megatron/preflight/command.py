"""`tempo doctor`, and its checks that `tempo train` begins with."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tempo_megatron.config import Config, ConfigError, Precision, load_config
from tempo_megatron.launch import local, slurm, torchrun
from tempo_megatron.preflight.check_runner import CheckRunner, rank_tasks
from tempo_megatron.preflight.rendezvous import RankLocation, Rendezvous, RendezvousError
from tempo_megatron.preflight.report import TABLE_HEADS, Report, as_text
from tempo_megatron.run_dir.layout import as_saved
from tempo_megatron.utils.atomic_files import write_text_atomically
from tempo_megatron.utils.logs import get_logger
from tempo_megatron.utils.terminal import BAD_INPUT, print_table, refuse

logger = get_logger(__name__)

_BAD_NODES = 69
"""This exit code is sysexits' "service unavailable": another attempt may get other nodes."""


def doctor(settings: Sequence[str], json_file: Path | None, nodes_file: Path | None, arguments: Sequence[str]) -> int:
    """Checks the nodes and returns the exit code: 0 training can start, 2 the settings are wrong for any nodes, 69 it
    cannot start on these nodes.

    A process that is no rank starts the ranks, with `arguments` as their command line.
    """
    try:
        slurm.join_step()
        config = load_config(None, settings)
    except ConfigError as error:
        return refuse("tempo doctor: these settings are wrong", error)
    if not torchrun.is_rank():
        return local.launch_locally(arguments, config.parallel.processes_per_node)
    location = RankLocation.from_environment()
    if nodes_file and location.rank == 0:
        nodes_file.unlink(missing_ok=True)
    try:
        report, code = run_checks(as_saved(config), location, measure_bandwidth=True)
    except RendezvousError as error:
        logger.error(f"rank {location.rank} on {location.node}: {error}")
        return _BAD_NODES
    if report:
        _write_report(report, config, json_file, nodes_file)
    return code


def _write_report(report: Report, config: Config, json_file: Path | None, nodes_file: Path | None) -> None:
    if sys.stdout.isatty():
        print_table("", TABLE_HEADS, report.rows())
        print(report.summary(config), flush=True)
    else:
        print(report.table(config), flush=True)
    if json_file:
        write_text_atomically(json_file, as_text(report.to_json(config)))
    nodes = report.nodes_to_use(config)
    if nodes_file and nodes:
        write_text_atomically(nodes_file, "".join(f"{node}\n" for node in nodes))


def before_training(config: Config) -> int:
    """Returns the exit code of this run's ranks, or 0 if they can train. It runs every check but that of bandwidth, in
    a second or two.

    A step that has started cannot leave out a bad node. Such a node ends the run unless `preflight.bad_nodes` is
    report. The first rank logs the findings that are not good. A single process on a CPU has nothing to check.
    """
    location = RankLocation.from_environment()
    if not config.preflight.enabled or (location.world_size == 1 and config.model.precision is Precision.fp32):
        return 0
    try:
        report, code = run_checks(config, location, measure_bandwidth=False)
    except RendezvousError as error:
        logger.error(f"rank {location.rank} on {location.node}: {error}")
        return _BAD_NODES
    if report and not report.has_no_warnings:
        logger.warning(f"checks of the nodes:\n{report.table(config)}")
    return code


def run_checks(config: Config, location: RankLocation, *, measure_bandwidth: bool) -> tuple[Report | None, int]:
    """Returns the report, on the first rank alone, and the exit code, on all ranks. Collective; raises RendezvousError.

    With `measure_bandwidth`, training may start without some of the nodes. Without it, training starts on all or none.
    """
    limits = config.preflight
    tasks = rank_tasks(config, location)
    rendezvous = Rendezvous(location, tasks, limits.presence_seconds, limits.time_limit_seconds)
    rendezvous.wait_for_all()
    with _hard_limit(limits.time_limit_seconds + 30):
        if location.rank:
            return None, int(rendezvous.follow())
        report = CheckRunner(rendezvous, config, _expected_nodes()).run(measure_bandwidth=measure_bandwidth)
        nodes = report.nodes_to_use(config)
        may_start = bool(nodes) and (measure_bandwidth or len(nodes) == len(report.ranks))
        code = 0 if may_start else _BAD_NODES if report.other_nodes_may_help else BAD_INPUT
        rendezvous.end(rendezvous.present_ranks(), code, seconds=5)
        return report, code


def _expected_nodes() -> list[str]:
    """Returns the names of the step's nodes; none where Slurm does not tell them, as in an image started by hand."""
    try:
        return slurm.step_nodes()
    except ConfigError:
        return []


@contextlib.contextmanager
def _hard_limit(seconds: float) -> Iterator[None]:
    """Ends this process after so many seconds, with a traceback of every thread, unless the context has ended: calls
    into a driver may hang."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()

"""`tempo doctor`, and the checks with which `tempo train` begins."""

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
from tempo_megatron.preflight.check_runner import CheckRunner, rank_tasks
from tempo_megatron.preflight.rendezvous import RankLocation, Rendezvous, RendezvousError
from tempo_megatron.preflight.report import Report, as_text
from tempo_megatron.run_dir.layout import as_saved
from tempo_megatron.utils.atomic_files import write_text_atomically

_BAD_INPUT = 2
_BAD_NODES = 69
"""EX_UNAVAILABLE ("service unavailable") of sysexits: another attempt may be given other nodes."""


def run(given: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Run `tempo doctor` and return its exit code.

    0: training can start. 2: the settings are wrong for any nodes. 69: training cannot start on these nodes.
    """
    try:
        slurm.join_step()
        config = settings.load_config(None, given.settings)
    except settings.ConfigError as error:
        print(f"tempo doctor: {error}", file=sys.stderr)
        return _BAD_INPUT
    if not torchrun.is_rank():
        return local.launch_locally(arguments, config.parallel.processes_per_node)
    location = RankLocation.from_environment()
    if given.nodes_file and location.rank == 0:
        given.nodes_file.unlink(missing_ok=True)
    try:
        report, code = run_checks(as_saved(config), location, measure_bandwidth=True)
    except RendezvousError as error:
        print(f"tempo doctor: rank {location.rank} on {location.node}: {error}", file=sys.stderr)
        return _BAD_NODES
    if report:
        _write(report, config, given.json, given.nodes_file)
    return code


def _write(report: Report, config: Config, json_file: Path | None, nodes_file: Path | None) -> None:
    print(report.table(config), flush=True)
    if json_file:
        write_text_atomically(json_file, as_text(report.to_json(config)))
    nodes_to_use = report.nodes_to_use(config)
    if nodes_file and nodes_to_use:
        write_text_atomically(nodes_file, "".join(f"{node}\n" for node in nodes_to_use))


def before_training(config: Config) -> int:
    """Run all checks but bandwidth's, in a second or two. Returns the ranks' exit code, 0 if they may train.

    A bad node cannot be left out of a step that has started: it ends the run, unless `preflight.bad_nodes` is report.
    The first rank prints what is not good. A single process on a CPU has nothing to check.
    """
    location = RankLocation.from_environment()
    if not config.preflight.enabled or (location.world_size == 1 and config.model.precision is settings.Precision.fp32):
        return 0
    try:
        report, code = run_checks(config, location, measure_bandwidth=False)
    except RendezvousError as error:
        print(f"tempo: rank {location.rank} on {location.node}: {error}", file=sys.stderr)
        return _BAD_NODES
    if report and not report.has_no_warnings:
        print(report.table(config), file=sys.stderr, flush=True)
    return code


def run_checks(config: Config, location: RankLocation, *, measure_bandwidth: bool) -> tuple[Report | None, int]:
    """Return the exit code, and the report on the first rank. Collective. Raises RendezvousError.

    With `measure_bandwidth`, bad nodes may be left out. Without it, training starts on all nodes or not at all.
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
        code = 0 if may_start else _BAD_NODES if report.other_nodes_may_help else _BAD_INPUT
        rendezvous.end(rendezvous.present_ranks(), code, seconds=5)
        return report, code


def _expected_nodes() -> list[str]:
    try:
        return slurm.step_nodes()
    except settings.ConfigError:  # started by hand in an image: findings name ranks by number
        return []


@contextlib.contextmanager
def _hard_limit(seconds: float) -> Iterator[None]:
    """End this process after `seconds`, with a traceback of every thread, because calls into a driver may hang."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()

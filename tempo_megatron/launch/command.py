"""`tempo launch` from its arguments to jobs or results."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from tempo_megatron import planning
from tempo_megatron.config import Config, ConfigError, CriticTraining, load_checked
from tempo_megatron.conversion.source import source_problems
from tempo_megatron.launch.experiment import tasks
from tempo_megatron.launch.job import mounts, seconds

_BAD_INPUT = 2
_LEAD = 600
"""seconds before the limit of a training's job at which its ranks are told to save"""
_HOME = "NEMORUN_HOME"
"""environment variable: NeMo-Run's directory of experiments, their scripts and logs. It reads it as it is imported"""


def main(
    arguments: Sequence[str],
    recipe_problems: Callable[[Config], list[str]],
    as_saved: Callable[[Config], Config],
) -> int:
    """Exit codes: 0 done or submitted, 1 a task failed here, 2 bad input (nothing was started).

    `recipe_problems` says what is wrong with a recipe's method and data files, a line each. `as_saved` gives a
    config whose model is the one that the run's own checkpoint describes, where it has one.
    """
    given = _parser().parse_intermixed_args(arguments)
    if not find_spec("nemo_run"):
        print("tempo launch: NeMo-Run is not installed: install the extra `launch`", file=sys.stderr)
        return _BAD_INPUT
    try:
        config = load_checked(
            given.recipe,
            given.overrides,
            lambda read: [*_problems(read, as_saved(read), given), *recipe_problems(read)],
        )
        described = as_saved(config)
        python = "python" if given.container else sys.executable
        steps = tasks(given.recipe, given.overrides, python)
    except ConfigError as error:
        lines = "\n".join(f"  {line}" for line in str(error).splitlines())
        print(f"tempo launch: {given.recipe}: this cannot run:\n{lines}", file=sys.stderr)
        return _BAD_INPUT
    os.environ[_HOME] = str(_home(config))
    with warnings.catch_warnings(action="ignore"):  # of packages that it imports
        from tempo_megatron.launch import nemo  # seconds of imports

    title = Path(given.recipe).stem
    if given.executor == "local":
        return 0 if nemo.run_here(title, steps) else 1
    cluster = nemo.Cluster(
        nodes=given.nodes,
        tasks_per_node=config.parallel.processes_per_node,
        gpus_per_node=_gpus_per_node(config, given),
        account=given.account,
        partition=given.partition,
        time=given.time,
        container=given.container,
        lead=_LEAD,
        mounts=tuple(_mounts(config, described)) if given.container else (),
    )
    try:
        with _leaving_no_directories(_home(config) / "experiments" / title):
            experiment = nemo.on_slurm(title, steps, cluster, Path(config.run_dir))
            if given.dry_run:
                print("\n".join(nemo.written(experiment).values()))
                return 0
            jobs = nemo.submit(experiment)
    except nemo.LaunchError as error:
        print(f"tempo launch: {error}", file=sys.stderr)
        return _BAD_INPUT
    for name, job in jobs.items():
        print(f"{name}: job {job}")
    return 0


def _home(config: Config) -> Path:
    """Where NeMo-Run keeps its own files: in the run's directory, unless the environment says it."""
    return Path(os.environ.get(_HOME) or Path(config.run_dir, "nemo_run")).absolute()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tempo launch",
        description="A recipe as a NeMo-Run experiment: convert, train, export, evaluate, each after the one before.",
    )
    add = parser.add_argument
    add("recipe", help="YAML file; `tempo settings` lists its keys")
    add("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's, or YAML files of them")
    add("--executor", choices=("local", "slurm"), required=True, help="this machine, or jobs of a cluster")
    slurm = parser.add_argument_group("slurm").add_argument
    slurm("--nodes", type=int, default=1, metavar="N", help="nodes that train (1); other tasks take one")
    slurm("--gpus-per-node", type=int, metavar="N", help="(the recipe's parallel.processes_per_node)")
    gpu_memory = "GB that a GPU is sold with (80); what cannot fit is refused"
    slurm("--gpu-memory", type=float, default=80.0, metavar="GB", help=gpu_memory)
    slurm("--account", help="account that is charged")
    slurm("--partition", help="partition of the jobs")
    slurm("--time", default="24:00:00", help="limit of each job, as Slurm writes it (24:00:00)")
    slurm("--container", metavar="IMAGE", help="image to run in, by pyxis (none: this Python is used)")
    slurm("--dry-run", action="store_true", help="print the sbatch scripts; submit nothing")
    return parser


@contextlib.contextmanager
def _leaving_no_directories(path: Path) -> Iterator[None]:
    """What of this path is made meanwhile, and is empty in the end, is removed again."""
    absent = [each for each in (path, *path.parents) if not each.exists()]
    try:
        yield
    finally:
        for each in absent:
            with contextlib.suppress(OSError):
                each.rmdir()


def _gpus_per_node(config: Config, given: argparse.Namespace) -> int:
    chosen: int | None = given.gpus_per_node
    return config.parallel.processes_per_node if chosen is None else chosen


def _directories(config: Config, described: Config) -> dict[Path, Path]:
    """Where a run reads and writes, each with the directory that an image is given for it: what is not there yet cannot
    be mounted, but what it will be in."""
    files = [Path(source.path) for source in config.data.sources()]
    origins = [Path(origin) for origin in _origins(config, described).values()]
    wanted = [Path(config.run_dir), *origins, *(file.parent for file in files)]
    paths = [path.absolute() for path in wanted]
    return {path: next(above for above in (path, *path.parents) if above.is_dir()) for path in paths}


def _mounts(config: Config, described: Config) -> list[str]:
    """What an image is given: the present directory, and those of the run. Raises ValueError."""
    return mounts([Path().absolute(), *sorted(set(_directories(config, described).values()))])


def _origins(config: Config, described: Config) -> dict[str, str]:
    """The directories that a run starts from, by their settings; none once it goes on from its own checkpoint."""
    if described.model.hf_path != config.model.hf_path:
        return {}
    origins = {"model.hf_path": config.model.hf_path, "policy.checkpoint": config.policy.checkpoint}
    if config.critic.training is not CriticTraining.none:
        origins["critic.checkpoint"] = config.critic.checkpoint
    return {key: origin for key, origin in origins.items() if origin}


def _problems(config: Config, described: Config, given: argparse.Namespace) -> list[str]:
    """What can be seen before a job waits in a queue."""
    required = {"run_dir": config.run_dir, "model.hf_path": config.model.hf_path}
    found = [f"{key}: required" for key, value in required.items() if not value]
    origins = _origins(config, described)
    if config.model.hf_path in origins.values() and Path(config.model.hf_path).is_dir():
        found += [f"model.hf_path: {problem}" for problem in source_problems(Path(config.model.hf_path), "policy")]
    found += [f"{key}: {origin} is no directory here" for key, origin in origins.items() if not Path(origin).is_dir()]
    if given.container:
        found += [
            f"{path}: nothing of this path is here, and an image cannot be given all of /: make it, or correct it"
            for path, there in _directories(config, described).items()
            if there == Path("/")
        ]
        try:
            _mounts(config, described)
        except ValueError as error:
            found.append(f"--container: {error}")
    if given.nodes < 1:
        found.append(f"--nodes: at least 1, got {given.nodes}")
    if given.executor == "local" and (given.nodes > 1 or given.dry_run):
        found.append("--nodes and --dry-run: with --executor slurm")
    if given.executor == "slurm":
        found += _refused_by_slurm(config, given.time)
    gpus = _gpus_per_node(config, given)
    if given.executor == "slurm" and gpus and not found:
        found += planning.check_plan(described, nodes=given.nodes, gpus_per_node=gpus, gpu_memory_gb=given.gpu_memory)
    return found


def _refused_by_slurm(config: Config, time: str) -> Iterator[str]:
    try:
        if seconds(time) <= _LEAD:
            yield f"--time: {time} is no longer than the {_LEAD} s before its end at which ranks are told to save"
    except ValueError as error:
        yield f"--time: {error}"
    home = str(_home(config))
    if len(home.split()) > 1:
        key = _HOME if _HOME in os.environ else "run_dir"
        yield f"{key}: NeMo-Run's scripts cannot lie in {home}, which has a blank: set {_HOME} to a path without"

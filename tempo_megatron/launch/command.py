"""`tempo launch`: submits a recipe as jobs of a cluster, or runs its tasks on this machine."""

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
from tempo_megatron.launch.experiment import build_tasks
from tempo_megatron.launch.job import container_mounts, time_limit_seconds

_BAD_INPUT = 2
_LEAD = 600
"""The seconds before the time limit of a training job at which Slurm signals its ranks to save."""
_HOME = "NEMORUN_HOME"
"""The environment variable with NeMo-Run's directory of experiments. NeMo-Run reads it on import."""


def main(
    arguments: Sequence[str],
    recipe_problems: Callable[[Config], list[str]],
    as_saved: Callable[[Config], Config],
) -> int:
    """Run `tempo launch`. Returns 0 (done or submitted), 1 (a task failed here) or 2 (bad input, nothing was started).

    `recipe_problems` returns what is wrong with a recipe's method and data files, one line per problem. `as_saved`
    returns a config with the model of the run's own checkpoint, if there is one.
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
        steps = build_tasks(given.recipe, given.overrides, python)
    except ConfigError as error:
        lines = "\n".join(f"  {line}" for line in str(error).splitlines())
        print(f"tempo launch: {given.recipe}: this cannot run:\n{lines}", file=sys.stderr)
        return _BAD_INPUT
    os.environ[_HOME] = str(_home(config))
    with warnings.catch_warnings(action="ignore"):  # warnings of packages that NeMo-Run imports
        from tempo_megatron.launch import nemo  # seconds of imports

    title = Path(given.recipe).stem
    if given.executor == "local":
        return 0 if nemo.run_locally(title, steps) else 1
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
        with _removing_new_directories(_home(config) / "experiments" / title):
            experiment = nemo.slurm_experiment(title, steps, cluster, Path(config.run_dir))
            if given.dry_run:
                print("\n".join(nemo.sbatch_scripts(experiment).values()))
                return 0
            jobs = nemo.submit(experiment)
    except nemo.LaunchError as error:
        print(f"tempo launch: {error}", file=sys.stderr)
        return _BAD_INPUT
    for name, job in jobs.items():
        print(f"{name}: job {job}")
    return 0


def _home(config: Config) -> Path:
    """Return the directory of NeMo-Run's own files: in the run directory, unless the environment names another."""
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
def _removing_new_directories(path: Path) -> Iterator[None]:
    """Remove the directories of this path that were made within this context and are empty at its end."""
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
    """Return each path that a run reads or writes, with the directory to mount for it.

    A path that does not exist yet cannot be mounted: its nearest existing parent is.
    """
    files = [Path(source.path) for source in config.data.sources()]
    origins = [Path(origin) for origin in _origins(config, described).values()]
    used = [Path(config.run_dir), *origins, *(file.parent for file in files)]
    paths = [path.absolute() for path in used]
    return {path: next(parent for parent in (path, *path.parents) if parent.is_dir()) for path in paths}


def _mounts(config: Config, described: Config) -> list[str]:
    """Return the mounts of an image: the working directory, and those of the run. Raises ValueError."""
    return container_mounts([Path().absolute(), *sorted(set(_directories(config, described).values()))])


def _origins(config: Config, described: Config) -> dict[str, str]:
    """Return the directories that a run starts from, by setting; none if it resumes from its own checkpoint."""
    if described.model.hf_path != config.model.hf_path:
        return {}
    origins = {"model.hf_path": config.model.hf_path, "policy.checkpoint": config.policy.checkpoint}
    if config.critic.training is not CriticTraining.none:
        origins["critic.checkpoint"] = config.critic.checkpoint
    return {key: origin for key, origin in origins.items() if origin}


def _problems(config: Config, described: Config, given: argparse.Namespace) -> list[str]:
    """Return the problems that can be seen before a job waits in a queue."""
    required = {"run_dir": config.run_dir, "model.hf_path": config.model.hf_path}
    problems = [f"{key}: required" for key, value in required.items() if not value]
    origins = _origins(config, described)
    if config.model.hf_path in origins.values() and Path(config.model.hf_path).is_dir():
        problems += [f"model.hf_path: {problem}" for problem in source_problems(Path(config.model.hf_path), "policy")]
    problems += [
        f"{key}: {origin} is no directory here" for key, origin in origins.items() if not Path(origin).is_dir()
    ]
    if given.container:
        problems += [
            f"{path}: nothing of this path is here, and / cannot be mounted in an image: make or correct it"
            for path, mounted in _directories(config, described).items()
            if mounted == Path("/")
        ]
        try:
            _mounts(config, described)
        except ValueError as error:
            problems.append(f"--container: {error}")
    if given.nodes < 1:
        problems.append(f"--nodes: at least 1, got {given.nodes}")
    if given.executor == "local" and (given.nodes > 1 or given.dry_run):
        problems.append("--nodes and --dry-run: with --executor slurm")
    if given.executor == "slurm":
        problems += _slurm_problems(config, given.time)
    gpus = _gpus_per_node(config, given)
    if given.executor == "slurm" and gpus and not problems:
        problems += planning.check_plan(
            described, nodes=given.nodes, gpus_per_node=gpus, gpu_memory_gb=given.gpu_memory
        )
    return problems


def _slurm_problems(config: Config, time: str) -> Iterator[str]:
    try:
        if time_limit_seconds(time) <= _LEAD:
            yield f"--time: {time} is no longer than the {_LEAD} s before its end at which ranks are signaled to save"
    except ValueError as error:
        yield f"--time: {error}"
    home = str(_home(config))
    if len(home.split()) > 1:
        key = _HOME if _HOME in os.environ else "run_dir"
        yield f"{key}: NeMo-Run's scripts cannot lie in {home}, which has a blank: set {_HOME} to a path without"

"""`tempo launch` from its options to jobs or results."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tempo_megatron import planning
from tempo_megatron.config import Config, ConfigError, CriticTraining, load_checked
from tempo_megatron.conversion.source import source_problems
from tempo_megatron.launch.experiment import build_tasks
from tempo_megatron.launch.job import container_mounts, time_limit_seconds
from tempo_megatron.utils.terminal import BAD_INPUT, refuse

_LEAD_SECONDS = 600
"""The ranks of a training are told to save so many seconds before the time limit of their job."""
_HOME = "NEMORUN_HOME"
"""This environment variable names NeMo-Run's directory of experiments, with their scripts and logs. NeMo-Run reads it
when it is imported."""


@dataclass(frozen=True)
class LaunchOptions:
    """The options of `tempo launch`, as `tempo launch --help` describes them."""

    executor: str
    nodes: int
    gpus_per_node: int | None
    gpu_memory: float
    account: str | None
    partition: str | None
    time: str
    container: str | None
    dry_run: bool


def launch_recipe(
    recipe: str,
    overrides: Sequence[str],
    options: LaunchOptions,
    *,
    recipe_problems: Callable[[Config], list[str]],
    as_saved: Callable[[Config], Config],
) -> int:
    """Runs or submits the tasks of a recipe and returns the exit code: 0 finished or submitted, 1 a task failed here,
    2 bad input (nothing was started).

    `recipe_problems` returns a line for each problem of a recipe's method and data files. `as_saved` returns the config
    whose model is the one that the run's own checkpoint describes, where the run has one.
    """
    if not find_spec("nemo_run"):
        print("tempo launch: NeMo-Run is not installed: install the extra `launch`", file=sys.stderr)
        return BAD_INPUT
    try:
        config = load_checked(
            recipe,
            overrides,
            lambda read: [*_launch_problems(read, as_saved(read), options), *recipe_problems(read)],
        )
        saved_config = as_saved(config)
        python = "python" if options.container else sys.executable
        steps = build_tasks(recipe, overrides, python)
    except ConfigError as error:
        return refuse(f"tempo launch: {recipe}: this cannot run", error)
    os.environ[_HOME] = str(_home(config))
    with warnings.catch_warnings(action="ignore"):  # the packages that NeMo-Run imports warn
        from tempo_megatron.launch import nemo  # takes seconds to import

    title = Path(recipe).stem
    if options.executor == "local":
        return 0 if nemo.run_locally(title, steps) else 1
    cluster = nemo.Cluster(
        nodes=options.nodes,
        tasks_per_node=config.parallel.processes_per_node,
        gpus_per_node=_gpus_per_node(config, options),
        account=options.account,
        partition=options.partition,
        time=options.time,
        container=options.container,
        lead=_LEAD_SECONDS,
        mounts=tuple(_mounts(config, saved_config)) if options.container else (),
    )
    try:
        with _empty_directories_removed(_home(config) / "experiments" / title):
            experiment = nemo.slurm_experiment(title, steps, cluster, Path(config.run_dir))
            if options.dry_run:
                print("\n".join(nemo.sbatch_scripts(experiment).values()))
                return 0
            jobs = nemo.submit(experiment)
    except nemo.LaunchError as error:
        print(f"tempo launch: {error}", file=sys.stderr)
        return BAD_INPUT
    for name, job in jobs.items():
        print(f"{name}: job {job}")
    return 0


def _home(config: Config) -> Path:
    """Returns the directory of NeMo-Run's own files: the environment's, else one in the run's directory."""
    return Path(os.environ.get(_HOME) or Path(config.run_dir, "nemo_run")).absolute()


@contextlib.contextmanager
def _empty_directories_removed(path: Path) -> Iterator[None]:
    """Removes, at the end, the directories of this path that were made within the context and are empty."""
    absent = [directory for directory in (path, *path.parents) if not directory.exists()]
    try:
        yield
    finally:
        for directory in absent:
            with contextlib.suppress(OSError):
                directory.rmdir()


def _gpus_per_node(config: Config, options: LaunchOptions) -> int:
    return config.parallel.processes_per_node if options.gpus_per_node is None else options.gpus_per_node


def _mount_points(config: Config, saved_config: Config) -> dict[Path, Path]:
    """Returns the directories that a run reads and writes, each with the directory to mount for it: itself, or its
    nearest parent that exists, since a directory that does not exist cannot be mounted."""
    files = [Path(source.path) for source in config.data.sources()]
    origins = [Path(origin) for origin in _origins(config, saved_config).values()]
    directories = [Path(config.run_dir), *origins, *(file.parent for file in files)]
    paths = [directory.absolute() for directory in directories]
    return {path: next(parent for parent in (path, *path.parents) if parent.is_dir()) for path in paths}


def _mounts(config: Config, saved_config: Config) -> list[str]:
    """Returns the mounts of an image: the present directory and those of the run. Raises ValueError."""
    return container_mounts([Path().absolute(), *sorted(set(_mount_points(config, saved_config).values()))])


def _origins(config: Config, saved_config: Config) -> dict[str, str]:
    """Returns the directories that a run starts from, by their settings. A run that resumes from its own checkpoint
    has none."""
    if saved_config.model.hf_path != config.model.hf_path:
        return {}
    origins = {"model.hf_path": config.model.hf_path, "policy.checkpoint": config.policy.checkpoint}
    if config.critic.training is not CriticTraining.none:
        origins["critic.checkpoint"] = config.critic.checkpoint
    return {key: origin for key, origin in origins.items() if origin}


def _launch_problems(config: Config, saved_config: Config, options: LaunchOptions) -> list[str]:
    """Returns a line for each problem that can be seen before a job waits in a queue."""
    required = {"run_dir": config.run_dir, "model.hf_path": config.model.hf_path}
    problems = [f"{key}: required" for key, value in required.items() if not value]
    origins = _origins(config, saved_config)
    if config.model.hf_path in origins.values() and Path(config.model.hf_path).is_dir():
        problems += [f"model.hf_path: {problem}" for problem in source_problems(Path(config.model.hf_path), "policy")]
    problems += [
        f"{key}: {origin} is no directory here: download or correct it"
        for key, origin in origins.items()
        if not Path(origin).is_dir()
    ]
    if options.container:
        problems += [
            f"{path}: nothing of this path is here, and an image cannot be given all of /: make it, or correct it"
            for path, mount_point in _mount_points(config, saved_config).items()
            if mount_point == Path("/")
        ]
        try:
            _mounts(config, saved_config)
        except ValueError as error:
            problems.append(f"--container: {error}")
    if options.nodes < 1:
        problems.append(f"--nodes: at least 1, got {options.nodes}")
    if options.executor == "local" and (options.nodes > 1 or options.dry_run):
        problems.append("--nodes and --dry-run: with --executor slurm")
    if options.executor == "slurm":
        problems += _slurm_problems(config, options.time)
    gpus = _gpus_per_node(config, options)
    if options.executor == "slurm" and gpus and not problems:
        problems += planning.check_plan(
            saved_config, nodes=options.nodes, gpus_per_node=gpus, gpu_memory_gb=options.gpu_memory
        )
    return problems


def _slurm_problems(config: Config, time: str) -> Iterator[str]:
    """Yields a line for each setting that Slurm or NeMo-Run's scripts would refuse."""
    try:
        if time_limit_seconds(time) <= _LEAD_SECONDS:
            lead = f"the {_LEAD_SECONDS} s before its end at which ranks are told to save"
            yield f"--time: {time} is no longer than {lead}"
    except ValueError as error:
        yield f"--time: {error}"
    home = str(_home(config))
    if len(home.split()) > 1:
        key = _HOME if _HOME in os.environ else "run_dir"
        yield f"{key}: NeMo-Run's scripts cannot lie in {home}, which has a blank: set {_HOME} to a path without"

"""`tempo train`, `tempo replay` and `tempo export`, from their arguments to an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tempo_megatron.config import ConfigError, load_checked
from tempo_megatron.launch import replay, slurm, torchrun
from tempo_megatron.run_dir.layout import as_saved, interrupted_mark
from tempo_megatron.utils.logs import get_logger
from tempo_megatron.utils.terminal import BAD_INPUT, refuse

logger = get_logger(__name__)


def train_recipe(recipe: str, overrides: Sequence[str], arguments: Sequence[str]) -> int:
    """Trains by a recipe, or resumes its run, and returns the exit code. A process that is no rank starts the ranks,
    with `arguments` as their command line."""
    from tempo_megatron.supervision import failure, interruption
    from tempo_megatron.validation.recipe import recipe_problems

    try:
        slurm.join_step()
        config = load_checked(recipe, overrides, recipe_problems)
    except ConfigError as error:
        return refuse(f"tempo: {recipe}: this cannot run", error)
    if not torchrun.is_rank():
        code = torchrun.launch_ranks(arguments, config.parallel.processes_per_node)
        return interruption.EXIT_CODE if code == 0 and interrupted_mark(Path(config.run_dir)).exists() else code
    # A rank imports all that it needs before the ranks meet, so that none waits for another's imports.
    from tempo_megatron.preflight.command import before_training
    from tempo_megatron.run_dir.lock import RunDirectoryInUse
    from tempo_megatron.training.loop import train

    if code := before_training(as_saved(config)):
        return code
    try:
        is_finished = train(config)
    except RunDirectoryInUse as error:
        if os.environ["RANK"] == "0" or not torchrun.started_this_rank():  # srun's ranks write a log each
            logger.error(str(error))
        _end_process(BAD_INPUT)
    except BaseException as error:  # the exceptions of torch.distributed.checkpoint are no Exceptions
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        failure.end_failed_rank(error, Path(config.run_dir))
    if not is_finished:
        _end_process(0 if torchrun.started_this_rank() else interruption.EXIT_CODE)
    return 0


def compare_recipe_numerics(settings: Sequence[str], arguments: Sequence[str]) -> int:
    """Prints where generator and policy of a recipe first differ. Returns 0 if they do not, 1 if they do, and 2 if the
    settings are wrong. A process that is no rank starts the ranks of one tensor-parallel replica."""
    from tempo_megatron.validation.recipe import recipe_problems

    try:
        config = load_checked(None, settings, recipe_problems)
    except ConfigError as error:
        return refuse("tempo doctor: these settings are wrong", error)
    if not torchrun.is_rank():
        return torchrun.launch_ranks(arguments, config.parallel.tensor_model_parallel_size)
    from tempo_megatron.training.numerics_check import compare_numerics

    lines = compare_numerics(config)
    if os.environ["RANK"] == "0":
        print("\n".join(lines) or "generator and policy have the same bits", flush=True)
    _end_process(1 if lines else 0)


def replay_run(run_dir: Path, overrides: Sequence[str]) -> int:
    """Trains again on the rollouts that a run has kept, and returns the exit code."""
    recipe, overrides = replay.replay_arguments(run_dir, overrides)
    return train_recipe(recipe, overrides, ["train", recipe, *overrides])


def export_checkpoint(run_dir: Path) -> int:
    """Writes a run's chosen checkpoint as a Hugging Face directory, prints its path and returns the exit code."""
    from tempo_megatron.conversion.errors import ConversionError
    from tempo_megatron.training.export import export_run

    try:
        print(export_run(run_dir))
    except (ConversionError, OSError) as error:
        print(f"tempo export: {run_dir}: failed, an earlier export stays: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


def _end_process(code: int) -> NoReturn:
    """Ends the process at once. At an ordinary exit, a thread that still runs (an engine, a watcher) would abort it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

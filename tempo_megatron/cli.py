"""The `tempo` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

from tempo_megatron import config as settings
from tempo_megatron.data.prepare import command as data
from tempo_megatron.launch import replay, slurm, torchrun
from tempo_megatron.preflight import arguments as doctor
from tempo_megatron.run_dir.layout import as_saved, interrupted_mark
from tempo_megatron.utils import user

_BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed, 2 bad input, or another run works in the directory (nothing was written), 69 these
    nodes cannot train, 70 a rank hung, 75 asked to stop, and saved (torchrun's ranks then end with 0, since it knows
    but success and failure)."""
    user.ensure_name_and_home()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser("tempo", description=settings.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train by a recipe, or resume the run that it started")
    train.add_argument("recipe", help="YAML file; `tempo settings` lists its keys")
    train.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's, or YAML files of them"
    )
    commands.add_parser("eval", help="evaluate a model on benchmarks; `tempo eval --help`", add_help=False)
    if arguments[:1] == ["eval"]:
        from tempo_megatron.evaluation.command import main as evaluate

        return evaluate(arguments[1:])
    commands.add_parser("launch", help="a recipe as NeMo-Run jobs; `tempo launch --help`", add_help=False)
    if arguments[:1] == ["launch"]:
        from tempo_megatron.grading.labels import problems_of_files
        from tempo_megatron.launch.command import main as launch
        from tempo_megatron.validation.method import method_problems

        return launch(arguments[1:], lambda config: [*method_problems(config), *problems_of_files(config)], as_saved)
    replayed = commands.add_parser("replay", help="train again on a run's kept rollouts, without a generator")
    replayed.add_argument("run", help="directory of a run with generation.keep_rollouts=true")
    replayed.add_argument("overrides", nargs="+", metavar="key=value", help="run_dir=..., and what else shall differ")
    commands.add_parser(
        "plan", help="memory, time and layouts of a recipe on a cluster; `tempo plan --help`", add_help=False
    )
    if arguments[:1] == ["plan"]:
        from tempo_megatron.planning.command import main as plan
        from tempo_megatron.validation.method import method_problems

        return plan(arguments[1:], method_problems, as_saved)
    exported = commands.add_parser("export", help="a run's best or last checkpoint as RUN/hf, as its own end does")
    exported.add_argument("run", type=Path, help="directory of a run that has a checkpoint")
    commands.add_parser("settings", help="every setting of a recipe, with default and meaning")
    data.add_arguments(commands.add_parser("data", help="prepare question sources, and check them for contamination"))
    doctor.add_arguments(
        commands.add_parser("doctor", help="whether these nodes can train by a recipe; docs/doctor.md")
    )
    given = parser.parse_args(arguments)
    if given.command == "doctor":
        from tempo_megatron.preflight.command import run as examine

        return examine(given, arguments)
    if given.command == "data":
        from tempo_megatron.grading import labels

        return data.run(given, labels)
    if given.command == "settings":
        for key, default, help_ in settings.documented_keys():
            print(f"{key} = {default.value if isinstance(default, StrEnum) else default!r}\n    {help_}")
        return 0
    if given.command == "export":
        return _export(given.run)
    if given.command == "replay":
        recipe, overrides = replay.replay_arguments(Path(given.run), given.overrides)
        return _train(recipe, overrides, ["train", recipe, *overrides])
    return _train(given.recipe, given.overrides, arguments)


def _export(run: Path) -> int:
    from tempo_megatron.conversion.errors import ConversionError
    from tempo_megatron.training.export import export_run

    try:
        print(export_run(run))
    except (ConversionError, OSError) as error:
        print(f"tempo export: {run}: failed, an earlier export stays: {error}", file=sys.stderr)
        return _BAD_INPUT
    return 0


def _train(recipe: str, overrides: Sequence[str], arguments: Sequence[str]) -> int:
    from tempo_megatron.supervision import failure, interruption
    from tempo_megatron.validation.recipe import recipe_problems

    try:
        slurm.join_step()
        config = settings.load_checked(recipe, overrides, recipe_problems)
    except settings.ConfigError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            lines = "\n".join(f"  {line}" for line in str(error).splitlines())
            print(f"tempo: {recipe}: this cannot run:\n{lines}", file=sys.stderr)
        return _BAD_INPUT
    if not torchrun.is_rank():
        code = torchrun.launch_ranks(arguments, config.parallel.processes_per_node)
        return interruption.EXIT_CODE if code == 0 and interrupted_mark(Path(config.run_dir)).exists() else code
    # Ranks import all that they need before they meet: none keeps the others waiting afterwards.
    from tempo_megatron.preflight.command import before_training
    from tempo_megatron.run_dir.lock import RunDirectoryInUse
    from tempo_megatron.training.loop import train

    if code := before_training(as_saved(config)):
        return code
    try:
        finished = train(config)
    except RunDirectoryInUse as occupied:
        if os.environ["RANK"] == "0" or not torchrun.started_this_rank():  # srun's ranks have logs of their own
            print(f"tempo: {occupied}", file=sys.stderr)
        _end(_BAD_INPUT)
    except BaseException as error:  # torch.distributed.checkpoint's are no Exceptions
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        failure.end_failed_rank(error, Path(config.run_dir))
    if not finished:
        _end(0 if torchrun.started_this_rank() else interruption.EXIT_CODE)
    return 0


def _end(code: int) -> NoReturn:
    """What still runs (an engine, a watcher) would abort the process as the interpreter takes it down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())

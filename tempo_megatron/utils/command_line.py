"""What this project adds to Typer: exit codes as return values, and options that take several values."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand

_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_0-9]+)*=")
_OPTION = re.compile(r"-[^\d.]")


class SeveralValuesCommand(TyperCommand):
    """A command whose list options take several values: `--k 1 8` means `--k 1 --k 8`.

    A list option ends at the next option. An option that is given twice has the values of its last place. Where the
    command takes overrides, a `key=value` is one wherever it stands.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        list_options = {option for param in self.params if getattr(param, "multiple", False) for option in param.opts}
        takes_overrides = any(param.name == "overrides" for param in self.params)
        overrides = [argument for argument in args if takes_overrides and _OVERRIDE.match(argument)]
        others = [argument for argument in args if argument not in overrides]
        return super().parse_args(ctx, [*_repeat_options(others, list_options), *overrides])


def _repeat_options(arguments: Sequence[str], list_options: set[str]) -> list[str]:
    """Returns the arguments with a list option before each of its values, behind all other arguments."""
    others: list[str] = []
    values: dict[str, list[str]] = {}
    option = ""
    for argument in arguments:
        if argument in list_options:
            option, values[argument] = argument, []
        elif _OPTION.match(argument):
            option = ""
            others.append(argument)
        elif option:
            values[option].append(argument)
        else:
            others.append(argument)
    repeated = [[option, value] for option, option_values in values.items() for value in option_values]
    without_value = [option for option, option_values in values.items() if not option_values]
    return [*others, *(argument for pair in repeated for argument in pair), *without_value]


def run_app(app: typer.Typer, name: str, arguments: Sequence[str] | None) -> int:
    """Runs the subcommand that the arguments name and returns its exit code: what the subcommand returns, 0 for
    `--help`, 2 for arguments that are wrong, whose problem goes to standard error.

    `arguments` default to those of the process. The subcommand finds them in `context.obj`. Every other exception of a
    subcommand, KeyboardInterrupt among them, passes through.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command: Any = typer.main.get_command(app)
    try:
        with command.make_context(name, [*arguments], obj=arguments) as context:
            return int(command.invoke(context) or 0)
    except typer.Exit as end:
        return end.exit_code
    except BrokenPipeError:  # the reader has what it wanted, as in `tempo settings | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        return 0
    except typer.TyperException as error:
        _show(error)
        return error.exit_code


def _show(error: Any) -> None:
    """Shows a wrong argument: in a frame at a terminal, as plain lines otherwise."""
    if sys.stderr.isatty():
        from typer.rich_utils import rich_format_error

        rich_format_error(error)
    else:
        error.show()

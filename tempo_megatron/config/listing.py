"""The list that `tempo settings` prints."""

from __future__ import annotations

import sys
from dataclasses import fields
from enum import StrEnum
from itertools import groupby
from typing import Any

from tempo_megatron.config.loading import documented_keys
from tempo_megatron.config.root import Config
from tempo_megatron.utils.terminal import print_table


def print_settings() -> None:
    """Prints every setting with its default and its meaning: a table for each group at a terminal, else two lines for
    each setting."""
    if sys.stdout.isatty():
        titles = {field.name: f"{field.name}: {field.metadata['help']}" for field in fields(Config)}
        for group, keys in groupby(documented_keys(), key=_group):
            rows = [(name, _text(default), meaning) for name, default, meaning in keys]
            print_table(titles.get(group, ""), ("setting", "default", "meaning"), rows)
        return
    for name, default, meaning in documented_keys():
        print(f"{name} = {_text(default)}\n    {meaning}")


def _group(key: tuple[str, Any, str]) -> str:
    """Returns the first part of a dotted name; empty for a setting in no group."""
    return key[0].partition(".")[0] if "." in key[0] else ""


def _text(default: Any) -> str:
    return default.value if isinstance(default, StrEnum) else repr(default)

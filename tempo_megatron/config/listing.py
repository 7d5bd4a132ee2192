"""The list that `tempo settings` prints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from enum import StrEnum
from itertools import groupby
from typing import Any

from tempo_megatron.config.loading import documented_keys
from tempo_megatron.config.root import Config
from tempo_megatron.utils.terminal import print_table, refuse


def print_settings(texts: Sequence[str] = ()) -> int:
    """Prints settings with their defaults and meanings, and returns the exit code: 0, or 2 where there are none.

    Only settings are printed whose key or meaning contains each of `texts`, in upper or lower case. At a terminal each
    group is a table; elsewhere each setting has two lines.
    """
    keys = [key for key in documented_keys() if _contains(key, texts)]
    if not keys:
        return refuse("tempo settings", f"no setting's key or meaning contains {' and '.join(map(repr, texts))}")
    if sys.stdout.isatty():
        titles = {field.name: f"{field.name}: {field.metadata['help']}" for field in fields(Config)}
        for group, group_keys in groupby(keys, key=_group):
            rows = [(name, _text(default), meaning) for name, default, meaning in group_keys]
            print_table(titles.get(group, ""), ("setting", "default", "meaning"), rows)
    else:
        for name, default, meaning in keys:
            print(f"{name} = {_text(default)}\n    {meaning}")
    return 0


def _contains(key: tuple[str, Any, str], texts: Sequence[str]) -> bool:
    name, _, meaning = key
    return all(text.lower() in name.lower() or text.lower() in meaning.lower() for text in texts)


def _group(key: tuple[str, Any, str]) -> str:
    """Returns the first part of a dotted name; empty for a setting in no group."""
    return key[0].partition(".")[0] if "." in key[0] else ""


def _text(default: Any) -> str:
    return default.value if isinstance(default, StrEnum) else repr(default)

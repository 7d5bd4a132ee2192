"""Recipes and overrides in, a `Config` out."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tempo_megatron.config.data import SourceConfig
from tempo_megatron.config.fields import Bounds
from tempo_megatron.config.root import Config


class ConfigError(ValueError):
    """One or more settings are wrong; the message lists every problem found, one a line.

    `rest` is the config without the settings that are wrong, where all files could be read.
    """

    def __init__(self, message: str, rest: Config | None = None) -> None:
        super().__init__(message)
        self.rest = rest


def load_config(recipe: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The recipe, if any, with its overrides as a `Config`. Raises ConfigError listing all bad keys and values, with
    the file that says them; those of `key=value` stand alone.

    From weakest to strongest: defaults, what the method brings, the files that the recipe includes in their order, the
    recipe itself, further files of settings among the overrides (`parts/fp8.yaml`), the overrides `key=value`.
    """
    overlays = [item for item in overrides if "=" not in item and item.endswith((".yaml", ".yml"))]
    parts: list[DictConfig] = []
    problems: list[str] = []
    unread: list[str] = []
    for file in [*([recipe] if recipe else []), *overlays]:
        try:
            read, wrong = _read(Path(file))
        except ConfigError as error:
            unread.append(str(error))
            continue
        parts, problems = [*parts, *read], [*problems, *wrong]
    dotted, wrong = _overridden([item for item in overrides if item not in overlays])
    problems = [*unread, *problems, *wrong]
    if unread:
        raise ConfigError("\n".join(problems))
    try:
        config = _built([*parts, dotted])
    except ConfigError as error:
        raise ConfigError("\n".join([*problems, str(error)])) from error
    if problems:
        raise ConfigError("\n".join(problems), config)
    return config


def load_checked(
    recipe: str | Path | None, overrides: Sequence[str], check: Callable[[Config], Sequence[str]]
) -> Config:
    """As `load`, and the config passes the check, which gives a line a problem. Raises ConfigError listing what is
    wrong with settings together with what the check finds without them."""
    wrong: list[str] = []
    try:
        config = load_config(recipe, overrides)
    except ConfigError as error:
        if not error.rest:
            raise
        config, wrong = error.rest, str(error).splitlines()
    found = check(config)
    if wrong and found:
        wrong.append("and, with the settings above left out:")
    if wrong or found:
        raise ConfigError("\n".join([*wrong, *found]))
    return config


def _built(parts: Sequence[DictConfig]) -> Config:
    """The config of what was given, weakest first. Raises ConfigError."""
    from tempo_megatron.algorithms.methods import method  # torch, which grading's workers do not import

    given = OmegaConf.merge(*parts)
    name = str(OmegaConf.select(given, "method", default=Config().method))
    try:
        brought = method(name).settings
    except ValueError as error:
        raise ConfigError(f"method: {error}") from error
    preset = OmegaConf.from_dotlist([])
    for key, value in brought.items():
        OmegaConf.update(preset, key, value, force_add=True)
    refused = [f"method {name}: {problem}" for problem in _sound(preset)[1]]
    if refused:
        raise ConfigError("\n".join(refused))
    try:
        whole = OmegaConf.merge(OmegaConf.structured(Config), preset, given)
        config = OmegaConf.to_object(whole)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error)) from error
    assert isinstance(config, Config) and isinstance(whole, DictConfig)
    outside = _sound(whole, resolve=True)[1]  # what stood for another setting has its value now
    if outside:
        raise ConfigError("\n".join(outside))
    return config


def _overridden(settings: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """The settings `key=value` that are sound, and what is wrong with the others."""
    readable, problems = [], []
    for item in settings:
        if "=" not in item:
            problems.append(f"{item!r}: an override is key=value, or a YAML file of settings")
            continue
        try:
            OmegaConf.from_dotlist([item])
        except Exception as error:  # OmegaConf lets the YAML parser's own exceptions through
            problems.append(f"{item!r}: not a readable override: {_first_line(error)}")
            continue
        readable.append(item)
    sound, wrong = _sound(OmegaConf.from_dotlist(readable))
    return sound, [*problems, *wrong]


def _read(path: Path, includers: tuple[Path, ...] = ()) -> tuple[list[DictConfig], list[str]]:
    """The sound settings of a recipe's included files and its own, weakest first, and what is wrong with the others.

    `include` names files relative to the one that says it. Raises ConfigError where there is nothing to read.
    """
    by = f", included by {includers[-1]}" if includers else ""
    if path.resolve() in includers:
        raise ConfigError(f"{path}: includes itself{by}")
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe file{by}")
    try:
        given = OmegaConf.load(path)
    except Exception as error:  # OmegaConf lets the YAML parser's own exceptions through
        raise ConfigError(f"{path}: not a readable recipe: {error}") from error
    if not isinstance(given, DictConfig):
        raise ConfigError(f"{path}: a recipe is a mapping of settings")
    included = given.pop("include", [])
    if isinstance(included, str):
        raise ConfigError(f"{path}: include: expected a list of files, got {included!r}")
    parts: list[DictConfig] = []
    problems: list[str] = []
    for name in included:
        theirs, wrong = _read(path.parent / name, (*includers, path.resolve()))
        parts += theirs
        problems += wrong
    sound, wrong = _sound(given)
    return [*parts, sound], [*problems, *(f"{path}: {problem}" for problem in wrong)]


def to_yaml(config: Config) -> str:
    """The resolved config as YAML; `load` reads it back to an equal config."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def documented_keys(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Each setting as (dotted key, default, help with its bounds), depth first, in the order they are written here."""
    for item, default in zip(fields(cls), vars(cls()).values(), strict=True):
        if is_dataclass(default) and not isinstance(default, type):
            yield from documented_keys(type(default), f"{prefix}{item.name}.")
        else:
            bounds = str(item.metadata["bounds"])
            yield f"{prefix}{item.name}", default, "; ".join(filter(None, [item.metadata["help"], bounds]))


def _sound(part: DictConfig, resolve: bool = False) -> tuple[DictConfig, list[str]]:
    """The settings that are there, of their type and within bounds, and a line for each of the others. `resolve`: what
    stands for other settings is replaced by their values."""
    found: list[str] = []

    def visit(node: Any, cls: type, prefix: str) -> dict[str, Any]:
        hints = get_type_hints(cls)
        if not isinstance(node, dict):
            found.append(f"{prefix.rstrip('.')}: expected a group of settings, got {node!r}")
            return {}
        kept: dict[str, Any] = {}
        bounds = {item.name: item.metadata["bounds"] for item in fields(cls)}
        for key, value in node.items():
            name = f"{prefix}{key}"
            if key not in hints:
                found.append(f"{name}: unknown setting{_hint(str(key), name, hints)}")
            elif is_dataclass(hints[key]):
                kept[key] = visit(value, hints[key], f"{name}.")
            elif get_args(hints[key]) == (SourceConfig,):
                if not isinstance(value, list):
                    found.append(f"{name}: expected a list of sources, got {value!r}")
                    continue
                kept[key] = [visit(source, SourceConfig, f"{name}[{at}].") for at, source in enumerate(value)]
            elif problem := _refused(_group(cls), str(key), value, bounds[key]):
                found.append(f"{name}: {problem}")
            else:
                kept[key] = value
        return kept

    sound = visit(OmegaConf.to_container(part, resolve=resolve), Config, "")
    return OmegaConf.create(sound), found


def _hint(key: str, name: str, hints: Collection[str]) -> str:
    """What an unknown key may have been meant to be."""
    every = [dotted for dotted, _, _ in documented_keys()]
    near = difflib.get_close_matches(key, hints, n=1) or difflib.get_close_matches(name, every, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(hints)}"


@functools.cache
def _group(cls: type) -> DictConfig:
    """One to try values in, each in place of the last; kept, since making one takes milliseconds."""
    return OmegaConf.structured(cls)


def _refused(group: DictConfig, key: str, value: Any, bounds: Bounds) -> str:
    """Why the setting's type or its bounds refuse this value; empty where they do not, and the group has it."""
    if isinstance(value, str) and "${" in value:
        return ""  # stands for a setting of another part, and is checked when all parts are merged
    try:
        OmegaConf.update(group, key, value, merge=False)
    except OmegaConfBaseException as error:
        return _first_line(error)
    return "" if bounds.hold(group[key]) else f"{bounds}, got {group[key]}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]

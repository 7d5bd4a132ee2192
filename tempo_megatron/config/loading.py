"""Recipes and overrides in, a `Config` out."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tempo_megatron.config.data import SourceConfig
from tempo_megatron.config.root import Config


class ConfigError(ValueError):
    """One or more settings are wrong; the message lists every problem found, one a line."""


def load(recipe: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The recipe, if any, with its overrides as a `Config`. Raises ConfigError listing all bad keys and values.

    From weakest to strongest: defaults, what the method brings, the files that the recipe includes in their order, the
    recipe itself, further files of settings among the overrides (`parts/fp8.yaml`), the overrides `key=value`.
    """
    from tempo_megatron.algorithms.methods import method  # torch, which grading's workers do not import

    overlays = [item for item in overrides if "=" not in item and item.endswith((".yaml", ".yml"))]
    settings = [item for item in overrides if item not in overlays]
    parts: list[DictConfig] = []
    problems = [
        f"{item!r}: an override is key=value, or a YAML file of settings" for item in settings if "=" not in item
    ]
    for file in [*([recipe] if recipe else []), *overlays]:
        read, wrong = _read(Path(file))
        parts, problems = [*parts, *read], [*wrong, *problems]
    try:
        dotted = OmegaConf.from_dotlist(settings)
    except Exception as error:  # OmegaConf lets the YAML parser's own exceptions through
        raise ConfigError(f"not readable overrides: {error}") from error
    problems += _problems(dotted)
    if problems:
        raise ConfigError("\n".join(problems))
    given = OmegaConf.merge(*parts, dotted)
    name = str(OmegaConf.select(given, "method", default=Config().method))
    try:
        brought = method(name).settings
    except ValueError as error:
        raise ConfigError(f"method: {error}") from error
    preset = OmegaConf.from_dotlist([])
    for key, value in brought.items():
        OmegaConf.update(preset, key, value, force_add=True)
    refused = [f"method {name}: {problem}" for problem in _problems(preset)]
    if refused:
        raise ConfigError("\n".join(refused))
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), preset, given))
    except OmegaConfBaseException as error:
        raise ConfigError(str(error)) from error
    assert isinstance(config, Config)
    return config


def _read(path: Path, includers: tuple[Path, ...] = ()) -> tuple[list[DictConfig], list[str]]:
    """The settings of a recipe's included files and its own, weakest first, and what is wrong with them.

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
    where = f"{path}: " if includers else ""
    return [*parts, given], problems + [f"{where}{problem}" for problem in _problems(given)]


def to_yaml(config: Config) -> str:
    """The resolved config as YAML; `load` reads it back to an equal config."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def documented_keys(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Each setting as (dotted key, default, help), depth first, in the order they are written here."""
    for item, default in zip(fields(cls), vars(cls()).values(), strict=True):
        if is_dataclass(default) and not isinstance(default, type):
            yield from documented_keys(type(default), f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", default, item.metadata["help"]


def _problems(part: DictConfig) -> list[str]:
    """Unknown keys, and values that their setting's type refuses."""
    found: list[str] = []

    def visit(node: Any, cls: type, prefix: str) -> None:
        hints = get_type_hints(cls)
        if not isinstance(node, dict):
            found.append(f"{prefix.rstrip('.')}: expected a group of settings, got {node!r}")
            return
        for key, value in node.items():
            name = f"{prefix}{key}"
            if key not in hints:
                every = [dotted for dotted, _, _ in documented_keys()]
                near = difflib.get_close_matches(str(key), hints, n=1) or difflib.get_close_matches(name, every, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(hints)}"
                found.append(f"{name}: unknown setting{hint}")
            elif is_dataclass(hints[key]):
                visit(value, hints[key], f"{name}.")
            elif get_args(hints[key]) == (SourceConfig,):
                if not isinstance(value, list):
                    found.append(f"{name}: expected a list of sources, got {value!r}")
                    continue
                for index, source in enumerate(value):
                    visit(source, SourceConfig, f"{name}[{index}].")
            else:
                check_type(name, cls, str(key), value)

    def check_type(name: str, cls: type, key: str, value: Any) -> None:
        if isinstance(value, str) and "${" in value:
            return  # stands for a setting of another part, and is checked when all parts are merged
        try:
            OmegaConf.update(OmegaConf.structured(cls), key, value)
        except OmegaConfBaseException as error:
            found.append(f"{name}: {str(error).splitlines()[0]}")

    visit(OmegaConf.to_container(part, resolve=False), Config, "")
    return found

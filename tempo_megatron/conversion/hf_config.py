"""The settings of a model as transformers reads them: its own config class says what an absent key means."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError

from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.families import family
from tempo_megatron.conversion.mapping import BackboneSettings

_ROPE = ("rope_parameters", "rope_scaling")
"""two spellings of one setting; the config class decides which of them counts"""
_REFUSAL = "transformers"
"""the key of what no single setting says"""


def backbone_settings(config: dict[str, Any]) -> BackboneSettings:
    """The backbone that a config.json describes. Raises ConversionError listing all that cannot be mapped."""
    return family(config).settings(completed(config))


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a config.json with what transformers' config class gives to the absent ones, and RoPE as it keeps
    it. Raises ConversionError listing all that cannot be mapped."""
    declared = family(config)
    kind = getattr(transformers, f"{declared.name}Config")
    mistyped = _mistyped(kind, config)
    usable = {key: value for key, value in config.items() if key not in mistyped}
    values, refusals = _values(kind, usable)
    judged = values | {key: config[key] for key in mistyped if key not in _ROPE}
    if mistyped:  # what the class derives from settings, it derived from others than these
        said = _declared(kind, config).keys() | {"rope_parameters"}
        judged = {key: value for key, value in judged.items() if key in said}
    problems = mistyped | refusals | declared.problems(judged)
    if config.get("model_type") != kind.model_type:
        problems["model_type"] = f"{config.get('model_type')!r}; {declared.name} models have {kind.model_type!r}"
    if problems.keys() != {_REFUSAL}:
        problems.pop(_REFUSAL, None)  # its cause is among the others, most likely
    if problems:
        raise ConversionError("\n".join(f"config.json: {key}: {problem}" for key, problem in problems.items()))
    return values


def _values(kind: Any, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """All settings of a model of a config class, and what the class refuses, by key: without RoPE where it refuses
    that, and without what it derives where it refuses the rest."""
    others = {key: value for key, value in config.items() if key not in _ROPE}
    refusals: dict[str, str] = {}
    for given, key in ((config, "rope_parameters"), (others, _REFUSAL)):
        try:
            values: dict[str, Any] = kind(**copy.deepcopy(given)).to_dict()
        except Exception as error:  # the classes raise whatever a value that they do not expect makes them raise
            refusals = {key: f"{kind.__name__} refuses it: {_last_line(error)}"}
        else:
            return values if not refusals else values | {"rope_parameters": None}, refusals
    return _declared(kind, others), refusals


def _mistyped(kind: Any, config: dict[str, Any]) -> dict[str, str]:
    """The values that are of another type than the config class declares, by key."""
    problems = {}
    probe = kind()
    typed = {field.name for field in dataclasses.fields(kind)}
    for key in sorted(typed & config.keys() - {*_ROPE}):
        try:
            setattr(probe, key, copy.deepcopy(config[key]))
        except StrictDataclassFieldValidationError as error:
            problems[key] = _last_line(error.__cause__ or error)
    for key in _ROPE:
        if config.get(key) is not None and not _is_rope(config[key]):
            problems[key] = f"{config[key]!r} is no object of settings"
    return problems


def _is_rope(value: Any) -> bool:
    """Whether a value is an object of settings, or one such object, or null, for each kind of layer."""
    if not isinstance(value, dict):
        return False
    return all(isinstance(value[key], dict | None) for key in value if key.endswith("_attention"))


def _declared(kind: Any, config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a config and what its class declares for absent ones, without what it derives from others."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)} | config
    return {key: value for key, value in defaults.items() if value not in (None, dataclasses.MISSING)}


def _last_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[-1].strip()

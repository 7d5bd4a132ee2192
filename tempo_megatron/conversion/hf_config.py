"""The settings of a model as transformers reads them. Transformers' config class gives absent keys their values."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError

from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.experts import spelling_problems
from tempo_megatron.conversion.families import family_of
from tempo_megatron.conversion.mapping import BackboneSettings

_ROPE = ("rope_parameters", "rope_scaling")
"""Two names of one setting. The config class decides which of them counts."""
_WHOLE_CONFIG = "transformers"
"""The key of a refusal that concerns no single setting."""


def backbone_settings(config: dict[str, Any]) -> BackboneSettings:
    """Return the backbone that a config.json describes. Raises ConversionError listing every unsupported setting."""
    return family_of(config).settings(complete_config(config))


def complete_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json's settings with values for absent keys, and RoPE in transformers' own form.

    Raises ConversionError listing every unsupported setting.
    """
    family = family_of(config)
    config_class = getattr(transformers, f"{family.name}Config")
    mistyped = _mistyped(config_class, config)
    well_typed = {key: value for key, value in config.items() if key not in mistyped}
    values, refusals = _values(config_class, well_typed)
    checked = values | {key: config[key] for key in mistyped if key not in _ROPE}
    if mistyped:  # Settings that the class derived come from its defaults, not from the mistyped values.
        declared = _without_derived(config_class, config).keys() | {"rope_parameters"}
        checked = {key: value for key, value in checked.items() if key in declared}
    problems = mistyped | refusals | family.problems(checked)
    if family.expert_width:
        problems |= spelling_problems(config)
    if config.get("model_type") != config_class.model_type:
        expected = f"{family.name} models have {config_class.model_type!r}"
        problems["model_type"] = f"{config.get('model_type')!r}; {expected}"
    if problems.keys() != {_WHOLE_CONFIG}:
        problems.pop(_WHOLE_CONFIG, None)  # Another problem is most likely its cause.
    if problems:
        raise ConversionError("\n".join(f"config.json: {key}: {problem}" for key, problem in problems.items()))
    return values


def _values(config_class: Any, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return all settings of a model, and by key what its config class refuses.

    Where the class refuses RoPE, the settings lack RoPE. Where it refuses the rest, they lack derived settings too.
    """
    without_rope = {key: value for key, value in config.items() if key not in _ROPE}
    refusals: dict[str, str] = {}
    for settings, key in ((config, "rope_parameters"), (without_rope, _WHOLE_CONFIG)):
        try:
            values: dict[str, Any] = config_class(**copy.deepcopy(settings)).to_dict()
        except Exception as error:  # An unexpected value may make the classes raise anything.
            refusals = {key: f"{config_class.__name__} refuses it: {_last_line(error)}"}
        else:
            return values if not refusals else values | {"rope_parameters": None}, refusals
    return _without_derived(config_class, without_rope), refusals


def _mistyped(config_class: Any, config: dict[str, Any]) -> dict[str, str]:
    """Return a problem for each value of another type than the config class declares, by key."""
    problems = {}
    probe = config_class()
    typed = {field.name for field in dataclasses.fields(config_class)}
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
    """Return whether a value is an object of settings, or has such an object or null for each layer type."""
    if not isinstance(value, dict):
        return False
    return all(isinstance(value[key], dict | None) for key in value if key.endswith("_attention"))


def _without_derived(config_class: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Return a config's settings with the class's defaults, without values that the class derives from others."""
    settings = {field.name: field.default for field in dataclasses.fields(config_class)} | config
    return {key: value for key, value in settings.items() if value not in (None, dataclasses.MISSING)}


def _last_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[-1].strip()

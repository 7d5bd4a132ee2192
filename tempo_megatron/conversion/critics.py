"""The value head of a critic: its names in Hugging Face models, its initial weights, and the exported config.json."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from tempo_megatron.conversion.decoder import Family
from tempo_megatron.conversion.errors import ConversionError

EXPORTED_HEAD = "score"
_HEADS = (EXPORTED_HEAD, "v_head.summary")
"""Names of value heads: transformers' classification heads, which verl trains too, and the head of TRL's
AutoModelForCausalLMWithValueHead."""
_STANDARD_DEVIATION = 0.02
_CLASSIFIER_SETTINGS = ("num_labels", "problem_type")
"""Settings of a classifier that is no critic. Transformers would refuse or misread them in a critic's config."""
TARGET_RANGES = ("zero_one", "minus_one_one")
_RANGE_KEY = "tempo_target_range"


def fresh_value_head(hidden_size: int, seed: int) -> Tensor:
    """Return a random weight, [1, hidden] fp32, for a critic that has no value head yet."""
    noise = torch.randn(1, hidden_size, generator=torch.Generator().manual_seed(seed))
    return noise * _STANDARD_DEVIATION


def find_head(names: Collection[str]) -> str | None:
    """Return the name of the value head among a model's tensors; None for a language model without one."""
    return next((head for head in _HEADS if f"{head}.weight" in names), None)


def stored_target_range(config: dict[str, Any]) -> str | None:
    """Return the target range that config.json names. Only critics that this project exported name one."""
    return config.get(_RANGE_KEY)


def exported_config(config: dict[str, Any], family: Family, *, bias: bool, target_range: str) -> dict[str, Any]:
    """Return the config.json of a critic that plain transformers loads with its value head.

    Raises ConversionError where the value head has a bias and the family's class has none.
    """
    if bias and family.critic_ending == "ForSequenceClassification":
        raise ConversionError(f"{family.name}{family.critic_ending} has no bias, and this critic's value head has one")
    config = {key: value for key, value in config.items() if key not in _CLASSIFIER_SETTINGS}
    labels = {"id2label": {"0": "value"}, "label2id": {"value": 0}}
    if family.critic_ending == "ForTokenClassification":
        labels |= {"token_classification_bias": bias, "classifier_dropout": 0.0}
    architecture = [f"{family.name}{family.critic_ending}"]
    return {**config, **labels, "architectures": architecture, _RANGE_KEY: target_range}

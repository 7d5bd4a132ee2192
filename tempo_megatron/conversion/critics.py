"""The value head of a critic: how others write it, how it is exported, how a fresh one begins."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from tempo_megatron.conversion.decoder import Family
from tempo_megatron.conversion.errors import ConversionError

EXPORTED_HEAD = "score"
_HEADS = (EXPORTED_HEAD, "v_head.summary")
"""transformers' classification heads, as verl trains them too, and TRL's AutoModelForCausalLMWithValueHead"""
_STANDARD_DEVIATION = 0.02
_CLASSIFIER = ("num_labels", "problem_type")
"""settings of another classifier than a critic, which transformers would refuse or read"""
TARGET_RANGES = ("zero_one", "minus_one_one")
_RANGE_KEY = "tempo_target_range"


def fresh_value_head(hidden_size: int, seed: int) -> Tensor:
    """The weight, [1, hidden] fp32, that a critic without one starts from."""
    noise = torch.randn(1, hidden_size, generator=torch.Generator().manual_seed(seed))
    return noise * _STANDARD_DEVIATION


def find_head(names: Collection[str]) -> str | None:
    """What the value head among a model's tensors is called; None for a language model without one."""
    return next((head for head in _HEADS if f"{head}.weight" in names), None)


def stored_target_range(config: dict[str, Any]) -> str | None:
    """The target range that an exported critic's config.json names, None in others' configs."""
    return config.get(_RANGE_KEY)


def exported_config(config: dict[str, Any], family: Family, *, bias: bool, target_range: str) -> dict[str, Any]:
    """config.json of a critic that plain transformers loads with its value head.

    Raises ConversionError for a bias where the family's class has none.
    """
    if bias and family.critic == "ForSequenceClassification":
        raise ConversionError(f"{family.name}{family.critic} has no bias, and this critic's value head has one")
    config = {key: value for key, value in config.items() if key not in _CLASSIFIER}
    labels = {"id2label": {"0": "value"}, "label2id": {"value": 0}}
    if family.critic == "ForTokenClassification":
        labels |= {"token_classification_bias": bias, "classifier_dropout": 0.0}
    architecture = [f"{family.name}{family.critic}"]
    return {**config, **labels, "architectures": architecture, _RANGE_KEY: target_range}

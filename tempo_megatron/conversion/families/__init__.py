"""The registry of model families, and the family of a Hugging Face model.

To add a family, write one file here that declares a `Family`, then add it to the tuple of `FAMILIES` below.
Nothing else in the package names a family.
"""

from __future__ import annotations

from typing import Any

from tempo_megatron.conversion.decoder import Family
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.families.llama import LLAMA
from tempo_megatron.conversion.families.olmo2 import OLMO2
from tempo_megatron.conversion.families.olmo3 import OLMO3
from tempo_megatron.conversion.families.olmoe import OLMOE
from tempo_megatron.conversion.families.qwen3 import QWEN3
from tempo_megatron.conversion.families.qwen3_moe import QWEN3_MOE

FAMILIES = {family.name: family for family in (QWEN3, QWEN3_MOE, OLMO3, OLMO2, OLMOE, LLAMA)}
"""The supported families by name. The order is that of error messages."""
LANGUAGE_MODEL_ENDING = "ForCausalLM"
CRITIC_ENDINGS = ("ForTokenClassification", "ForSequenceClassification")


def architecture_of(config: dict[str, Any]) -> str:
    """Return the first class that `architectures` names, or "none" without one.

    Raises ConversionError where `architectures` is no list of names.
    """
    names = config.get("architectures") or ["none"]
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise ConversionError(f"config.json: architectures: {names!r} is no list of names")
    return names[0]


def family_of(config: dict[str, Any]) -> Family:
    """Return the family of this model. Raises ConversionError where no family supports its architecture."""
    architecture = architecture_of(config)
    for ending in (LANGUAGE_MODEL_ENDING, *CRITIC_ENDINGS):
        name = architecture.removesuffix(ending)
        if name != architecture and name in FAMILIES:
            return FAMILIES[name]
    known = ", ".join(f"{name}{LANGUAGE_MODEL_ENDING}" for name in FAMILIES)
    raise ConversionError(f"config.json: architecture {architecture} has no map; known: {known}")

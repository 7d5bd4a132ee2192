"""The family of a Hugging Face model, by the architecture that its config.json names."""

from __future__ import annotations

from typing import Any

from tempo_megatron.conversion.decoder import Family
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.families.llama import LLAMA
from tempo_megatron.conversion.families.olmo2 import OLMO2
from tempo_megatron.conversion.families.olmo3 import OLMO3
from tempo_megatron.conversion.families.qwen3 import QWEN3

FAMILIES = {made.name: made for made in (QWEN3, OLMO3, OLMO2, LLAMA)}
LANGUAGE_MODEL = "ForCausalLM"
CRITICS = ("ForTokenClassification", "ForSequenceClassification")


def architecture_of(config: dict[str, Any]) -> str:
    """The class that a model says it is of, "none" where it does not. Raises ConversionError for no list of names."""
    names = config.get("architectures") or ["none"]
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise ConversionError(f"config.json: architectures: {names!r} is no list of names")
    return names[0]


def family(config: dict[str, Any]) -> Family:
    """The family of this model. Raises ConversionError for an architecture that has none."""
    architecture = architecture_of(config)
    for ending in (LANGUAGE_MODEL, *CRITICS):
        name = architecture.removesuffix(ending)
        if name != architecture and name in FAMILIES:
            return FAMILIES[name]
    known = ", ".join(f"{name}{LANGUAGE_MODEL}" for name in FAMILIES)
    raise ConversionError(f"config.json: architecture {architecture} has no map; known: {known}")

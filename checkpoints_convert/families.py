"""The family of a Hugging Face model, by the architecture that its config.json names."""

from __future__ import annotations

from typing import Any, Protocol

from checkpoints_convert import llama, qwen3
from checkpoints_convert.errors import ConversionError
from checkpoints_convert.mapping import BackboneSettings, Entry


class Family(Protocol):
    """What a family's module has."""

    def settings(self, config: dict[str, Any]) -> BackboneSettings: ...

    def entries(self, config: dict[str, Any]) -> list[Entry]: ...


FAMILIES: dict[str, Family] = {"LlamaForCausalLM": llama, "Qwen3ForCausalLM": qwen3}


def family(config: dict[str, Any]) -> Family:
    """The module with the maps of this model. Raises ConversionError for an architecture that has none."""
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in FAMILIES:
        raise ConversionError(f"config.json: architecture {architecture} has no map; known: {', '.join(FAMILIES)}")
    return FAMILIES[architecture]

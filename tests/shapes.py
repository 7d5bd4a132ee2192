"""Checks the dtypes and shapes in signatures while tests run."""

from __future__ import annotations

from typing import Any

from beartype import beartype
from jaxtyping import install_import_hook

MODULES = [
    "tempo_megatron.algorithms",
    "tempo_megatron.megatron.batch",
    "tempo_megatron.megatron.log_probs",
    "tempo_megatron.megatron.packing",
]
PHASES = ["tempo_megatron.training.phases"]
"""Tests pass these modules stand-ins for models, generators and graders, so only their tensors are checked."""


def check_shapes() -> None:
    """Lets calls into MODULES and PHASES raise if a tensor does not match its annotation.

    In MODULES all other arguments are checked too. Call it before the modules' first import.
    """
    install_import_hook(MODULES, "beartype.beartype")
    install_import_hook(PHASES, f"{__name__}.check_tensors")


def check_tensors(function: Any) -> Any:
    """Returns the function with checks of the parameters and results whose annotations have shapes."""
    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if "jaxtyping" in str(hint)}
    return beartype(function)

"""Checks the dtypes and shapes in signatures while tests run."""

from __future__ import annotations

from jaxtyping import install_import_hook

MODULES = [
    "tempo_megatron.algorithms",
    "tempo_megatron.megatron.batch",
    "tempo_megatron.megatron.log_probs",
    "tempo_megatron.megatron.packing",
]


def check_shapes() -> None:
    """Lets calls into MODULES raise if a tensor does not match its annotation. Call it before their first import."""
    install_import_hook(MODULES, "beartype.beartype")

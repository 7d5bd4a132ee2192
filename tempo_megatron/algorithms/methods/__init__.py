"""Methods by name, one module each. A user's own method has a dotted name."""

from __future__ import annotations

from importlib import import_module

from tempo_megatron.algorithms.methods.base import Method
from tempo_megatron.algorithms.methods.empo import Empo
from tempo_megatron.algorithms.methods.grpo import Grpo
from tempo_megatron.algorithms.methods.ppo import Ppo
from tempo_megatron.algorithms.methods.scrl import Scrl
from tempo_megatron.algorithms.methods.tempo import FrozenCritic, Tempo, TempoReferenceCode
from tempo_megatron.algorithms.methods.trapo import Trapo
from tempo_megatron.algorithms.methods.ttrl import Ttrl

__all__ = ["METHODS", "Method", "method"]

METHODS: dict[str, type[Method]] = {
    "tempo": Tempo,
    "tempo_reference_code": TempoReferenceCode,
    "frozen_critic": FrozenCritic,
    "ppo": Ppo,
    "grpo": Grpo,
    "ttrl": Ttrl,
    "empo": Empo,
    "scrl": Scrl,
    "trapo": Trapo,
}


def method(name: str) -> Method:
    """Returns the method of that name: one of METHODS, or a class of the user's own as `package.module.Class`.

    Raises ValueError for any other name.
    """
    if name in METHODS:
        return METHODS[name]()
    module, _, attribute = name.rpartition(".")
    try:
        method_class = getattr(import_module(module), attribute) if module else None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} cannot be imported: {error}") from error
    if not (isinstance(method_class, type) and issubclass(method_class, Method)):
        known = ", ".join(METHODS)
        raise ValueError(f"{name!r} is no method; known: {known}, or package.module.Class of your own")
    return method_class()

"""Loading a model's weights. `tests/parallel/test_checkpoints.py` loads whole models in other layouts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tempo_megatron.megatron.checkpointing import dist_checkpoint

EXPERTS = "decoder.layers.1.mlp.experts.linear_fc1"


def load(missing: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the names that `load_weights` asks a checkpoint for, if loading leaves the names in `missing` unfilled.

    The model has Transformer Engine's grouped experts, which a CPU cannot build.
    """
    requested: list[str] = []
    states = [f"{EXPERTS}.weight0", f"{EXPERTS}.weight11", f"{EXPERTS}._extra_state", f"{EXPERTS}._extra_state11"]

    def read(state: dict[str, Any], *_: Any) -> dict[str, Any]:
        requested.extend(name for names in state["model"].values() for name in names)
        return state

    chunk = SimpleNamespace(
        sharded_state_dict=lambda metadata: dict.fromkeys([*states, "decoder.layers.0.linear_qkv._extra_state"]),
        load_state_dict=lambda state, strict: SimpleNamespace(missing_keys=missing),
    )
    monkeypatch.setattr(dist_checkpoint, "checkpoint_problems", lambda *_: [])
    monkeypatch.setattr(dist_checkpoint, "_load", read)
    dist_checkpoint.load_weights(Path("checkpoint"), "policy", [chunk])
    return requested


def test_no_extra_state_is_asked_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A converted checkpoint has none. Protects the start of a run on GPUs from one, where each expert has its own."""
    assert load([f"{EXPERTS}._extra_state"], monkeypatch) == [f"{EXPERTS}.weight0", f"{EXPERTS}.weight11"]


def test_a_weight_that_nothing_fills_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model must not train with random experts."""
    with pytest.raises(KeyError, match=r"linear_fc1\.weight11"):
        load([f"{EXPERTS}.weight11", f"{EXPERTS}._extra_state"], monkeypatch)

"""Which models leave the device in which phase."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tempo_megatron.megatron.offload import StateKind
from tempo_megatron.training.residency import _WORKERS, DeviceResidency
from tempo_megatron.utils.heartbeat import tick

ROOT = Path(__file__).parents[3]
WITHOUT_DEVICE = {"grade", "vote", "observe", "export"}
MADE_OF_OTHERS = {"select_checkpoint"}
BUILDS = {"start"}


class FakeModel:
    """Notes which kinds of its state are on the device."""

    def __init__(self) -> None:
        self.on_device = set(StateKind)
        self.offloader = SimpleNamespace(seconds=0.5, bytes=2**30)

    def offload(self, *, keep: Any = ()) -> bool:
        freed = self.on_device - set(keep)
        self.on_device &= set(keep)
        return bool(freed)


def make_residency() -> tuple[DeviceResidency, list[str]]:
    asleep: list[str] = []
    models: Any = {name: FakeModel() for name in ("policy", "critic", "reference")}
    residency = DeviceResidency(torch.device("cpu"), models, SimpleNamespace(sleep=lambda: asleep.append("asleep")))
    return residency, asleep


def on_device(residency: DeviceResidency) -> dict[str, set[StateKind]]:
    models: Any = residency.models
    return {name: model.on_device for name, model in models.items() if model.on_device}


def test_the_generator_has_the_device_to_itself() -> None:
    """No model keeps anything while the KV cache is there; at sync the policy's weights are read, nothing else."""
    residency, asleep = make_residency()
    with residency.phase("sync"):
        assert on_device(residency) == {"policy": {StateKind.weights}}
    with residency.phase("generate"):
        assert on_device(residency) == {}
    assert asleep == []


def test_one_model_learns_at_a_time_while_the_generator_sleeps() -> None:
    """The E-step has the critic alone, the M-step the policy alone."""
    for phase, model in (("e_step", "critic"), ("m_step", "policy")):
        residency, asleep = make_residency()
        with residency.phase(phase):
            assert on_device(residency) == {model: set(StateKind)}
        assert asleep


def test_phases_that_use_no_device_move_nothing() -> None:
    """Grading between two phases of one model costs no copies."""
    residency, asleep = make_residency()
    with residency.phase("grade"):
        assert len(on_device(residency)) == 3
    assert asleep == []


def test_every_phase_says_who_works() -> None:
    """A phase that is added and forgotten here would keep on the device whatever the one before it left."""
    sources = [path.read_text() for path in (ROOT / "tempo_megatron").rglob("*.py")]
    used = {name for text in sources for name in re.findall(r"\.phase\(\"(\w+)\"\)", text)}
    assert used == set(_WORKERS) | WITHOUT_DEVICE | MADE_OF_OTHERS | BUILDS


def test_a_phase_takes_in_the_seconds_of_those_within_it() -> None:
    """What was taken is told once; bytes and seconds of moving are those of all models."""
    residency, _ = make_residency()
    with residency.phase("select_checkpoint"), residency.phase("generate"):
        pass
    first, second = residency.take_usage(), residency.take_usage()
    assert first["seconds/select_checkpoint"] >= first["seconds/generate"]
    assert first["memory/select_checkpoint/host_peak_gib"] >= first["memory/generate/host_peak_gib"] > 0
    assert (first["seconds/offload"], first["memory/offloaded_gib"]) == (1.5, 3.0)
    assert (second["seconds/offload"], second["memory/offloaded_gib"]) == (0.0, 0.0)
    assert "seconds/generate" not in second


def test_a_watcher_is_told_the_innermost_phase_and_its_own_ticks() -> None:
    """What hangs is found by ticks that rest: those of another phase must not pass for its own. Compiling is done once,
    so the first time in a phase is told from later ones."""
    residency, _ = make_residency()
    tick()
    with residency.phase("select_checkpoint"):
        tick()
        with residency.phase("generate"):
            tick()
            tick()
            assert residency.progress()[:2] == (2, "generate") and residency.progress().ticks == 2
        assert residency.progress()[:2] == (2, "select_checkpoint") and residency.progress().ticks == 3
    assert residency.progress()[:2] == (2, "") and residency.progress().ticks == 0
    with residency.phase("select_checkpoint"), residency.phase("critic_metrics"):
        assert residency.progress().first_time
    with residency.phase("critic_metrics"):
        assert not residency.progress().first_time

"""Who rests in which phase."""

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
WITHOUT_DEVICE = {"grade", "vote", "observe"}
MADE_OF_OTHERS = {"select_checkpoint"}
BUILDS = {"start"}


class FakeModel:
    """Remembers what it may keep of the device."""

    def __init__(self) -> None:
        self.on_device = set(StateKind)
        self.offloader = SimpleNamespace(seconds=0.5, bytes=2**30)

    def offload(self, *, keep: Any = ()) -> bool:
        freed = self.on_device - set(keep)
        self.on_device &= set(keep)
        return bool(freed)


def turns() -> tuple[DeviceResidency, list[str]]:
    asleep: list[str] = []
    models: Any = {name: FakeModel() for name in ("policy", "critic", "reference")}
    made = DeviceResidency(torch.device("cpu"), models, SimpleNamespace(sleep=lambda: asleep.append("asleep")))
    return made, asleep


def on_device(made: DeviceResidency) -> dict[str, set[StateKind]]:
    models: Any = made.models
    return {name: model.on_device for name, model in models.items() if model.on_device}


def test_the_generator_has_the_device_to_itself() -> None:
    """No model keeps anything while the KV cache is there; at sync the policy's weights are read, nothing else."""
    made, asleep = turns()
    with made.phase("sync"):
        assert on_device(made) == {"policy": {StateKind.weights}}
    with made.phase("generate"):
        assert on_device(made) == {}
    assert asleep == []


def test_one_model_learns_at_a_time_while_the_generator_sleeps() -> None:
    """The E-step has the critic alone, the M-step the policy alone."""
    for phase, model in (("e_step", "critic"), ("m_step", "policy")):
        made, asleep = turns()
        with made.phase(phase):
            assert on_device(made) == {model: set(StateKind)}
        assert asleep


def test_phases_that_use_no_device_move_nothing() -> None:
    """Grading between two phases of one model costs no copies."""
    made, asleep = turns()
    with made.phase("grade"):
        assert len(on_device(made)) == 3
    assert asleep == []


def test_every_phase_says_who_works() -> None:
    """A phase that is added and forgotten here would keep on the device whatever the one before it left."""
    sources = [path.read_text() for path in (ROOT / "tempo_megatron").rglob("*.py")]
    used = {name for text in sources for name in re.findall(r"\.phase\(\"(\w+)\"\)", text)}
    assert used == set(_WORKERS) | WITHOUT_DEVICE | MADE_OF_OTHERS | BUILDS


def test_a_phase_takes_in_the_seconds_of_those_within_it() -> None:
    """What was taken is told once; bytes and seconds of moving are those of all models."""
    made, _ = turns()
    with made.phase("select_checkpoint"), made.phase("generate"):
        pass
    first, second = made.take_usage(), made.take_usage()
    assert first["seconds/select_checkpoint"] >= first["seconds/generate"]
    assert first["memory/select_checkpoint/host_peak_gib"] >= first["memory/generate/host_peak_gib"] > 0
    assert (first["seconds/offload"], first["memory/offloaded_gib"]) == (1.5, 3.0)
    assert (second["seconds/offload"], second["memory/offloaded_gib"]) == (0.0, 0.0)
    assert "seconds/generate" not in second


def test_a_watcher_is_told_the_innermost_phase_and_its_own_ticks() -> None:
    """What hangs is found by ticks that rest: those of another phase must not pass for its own. Compiling is done once,
    so the first time in a phase is told from later ones."""
    made, _ = turns()
    tick()
    with made.phase("select_checkpoint"):
        tick()
        with made.phase("generate"):
            tick()
            tick()
            assert made.progress()[:2] == (2, "generate") and made.progress().ticks == 2
        assert made.progress()[:2] == (2, "select_checkpoint") and made.progress().ticks == 3
    assert made.progress()[:2] == (2, "") and made.progress().ticks == 0
    with made.phase("select_checkpoint"), made.phase("critic_metrics"):
        assert made.progress().first_time
    with made.phase("critic_metrics"):
        assert not made.progress().first_time

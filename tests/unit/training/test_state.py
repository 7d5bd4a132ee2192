"""The state of a run, and its JSON form."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.megatron.checkpointing import saver
from tempo_megatron.megatron.checkpointing.saver import CRITIC_START, ITERATION, Position
from tempo_megatron.metrics.checkpoint_choice import Candidate
from tempo_megatron.training.lifecycle import Lifecycle
from tempo_megatron.training.phases.partial_rollouts import Group
from tempo_megatron.training.phases.select_checkpoint import Selection
from tempo_megatron.training.state import RunState

PROMPT = Prompt("a", (1, 2), "here", "exact", None, "question")
CANDIDATES = [Candidate(0, 0.5, 0.1, 0.25), Candidate(4, 0.75, 0.1)]


@pytest.mark.parametrize(
    "state",
    [
        RunState(),
        RunState(
            iteration=4,
            carried=(Group((Rollout(PROMPT, 1, (5, 6), (-0.5, -0.25), "paused", 1, 2, 3),)),),
            optimizer_steps={"policy": 8},
            gate_value=0.1 + 0.2,
            selection=Selection(CANDIDATES, 4, "why 4", "patience"),
            initial_evaluation={"held_out": {"avg@4": 1 / 3}},
            stage=Position(CRITIC_START, 2),
            unconcluded={"critic/loss": 1e-30},
        ),
    ],
)
def test_a_state_is_the_same_after_it_was_written_and_read(state: RunState) -> None:
    """Bit for bit: a resumed run must compute what it would have computed."""
    assert RunState.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_a_value_that_is_not_finite_survives() -> None:
    """A critic's values may be NaN; the candidate must still be out of the choice after a resume."""
    state = RunState(selection=Selection([Candidate(0, 0.5, 0.1, math.nan)], 0, "why"))
    (candidate,) = RunState.from_json(json.loads(json.dumps(state.to_json()))).selection.candidates
    assert candidate.value is not None and math.isnan(candidate.value)


def test_a_state_of_another_version_is_refused() -> None:
    """A field that is missing would otherwise begin at its default, and one that is unknown would be lost."""
    fields = RunState().to_json()
    for changed in ({**fields, "new": 1}, {name: fields[name] for name in list(fields)[1:]}):
        with pytest.raises(ValueError, match=r"new|iteration"):
            RunState.from_json(changed)


def test_the_position_is_the_stages_until_they_are_over() -> None:
    """Checkpoints are named after it."""
    assert RunState(iteration=3).position == Position(ITERATION, 3)
    assert RunState(stage=Position(CRITIC_START, 2)).position == Position(CRITIC_START, 2)


def test_a_checkpoint_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message says which checkpoint it is and what to do."""
    monkeypatch.setattr(saver, "newest_checkpoint", lambda directory: (tmp_path, []))
    monkeypatch.setattr(saver, "read_state", lambda checkpoint: {"iteration": 3})
    parts: Any = SimpleNamespace(directory=tmp_path)
    lifecycle = Lifecycle(parts, parts, parts, parts)
    with pytest.raises(ValueError, match=f"{tmp_path}: .* of another version .* another run_dir"):
        lifecycle.resume(parts)

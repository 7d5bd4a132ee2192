"""The rule for the best checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tempo_megatron.config import CheckpointConfig
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.megatron.checkpointing.saver import kept_iterations
from tempo_megatron.metrics.checkpoint_choice import Candidate, best_checkpoint
from tempo_megatron.training.phases.select_checkpoint import CheckpointSelector


def test_labeled_accuracy_comes_first_and_the_critic_decides_among_equals() -> None:
    """A value however high does not save a policy that got worse at questions whose answers are known."""
    candidates = [
        Candidate(0, 0.50, 0.02, 0.30),
        Candidate(10, 0.60, 0.02, 0.40),
        Candidate(20, 0.59, 0.02, 0.45),
        Candidate(30, 0.40, 0.02, 0.90),
    ]
    best, reason = best_checkpoint(candidates)
    assert best.iteration == 20
    assert "2 of 4 candidates within a standard error" in reason and "0.6000" in reason


def test_without_a_critic_accuracy_decides_and_the_earliest_of_equals_wins() -> None:
    """TTRL, EMPO and GRPO have no value to compare."""
    best, reason = best_checkpoint([Candidate(0, 0.5, 0.1), Candidate(5, 0.6, 0.1), Candidate(9, 0.6, 0.1)])
    assert best.iteration == 5 and "no critic" in reason


def test_equal_values_keep_the_earliest() -> None:
    """A run that does not move does not count as getting better: the stopping rule relies on it."""
    assert best_checkpoint([Candidate(3, 0.5, 0.1, 0.4), Candidate(6, 0.5, 0.1, 0.4)])[0].iteration == 3


class FakeCollector:
    """Answers the questions set aside, a share of them right; `sampled` counts the responses of each stream, and
    `active` names the phases in progress."""

    def __init__(self) -> None:
        self.measured = [Prompt(f"l{number}", (1,), "here", "exact", {"answer": "x"}) for number in range(4)]
        self.generator = SimpleNamespace(sleep=lambda: None)
        self.right: list[float] = []
        self.sampled: dict[str, int] = {}
        self.active: list[str] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.active.append(name)
        yield
        self.active.remove(name)

    def sample(
        self, prompts_by_stream: Mapping[str, Sequence[Prompt]], samples: Mapping[str, int], *_: Any, **__: Any
    ) -> dict[str, list[Rollout]]:
        rollouts_by_stream = {
            name: [Rollout(prompt, 0, (2,), (0.0,), "stop") for prompt in prompts for _ in range(samples[name])]
            for name, prompts in prompts_by_stream.items()
        }
        self.sampled = {name: len(rollouts) for name, rollouts in rollouts_by_stream.items()}
        return rollouts_by_stream

    def grade(self, rollouts: list[Rollout]) -> list[float]:
        return self.right


@pytest.mark.parametrize(("adapts", "best"), [(True, 2), (False, 1)])
def test_the_start_of_tempo_is_chosen_by_labeled_accuracy_alone(
    adapts: bool, best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RLVR has a critic, as TEMPO has: its values count only where the policy adapts to the unlabeled questions. The
    test questions of the run that starts from here are not even sampled. Each pass of the critic is a phase `values`,
    in which the generator and other models leave the device to it."""
    valued = iter([0.1, 0.1, 0.9])  # the first candidate, then both: the critic likes the second more
    phases: list[list[str]] = []

    def values(_: object, batch: Batch) -> torch.Tensor:
        phases.append(list(collector.active))
        return torch.full(batch.tokens.shape, next(valued))

    monkeypatch.setattr("tempo_megatron.training.phases.select_checkpoint.values", values)
    unlabeled = [Prompt("u", (1,), "here", "exact", None)] if adapts else []
    selector = CheckpointSelector(tmp_path / "candidates", unlabeled, CheckpointConfig(selection_samples=1))
    collector: Any = FakeCollector()
    critic: Any = object()
    for iteration, right in ((1, [1.0, 1.0, 1.0, 0.0]), (2, [1.0, 1.0, 0.0, 0.0])):
        collector.right = right
        selector.select(collector, critic, iteration, {1, 2})
    assert selector.selection.best == best
    assert ("critic value on unlabeled" in (selector.selection.reason or "")) is adapts
    assert collector.sampled == {"labeled": 4, "unlabeled": len(unlabeled)}
    assert (tmp_path / "candidates").exists() is adapts
    assert phases == ([["values"]] * 3 if adapts else [])


def test_a_value_that_is_not_finite_is_never_the_best() -> None:
    """Nothing is above or below NaN: the maximum of a list with one depends on where it stands."""
    nan, inf = float("nan"), float("inf")
    for order in (1, -1):
        candidates = [Candidate(0, 0.5, 0.1, nan), Candidate(5, 0.5, 0.1, 0.4), Candidate(9, 0.9, 0.1, inf)][::order]
        best, reason = best_checkpoint(candidates)
        assert best.iteration == 5 and "2 left out, whose value is not finite" in reason
    best, reason = best_checkpoint([Candidate(0, 0.5, 0.1, nan), Candidate(5, 0.6, 0.1, nan)])
    assert best.iteration == 5 and "no value of the critic is finite" in reason


@pytest.mark.parametrize(
    ("newest", "best", "every", "expected"),
    [
        (0, None, 0, set()),
        (1, None, 0, {30}),
        (2, 0, 0, {0, 20, 30}),
        (3, 20, 0, {10, 20, 30}),
        (9, None, 0, {0, 10, 20, 30}),
        (0, 7, 0, set()),
        (1, None, 20, {20, 30}),
        (1, 0, 10, {0, 10, 20, 30}),
    ],
)
def test_the_newest_checkpoints_are_kept_the_best_and_every_so_many(
    newest: int, best: int, every: int, expected: set[int], tmp_path: Path
) -> None:
    """A candidate is compared only while its checkpoint is there; more may be asked for than there are. The start
    is no multiple. Interim checkpoints do not count: how often a run was interrupted changes nothing."""
    numbered = (f"iteration-{iteration:06d}" for iteration in (0, 10, 20, 30))
    for name in (*numbered, "interim-iteration-000030", "interim-iteration-000031", "interim-critic_start-000010"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").touch()
    (tmp_path / "iteration-000040").mkdir()
    (tmp_path / "best").symlink_to("iteration-000000")
    assert kept_iterations(tmp_path, newest, best, every) == expected

"""The best checkpoint: keeps the candidates' responses and lets one critic score them all.

`metrics/checkpoint_choice.py` has the rule by which the best candidate is chosen. `training/export.py` exports it.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tempo_megatron.algorithms.experience import last_value
from tempo_megatron.config import CheckpointConfig
from tempo_megatron.data.spread import spread_over_sources
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.megatron.trainer import MegatronModel
from tempo_megatron.metrics.checkpoint_choice import Candidate, best_checkpoint
from tempo_megatron.metrics.question_metrics import mean, standard_error
from tempo_megatron.training.phases.collect import Collector
from tempo_megatron.training.phases.scoring import to_batch, values
from tempo_megatron.utils.atomic_files import atomic_path
from tempo_megatron.utils.distributed import barrier, broadcast_from_first, rank_and_ranks
from tempo_megatron.utils.heartbeat import Pace, expect_pace


@dataclass(frozen=True)
class Selection:
    """The best checkpoint so far, why it is the best, and whether the run stops."""

    candidates: list[Candidate] = field(default_factory=list)
    """The candidates that were compared, each with its figures."""
    best: int | None = None
    """The best candidate's iteration. It is None until a checkpoint was selected."""
    reason: str | None = None
    """A sentence that says why that candidate is the best."""
    stopped: str | None = None
    """A sentence that says why the run stops early. It is None while the run continues."""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Selection:
        return cls(**{**fields, "candidates": [Candidate(**row) for row in fields["candidates"]]})


class CheckpointSelector:
    """Adds candidates, selects the best checkpoint among them, and decides when the run stops.

    All ranks see `directory`, which keeps the candidates' responses. `unlabeled` holds the questions that the policy
    adapts to; the critic values responses to them. Where there are none, labeled accuracy alone decides: a start that a
    critic selected by its values on the test questions would favor their answers.
    """

    def __init__(self, directory: Path, unlabeled: Sequence[Prompt], config: CheckpointConfig) -> None:
        self._directory = directory
        self._unlabeled = spread_over_sources(unlabeled, "choice")[: config.selection_prompts]
        self._samples = config.selection_samples
        self._patience = config.patience
        self.selection = Selection()

    @property
    def has_stopped(self) -> bool:
        """Whether the run stops, because its last candidates were not better."""
        return self.selection.stopped is not None

    def select(
        self, collector: Collector, critic: MegatronModel | None, iteration: int, kept: Container[int]
    ) -> Selection:
        """Add the current policy, select the best candidate, and decide whether to stop. Collective.

        Candidates of other iterations take part as long as their checkpoints are in `kept`.
        """
        other_candidates = [candidate for candidate in self.selection.candidates if candidate.iteration != iteration]
        earlier = [candidate for candidate in other_candidates if candidate.iteration in kept]
        candidates = broadcast_from_first(
            self._with_values(collector, critic, [*earlier, self._sample_candidate(collector, iteration)])
        )
        best, reason = best_checkpoint(candidates)
        self.restore(Selection(candidates, best.iteration, reason))
        return self.selection

    def restore(self, selection: Selection) -> None:
        """Continue from a checkpoint's selection. The current patience decides whether the run has stopped."""
        best = selection.best
        later = sum(best is not None and candidate.iteration > best for candidate in selection.candidates)
        out_of_patience = bool(self._patience) and later >= self._patience
        stopped = f"{later} candidates after iteration {best} were not better" if out_of_patience else None
        self.selection = replace(selection, stopped=stopped)

    def forget(self) -> None:
        """Drop the candidates, since the questions have changed and old figures do not compare with new ones.

        The best checkpoint remains the best until the next selection.
        """
        self.restore(replace(self.selection, candidates=[]))

    def _sample_candidate(self, collector: Collector, iteration: int) -> Candidate:
        """Sample the current policy and keep its responses. Every candidate has the same questions and seeds."""
        prompts = {"labeled": list(collector.measured), "unlabeled": self._unlabeled}
        rollouts = collector.sample(prompts, dict.fromkeys(prompts, self._samples), 0, step=-1, trains=False)
        collector.generator.sleep()
        correct = collector.grade(rollouts["labeled"])
        if self._unlabeled and rank_and_ranks()[0] == 0:
            self._write(iteration, rollouts["unlabeled"])
        barrier()
        by_question = [correct[start : start + self._samples] for start in range(0, len(correct), self._samples)]
        shares = [mean(grades) for grades in by_question]
        # All questions have the same number of responses, and sums of whole numbers do not round. So ties are exact.
        return Candidate(iteration, mean(correct), standard_error(shares))

    def _with_values(
        self, collector: Collector, critic: MegatronModel | None, candidates: Sequence[Candidate]
    ) -> list[Candidate]:
        """Return the candidates with the mean values that one critic gives their kept responses.

        Values of critics of different iterations do not compare.
        """
        if critic is None or not self._unlabeled:
            return list(candidates)
        means = [self._mean_value(collector, critic, candidate.iteration) for candidate in candidates]
        return [replace(candidate, value=value) for candidate, value in zip(candidates, means, strict=True)]

    def _mean_value(self, collector: Collector, critic: MegatronModel, iteration: int) -> float:
        batch = to_batch(self._read(iteration))
        with collector.phase("values"):
            return float(last_value(values(critic, batch), batch.response_mask).mean())

    def _path(self, iteration: int) -> Path:
        return self._directory / f"iteration-{iteration:06d}.jsonl"

    @expect_pace(Pace.untimed)
    def _write(self, iteration: int, rollouts: Sequence[Rollout]) -> None:
        self._directory.mkdir(exist_ok=True)
        with atomic_path(self._path(iteration)) as temporary, temporary.open("w") as file:
            for rollout in rollouts:
                row = {"prompt": rollout.prompt.id, "sample": rollout.sample, "finish_reason": rollout.finish_reason}
                file.write(json.dumps(row | {"response_ids": rollout.response_ids}) + "\n")

    @expect_pace(Pace.untimed)
    def _read(self, iteration: int) -> list[Rollout]:
        prompts = {prompt.id: prompt for prompt in self._unlabeled}
        rows = [json.loads(line) for line in self._path(iteration).read_text().splitlines()]
        return [
            Rollout(prompts[row["prompt"]], row["sample"], tuple(row["response_ids"]), (), row["finish_reason"])
            for row in rows
        ]

"""The best checkpoint: candidates' responses are kept, and one critic scores those of all."""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tempo_megatron.algorithms.experience import last_value
from tempo_megatron.config import CheckpointConfig
from tempo_megatron.data.spread import spread_over_sources
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.megatron.trainer import ScoringModel
from tempo_megatron.metrics.checkpoint_choice import Candidate, best_checkpoint
from tempo_megatron.metrics.question_metrics import mean, standard_error
from tempo_megatron.training.phases.collect import Collector
from tempo_megatron.training.phases.scoring import to_batch, values
from tempo_megatron.utils.atomic_files import written_whole
from tempo_megatron.utils.distributed import barrier, from_first, rank_and_ranks
from tempo_megatron.utils.heartbeat import Pace, expect_pace


class Chooser:
    """Candidates for the best checkpoint, the choice among them, and when to stop. All ranks see `directory`.

    `unlabeled`: questions that the policy adapts to, whose responses the critic values. Where there are none, labeled
    accuracy alone decides: a start that a critic chose by its liking for the test questions would favor their answers.
    `state` is what a checkpoint keeps of it: candidates, the best's iteration and why it is the best, why the run has
    stopped if it has.
    """

    def __init__(self, directory: Path, unlabeled: Sequence[Prompt], config: CheckpointConfig) -> None:
        self._directory = directory
        self._unlabeled = spread_over_sources(unlabeled, "choice")[: config.selection_prompts]
        self._samples = config.selection_samples
        self._patience = config.patience
        self.state: dict[str, Any] = {"candidates": [], "best": None, "reason": None, "stopped": None}

    def consider(self, collector: Collector, critic: ScoringModel | None, iteration: int, kept: Container[int]) -> None:
        """Add the present policy, choose among it and the candidates whose checkpoints are `kept`, and decide whether
        to stop. Collective."""
        others = [row for row in self.state["candidates"] if row["iteration"] != iteration]
        before = [Candidate(**row) for row in others if row["iteration"] in kept]
        scored = from_first(self._score(critic, [*before, self._add(collector, iteration)]))
        best, reason = best_checkpoint(scored)
        self.resume({"candidates": [asdict(one) for one in scored], "best": best.iteration, "reason": reason})

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state; whether the run has stopped is decided by the present patience."""
        best = state["best"]
        since = sum(row["iteration"] > best for row in state["candidates"])
        waited = bool(self._patience) and since >= self._patience
        stopped = f"{since} candidates after iteration {best} were not better" if waited else None
        self.state = {"reason": None, **state, "stopped": stopped}

    def forget(self) -> None:
        """Compare later candidates with each other alone: questions have changed, and figures of before do not compare.
        The best of before remains until the next choice."""
        self.resume({**self.state, "candidates": []})

    def _add(self, collector: Collector, iteration: int) -> Candidate:
        """Sample the present policy, the same questions and seeds for every candidate, and keep what it says."""
        drawn = {"labeled": list(collector.measured), "unlabeled": self._unlabeled}
        found = collector.sample(drawn, dict.fromkeys(drawn, self._samples), 0, step=-1)
        collector.generator.sleep()
        correct = collector.grade(found["labeled"])
        if self._unlabeled and rank_and_ranks()[0] == 0:
            self._write(iteration, found["unlabeled"])
        barrier()
        by_question = [correct[start : start + self._samples] for start in range(0, len(correct), self._samples)]
        shares = [mean(row) for row in by_question]
        # Every question has as many responses. A sum of whole numbers does not round: equal accuracies are equal.
        return Candidate(iteration, mean(correct), standard_error(shares))

    def _score(self, critic: ScoringModel | None, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates with the values that one and the same critic gives their kept responses: scores of critics of
        different iterations could not be compared."""
        if critic is None or not self._unlabeled:
            return list(candidates)
        return [replace(one, value=self._value(critic, one.iteration)) for one in candidates]

    def _value(self, critic: ScoringModel, iteration: int) -> float:
        batch = to_batch(self._read(iteration))
        return float(last_value(values(critic, batch), batch.response_mask).mean())

    def _path(self, iteration: int) -> Path:
        return self._directory / f"iteration-{iteration:06d}.jsonl"

    @expect_pace(Pace.untimed)
    def _write(self, iteration: int, rollouts: Sequence[Rollout]) -> None:
        self._directory.mkdir(exist_ok=True)
        with written_whole(self._path(iteration)) as aside, aside.open("w") as file:
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

"""The rollouts of a step: labeled ones with their grades, unlabeled ones, and those that measure the critic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain

from tempo_megatron.config import Config
from tempo_megatron.data.streams import Stream
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.recorded import Engine
from tempo_megatron.grading import RolloutGrader
from tempo_megatron.training.phases.generate import generate
from tempo_megatron.training.phases.grade import graded
from tempo_megatron.training.phases.length_history import LengthHistory, rank_correlation


@dataclass(frozen=True)
class Collected:
    """The rollouts of a step, by their use."""

    labeled: list[Rollout]
    correct: list[float]
    """The grade of each labeled rollout."""
    unlabeled: list[Rollout]
    measured: list[Rollout]
    """The rollouts of the questions set aside for measurement."""
    measured_correct: list[float]
    """The grade of each measured rollout."""
    replaced_prompts: int = 0
    """The number of labeled prompts that were replaced because all their responses had one grade."""
    length_correlation: float | None = None
    """Spearman's correlation of expected and sampled lengths. It is None while it is undefined."""


@dataclass
class Collector:
    """Takes prompts from the streams, samples the current policy, and grades the labeled responses."""

    config: Config
    generator: Engine
    grader: RolloutGrader
    labeled: Stream[Prompt]
    unlabeled: Stream[Prompt]
    measured: Sequence[Prompt]
    """Labeled prompts that are set aside for measurement."""
    phase: Callable[[str], AbstractContextManager[None]]
    """Enters a named phase of an iteration."""
    history: LengthHistory = field(default_factory=LengthHistory)

    def collect(
        self, iteration: int, *, labeled: int = 0, unlabeled: int = 0, measure: bool = False, step: int = 0
    ) -> Collected:
        """Return rollouts of the next prompts of each stream, from one generate call, and put the generator to sleep.

        Replacing uniform prompts takes further calls. `step` numbers the policy steps of one iteration. Collective.
        """
        loop = self.config.loop
        prompts = {
            "labeled": self.labeled.take(labeled),
            "unlabeled": self.unlabeled.take(unlabeled),
            "measured": list(self.measured) if measure else [],
        }
        samples = {
            "labeled": loop.samples_per_prompt,
            "unlabeled": max(loop.votes_per_prompt, loop.samples_per_prompt),
            "measured": self.config.calibration.samples,
        }
        expectations = self.history.expectations(chain(*prompts.values()))
        rollouts = self.sample(prompts, samples, iteration, step)
        length_correlation = rank_correlation(expectations, list(chain(*rollouts.values())))
        correct = self.grade(rollouts["labeled"])
        replaced = 0
        if loop.drop_uniform_prompts:
            replaced = self._replace_uniform(rollouts["labeled"], correct, iteration, step)
        self.generator.sleep()
        return Collected(
            rollouts["labeled"],
            correct,
            rollouts["unlabeled"],
            rollouts["measured"],
            self.grade(rollouts["measured"]),
            replaced,
            length_correlation,
        )

    def metrics(self, collected: Collected) -> dict[str, float]:
        """Return figures of the streams, of grading, and of rollouts that were collected."""
        metrics = {
            "data/labeled_passes": self.labeled.passes,
            "data/unlabeled_passes": self.unlabeled.passes,
            "grading/errors": float(self.grader.errors),
            "grading/timeouts": float(self.grader.timeouts),
        }
        if collected.labeled:
            truncated = sum(rollout.truncated for rollout in collected.labeled)
            metrics["data/labeled_truncated"] = truncated / len(collected.labeled)
            metrics["data/uniform_prompts_replaced"] = float(collected.replaced_prompts)
        if collected.length_correlation is not None:
            metrics["generation/length_rank_correlation"] = collected.length_correlation
        return metrics

    def sample(
        self, prompts: Mapping[str, Sequence[Prompt]], samples: Mapping[str, int], iteration: int, step: int = 0
    ) -> dict[str, list[Rollout]]:
        """Return rollouts of each stream's prompts, in order, from one generate call with the training temperature."""
        generation = self.config.generation
        pairs = [(name, prompt) for name, stream in prompts.items() for prompt in stream]
        if not pairs:
            return {name: [] for name in prompts}
        with self.phase("generate"):
            rollouts = iter(
                generate(
                    self.generator,
                    pairs,
                    seed=self.config.seed,
                    iteration=iteration if step == 0 else f"{iteration}.{step}",
                    samples=samples,
                    max_tokens=generation.max_response_tokens,
                    temperature=generation.temperature,
                    top_p=generation.top_p,
                    history=self.history,
                )
            )
        return {name: [next(rollouts) for _ in range(len(stream) * samples[name])] for name, stream in prompts.items()}

    def grade(self, rollouts: list[Rollout]) -> list[float]:
        """Return the correctness of labeled rollouts."""
        with self.phase("grade"):
            return graded(self.grader, rollouts, {r.prompt.id: r.prompt.answer for r in rollouts if r.prompt.answer})

    def _replace_uniform(self, rollouts: list[Rollout], correct: list[float], iteration: int, step: int) -> int:
        """Replace, in place, prompts whose responses are all right or all wrong; return how many were replaced.

        Prompts that are uniform after `loop.refill_tries` rounds stay, so that the batch keeps its size.
        """
        size, replaced = self.config.loop.samples_per_prompt, 0
        for attempt in range(1, self.config.loop.refill_tries + 1):
            starts = [row for row in range(0, len(rollouts), size) if len(set(correct[row : row + size])) == 1]
            if not starts:
                break
            replaced += len(starts)
            prompts = {"refill": self.labeled.take(len(starts))}
            new_rollouts = self.sample(prompts, {"refill": size}, iteration, 1000 * (step + 1) + attempt)["refill"]
            grades = self.grade(new_rollouts)
            for number, row in enumerate(starts):
                source, target = slice(number * size, (number + 1) * size), slice(row, row + size)
                rollouts[target], correct[target] = new_rollouts[source], grades[source]
        return replaced

"""The rollouts of a step: labeled ones with their grades, unlabeled ones, and those that measure the critic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from tempo_megatron.config import Config, LearnsFrom, ReplayedRoutes
from tempo_megatron.data.streams import Stream
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.recorded import Engine
from tempo_megatron.grading import RolloutGrader
from tempo_megatron.training.phases.generate import Draft, complete, generate, new_drafts
from tempo_megatron.training.phases.grade import graded
from tempo_megatron.training.phases.length_history import LengthHistory, rank_correlation
from tempo_megatron.training.phases.partial_rollouts import Group, PartialStep, sample_groups, staleness_metrics


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
    partial: PartialStep | None = None
    """What paused and what was resumed. It is None where nothing may pause."""


@dataclass
class Collector:
    """Takes prompts from the streams, samples the policy, continues paused responses, and grades labeled ones."""

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
    carried: list[Group] = field(default_factory=list)
    """The groups of unlabeled rollouts that the last iteration left to the next one (`loop.partial_rollouts`)."""

    def collect(
        self, iteration: int, *, labeled: int = 0, unlabeled: int = 0, measure: bool = False, step: int = 0
    ) -> Collected:
        """Return rollouts of the next prompts of each stream, from one generate call, and put the generator to sleep.

        Replacing uniform prompts takes further calls. `step` numbers the policy steps of one iteration. Collective.

        With `loop.partial_rollouts` carried groups go on, and new prompts only fill up those in flight.
        """
        loop = self.config.loop
        may_pause = bool(unlabeled and loop.partial_rollouts)
        new_prompts = loop.prompts_in_flight - len(self.carried) if may_pause else unlabeled
        prompts = {
            "labeled": self.labeled.take(labeled),
            "unlabeled": self.unlabeled.take(new_prompts),
            "measured": list(self.measured) if measure else [],
        }
        samples = {
            "labeled": loop.samples_per_prompt,
            "unlabeled": max(loop.votes_per_prompt, loop.samples_per_prompt),
            "measured": self.config.calibration.samples,
        }
        expectations = self.history.expectations(chain(*prompts.values()))
        partial = None
        if may_pause:
            rollouts, partial = self._sample_with_pauses(prompts, samples, iteration)
        else:
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
            partial,
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
        if collected.partial:
            metrics["rollouts/paused"] = float(collected.partial.paused)
            metrics["rollouts/resumed"] = float(collected.partial.resumed)
            trained = slice(self.config.loop.samples_per_prompt)  # the others only vote
            metrics |= staleness_metrics([r for group in collected.partial.trained for r in group.rollouts[trained]])
        return metrics

    def sample(
        self,
        prompts: Mapping[str, Sequence[Prompt]],
        samples: Mapping[str, int],
        iteration: int,
        step: int = 0,
        *,
        trains: bool = True,
    ) -> dict[str, list[Rollout]]:
        """Return rollouts of each stream's prompts, in order, from one generate call with the training temperature.

        With `trains` those that the policy learns from have the routes that it needs.
        """
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
                    routed_streams=self._routed_streams if trains else (),
                    **self._sampling,
                )
            )
        return {name: [next(rollouts) for _ in range(len(stream) * samples[name])] for name, stream in prompts.items()}

    def _sample_with_pauses(
        self, prompts: Mapping[str, Sequence[Prompt]], samples: Mapping[str, int], iteration: int
    ) -> tuple[dict[str, list[Rollout]], PartialStep]:
        """Return rollouts of each stream's prompts, and carry over the groups that the M-step does not learn from.

        The unlabeled rollouts are those of `loop.unlabeled_prompts` whole groups.
        """
        seed = self.config.seed
        drafts = {
            name: new_drafts([(name, prompt) for prompt in stream], seed=seed, iteration=iteration, samples=samples)
            for name, stream in prompts.items()
        }

        def complete_drafts(all_drafts: Sequence[Draft], enough_groups: int) -> list[Rollout]:
            return complete(self.generator, all_drafts, **self._sampling, enough_groups=enough_groups)

        with self.phase("generate"):
            step = sample_groups(
                complete_drafts,
                [*drafts["labeled"], *drafts["measured"]],
                drafts["unlabeled"],
                self.carried,
                samples=samples["unlabeled"],
                loop=self.config.loop,
                seed=seed,
                iteration=iteration,
            )
        self.carried = step.carried
        labeled = len(drafts["labeled"])
        unlabeled = [rollout for group in step.trained for rollout in group.rollouts]
        self.history.observe([*step.others, *unlabeled])
        return {"labeled": step.others[:labeled], "unlabeled": unlabeled, "measured": step.others[labeled:]}, step

    @property
    def _sampling(self) -> dict[str, Any]:
        """How training rollouts are sampled, as `generate` and `complete` take them."""
        generation = self.config.generation
        return {
            "max_tokens": generation.max_response_tokens,
            "temperature": generation.temperature,
            "top_p": generation.top_p,
            "history": self.history,
        }

    @property
    def _routed_streams(self) -> tuple[str, ...]:
        """The streams whose rollouts need routes: the policy learns from them and replays the generator's."""
        if self.config.policy.router_replay is not ReplayedRoutes.generator:
            return ()
        labeled = ("labeled", "refill") if self.config.policy.learns_from is not LearnsFrom.unlabeled else ()
        unlabeled = ("unlabeled",) if self.config.policy.learns_from is not LearnsFrom.labeled else ()
        return labeled + unlabeled

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

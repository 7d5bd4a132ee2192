"""Rollouts of one step: labeled ones with their grades, unlabeled ones, and those that measure the critic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tempo_megatron.config import Config
from tempo_megatron.data.streams import Stream
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.recorded import Engine
from tempo_megatron.grading import Grader
from tempo_megatron.training.phases.generate import generate
from tempo_megatron.training.phases.grade import graded


@dataclass(frozen=True)
class Collected:
    """Rollouts by what they are for; `correct` and `measured_correct` grade `labeled` and `measured`, row by row."""

    labeled: list[Rollout]
    correct: list[float]
    unlabeled: list[Rollout]
    measured: list[Rollout]
    measured_correct: list[float]
    uniform: int = 0
    """labeled prompts that were replaced because their responses all scored alike"""


@dataclass
class Collector:
    """Draws prompts, samples the present policy, and grades what may be graded."""

    config: Config
    generator: Engine
    grader: Grader
    labeled: Stream[Prompt]
    unlabeled: Stream[Prompt]
    measured: Sequence[Prompt]
    """labeled prompts set aside for measurement"""
    phase: Callable[[str], AbstractContextManager[None]]
    """enters a named part of an iteration"""

    def collect(
        self, iteration: int, *, labeled: int = 0, unlabeled: int = 0, measure: bool = False, step: int = 0
    ) -> Collected:
        """Rollouts of so many fresh prompts, from one generate call unless uniform prompts are replaced. The generator
        sleeps after it. `step` tells the policy steps of one iteration apart."""
        loop = self.config.loop
        drawn = {
            "labeled": self.labeled.take(labeled),
            "unlabeled": self.unlabeled.take(unlabeled),
            "measured": list(self.measured) if measure else [],
        }
        samples = {
            "labeled": loop.samples_per_prompt,
            "unlabeled": max(loop.votes_per_prompt, loop.samples_per_prompt),
            "measured": self.config.calibration.samples,
        }
        found = self.sample(drawn, samples, iteration, step)
        correct = self.grade(found["labeled"])
        replaced = 0
        if loop.drop_uniform_prompts:
            replaced = self._replace_uniform(found["labeled"], correct, iteration, step)
        self.generator.sleep()
        return Collected(
            found["labeled"],
            correct,
            found["unlabeled"],
            found["measured"],
            self.grade(found["measured"]),
            replaced,
        )

    def sample(
        self, drawn: Mapping[str, Sequence[Prompt]], samples: Mapping[str, int], iteration: int, step: int = 0
    ) -> dict[str, list[Rollout]]:
        """Rollouts of each stream's prompts, in order, from one generate call under the training distribution."""
        generation = self.config.generation
        prompts = [(name, prompt) for name, stream in drawn.items() for prompt in stream]
        if not prompts:
            return {name: [] for name in drawn}
        with self.phase("generate"):
            rollouts = iter(
                generate(
                    self.generator,
                    prompts,
                    seed=self.config.seed,
                    iteration=iteration if step == 0 else f"{iteration}.{step}",
                    samples=samples,
                    max_tokens=generation.max_response_tokens,
                    temperature=generation.temperature,
                    top_p=generation.top_p,
                )
            )
        return {name: [next(rollouts) for _ in range(len(stream) * samples[name])] for name, stream in drawn.items()}

    def grade(self, rollouts: list[Rollout]) -> list[float]:
        """Correctness of labeled rollouts."""
        with self.phase("grade"):
            return graded(self.grader, rollouts, {r.prompt.id: r.prompt.answer for r in rollouts if r.prompt.answer})

    def _replace_uniform(self, rollouts: list[Rollout], correct: list[float], iteration: int, step: int) -> int:
        """Replace, in place, prompts whose responses are all right or all wrong; returns how many were found.

        After `loop.refill_tries` rounds what is still uniform stays, so that a batch keeps its size.
        """
        size, found = self.config.loop.samples_per_prompt, 0
        for attempt in range(1, self.config.loop.refill_tries + 1):
            starts = [at for at in range(0, len(rollouts), size) if len(set(correct[at : at + size])) == 1]
            if not starts:
                break
            found += len(starts)
            fresh = {"refill": self.labeled.take(len(starts))}
            again = self.sample(fresh, {"refill": size}, iteration, 1000 * (step + 1) + attempt)["refill"]
            grades = self.grade(again)
            for number, at in enumerate(starts):
                theirs = slice(number * size, (number + 1) * size)
                rollouts[at : at + size], correct[at : at + size] = again[theirs], grades[theirs]
        return found

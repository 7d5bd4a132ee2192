"""Evaluation: the only phase that sees the answers of unlabeled and held-out questions."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tempo_megatron.algorithms.experience import values_to_correctness
from tempo_megatron.config import EvaluationConfig
from tempo_megatron.data.sources import Answers
from tempo_megatron.data.spread import spread_over_sources
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.recorded import Engine
from tempo_megatron.grading import RolloutGrader
from tempo_megatron.metrics.calibration import auroc, auroc_within_groups
from tempo_megatron.metrics.pass_at_k import pass_at_k
from tempo_megatron.metrics.question_metrics import Metrics, Samples, mean, mean_over_questions, question_metrics
from tempo_megatron.training.phases.advantages import AdvantageBatch, PolicyRollouts
from tempo_megatron.training.phases.generate import generate
from tempo_megatron.training.phases.grade import GradedAnswer, graded, graded_answers
from tempo_megatron.training.phases.length_history import LengthHistory
from tempo_megatron.training.phases.token_samples import Decode, SampledQuestion
from tempo_megatron.utils.atomic_files import atomic_path
from tempo_megatron.utils.distributed import map_over_ranks
from tempo_megatron.utils.heartbeat import Pace, expect_pace, tick

_NGRAMS = (4,)
"""The lengths of n-grams, in words, whose diversity is measured."""
_OBSERVED = "evaluation/unlabeled_rollouts"
"""The prefix of metrics of the M-step's own rollouts."""


class Evaluator:
    """Holds the evaluation sets. Only it grades with their answers. Methods are collective."""

    def __init__(
        self,
        sets: dict[str, list[Prompt]],
        answers: Answers,
        grader: RolloutGrader,
        decode: Decode,
        config: EvaluationConfig,
        max_tokens: int,
        samples_directory: Path | None,
        token_samples: int = 0,
    ) -> None:
        self._sets = sets
        self._subsets = {name: _subset(prompts, config.questions) for name, prompts in sets.items()}
        """The questions of each set that evaluations between the first and the last use."""
        self._answers = answers
        self._grader = grader
        self._decode = decode
        self._config = config
        self._max_tokens = max_tokens
        self._samples_directory = samples_directory
        self._history = LengthHistory()
        """The evaluations' own. Training has another, which must not depend on which questions have answers."""
        self._followed = {prompt.id for prompts in sets.values() for prompt in _first(prompts, token_samples)}
        """The questions of `token_samples`: the same ones, up to that number of each set, in every evaluation."""
        self.sampled_questions: list[SampledQuestion] = []
        """The questions of the last evaluation whose responses are recorded token by token."""

    def evaluate(self, engine: Engine, iteration: int, at_an_end: bool) -> dict[str, Metrics]:
        """Return the figures of each set: means over questions of `question_metrics`.

        avg@k, pass@k and cons@k also have their standard errors. A set of several sources has figures of each, named
        `SET/SOURCE`. Without sets the result is empty. An evaluation `at_an_end`, before the first or after the last
        iteration, uses all questions and `evaluation.final_samples`. Others use `evaluation.questions` of each set.

        Every iteration uses the same seeds, so that a difference comes from the policy. The sampled texts are written
        to the directory for samples, which one rank has.
        """
        samples = (self._config.final_samples if at_an_end else 0) or self._config.samples
        sets = self._sets if at_an_end else self._subsets
        questions = [(name, prompt) for name, prompts in sets.items() for prompt in prompts]
        if not questions:
            return {}
        rollouts = generate(
            engine,
            questions,
            seed=0,
            iteration=0,
            samples=samples,
            max_tokens=self._max_tokens,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            history=self._history,
        )
        answers = graded_answers(self._grader, rollouts, self._answers)
        self._write_samples([name for name, _ in questions for _ in range(samples)], rollouts, answers, iteration)
        parts = [slice(index * samples, (index + 1) * samples) for index in range(len(questions))]
        self.sampled_questions = [
            SampledQuestion(name, rollouts[part], [answer.correct for answer in answers[part]])
            for (name, prompt), part in zip(questions, parts, strict=True)
            if prompt.id in self._followed
        ]

        def measure(indices: Sequence[int]) -> list[Metrics]:
            return [self._question_figures(rollouts[parts[index]], answers[parts[index]]) for index in indices]

        mixed = {name for name, prompts in sets.items() if len({prompt.source for prompt in prompts}) > 1}
        rows: dict[str, list[Metrics]] = {name: [] for name in sets}
        for (name, prompt), row in zip(questions, map_over_ranks(range(len(questions)), measure), strict=True):
            rows[name].append(row)
            if name in mixed:
                rows.setdefault(f"{name}/{prompt.source}", []).append(row)
        return {name: mean_over_questions(figures) for name, figures in rows.items()}

    def observe_unlabeled(self, step: PolicyRollouts, batch: AdvantageBatch, *, reads_values: bool) -> Metrics:
        """Return how right the unlabeled rollouts of an M-step are, and how its rewards compare with that.

        Where the method `reads_values`, its rewards are on the scale of the critic's targets and are scaled to [0, 1].
        """
        rows = (~batch.experience.labeled).nonzero()[:, 0].tolist()
        wrong = batch.experience.wrong if reads_values else 0.0
        rewards = values_to_correctness(batch.rewards, wrong)
        return self.observe([step.rollouts[row] for row in rows], [float(rewards[row]) for row in rows])

    def observe(self, rollouts: Sequence[Rollout], rewards: Sequence[float] | None) -> Metrics:
        """Return how right rollouts are whose answers are known; {} where no answer is known.

        `avg` is the mean over rollouts. `pass@n` is the mean over questions, where n is the smallest number of rollouts
        of a question. `rewards` holds the method's reward of each rollout on the scale of correctness. With it the
        figures include its drift (mean reward less mean correctness), and its AUROC for correctness over all rollouts
        and within prompts. Rewards that are not finite are left out.

        These figures are for the log alone. None of them may reach training.
        """
        answered = [row for row, rollout in enumerate(rollouts) if rollout.prompt.id in self._answers]
        if not answered:
            return {}
        correct = graded(self._grader, [rollouts[row] for row in answered], self._answers)
        prompts = [rollouts[row].prompt.id for row in answered]
        figures: dict[str, float | None] = {"avg": mean(correct), **_pass_at_fewest(correct, prompts)}
        if rewards is not None:
            scores = [rewards[row] for row in answered]
            drifts = [score - grade for score, grade in zip(scores, correct, strict=True) if math.isfinite(score)]
            figures["reward_minus_truth"] = mean(drifts) if drifts else None
            figures["reward_auroc"] = auroc(scores, correct)
            figures["reward_auroc_within_prompts"] = auroc_within_groups(scores, correct, prompts)
        return {f"{_OBSERVED}/{name}": value for name, value in figures.items() if value is not None}

    def _question_figures(self, rollouts: Sequence[Rollout], answers: Sequence[GradedAnswer]) -> Metrics:
        tick()
        samples = Samples(
            correct=[answer.correct for answer in answers],
            clusters=[answer.cluster for answer in answers],
            texts=[self._decode(rollout.response_ids) for rollout in rollouts],
            tokens=[len(rollout.response_ids) for rollout in rollouts],
            truncated=[rollout.truncated for rollout in rollouts],
        )
        k = self._config.k
        return question_metrics(samples, average_at=k, k=[k], ngrams=_NGRAMS)

    @expect_pace(Pace.untimed)
    def _write_samples(
        self, names: Sequence[str], rollouts: Sequence[Rollout], answers: Sequence[GradedAnswer], iteration: int
    ) -> None:
        if self._samples_directory is None:
            return
        self._samples_directory.mkdir(parents=True, exist_ok=True)
        self._write_questions(self._samples_directory / "questions.jsonl")
        path = self._samples_directory / f"iteration-{iteration:06d}.jsonl"
        with atomic_path(path) as temporary, temporary.open("w") as file:
            for name, rollout, answer in zip(names, rollouts, answers, strict=True):
                row = {"set": name, **response_record(rollout, answer, self._decode)}
                file.write(json.dumps(row) + "\n")

    def _write_questions(self, path: Path) -> None:
        """Write the texts of all questions as the model reads them, without answers, for the run's report."""
        with atomic_path(path) as temporary, temporary.open("w") as file:
            for name, prompts in self._sets.items():
                for prompt in prompts:
                    row = {"set": name, "prompt": prompt.id, "question": self._decode(prompt.token_ids)}
                    file.write(json.dumps(row) + "\n")


def evaluation_metrics(results: dict[str, Metrics]) -> dict[str, float]:
    """Return the figures of evaluation sets as metrics, named `evaluation/SET/FIGURE`."""
    return {f"evaluation/{name}/{key}": value for name, row in results.items() for key, value in row.items()}


def response_record(rollout: Rollout, answer: GradedAnswer, decode: Decode) -> dict[str, Any]:
    """Return the JSON record of a sampled response."""
    return {
        "prompt": rollout.prompt.id,
        "sample": rollout.sample,
        "correct": answer.correct,
        "answer": answer.answer,
        "cluster": answer.cluster,
        "tokens": len(rollout.response_ids),
        "finish_reason": rollout.finish_reason,
        "response": decode(rollout.response_ids),
    }


def _subset(prompts: list[Prompt], count: int) -> list[Prompt]:
    """Return `count` of the prompts, of every source, in their order; all of them for 0."""
    if not count:
        return prompts
    ids = {prompt.id for prompt in _first(prompts, count)}
    return [prompt for prompt in prompts if prompt.id in ids]


def _first(prompts: list[Prompt], count: int) -> list[Prompt]:
    """Return the first `count` prompts of the order in which evaluations take them."""
    return spread_over_sources(prompts, "evaluation")[:count]


def _pass_at_fewest(correct: Sequence[float], prompts: Sequence[str]) -> Metrics:
    """Return pass@n, where n is the smallest number of rollouts of a prompt; {} where n is 1."""
    grades: dict[str, list[float]] = {}
    for grade, prompt in zip(correct, prompts, strict=True):
        grades.setdefault(prompt, []).append(grade)
    fewest = min(map(len, grades.values()))
    if fewest == 1:
        return {}
    return {f"pass@{fewest}": mean([pass_at_k(round(sum(row)), len(row), fewest) for row in grades.values()])}

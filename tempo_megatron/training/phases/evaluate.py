"""Evaluation: the one phase that sees the answers of unlabeled and held-out questions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tempo_megatron.config import EvaluationConfig
from tempo_megatron.data.sources import Answers
from tempo_megatron.data.spread import spread_over_sources
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.recorded import Engine
from tempo_megatron.grading import Grader
from tempo_megatron.metrics.calibration import auroc, auroc_within_groups
from tempo_megatron.metrics.pass_at_k import pass_at_k
from tempo_megatron.metrics.question_metrics import Metrics, Samples, mean, mean_over_questions, question_metrics
from tempo_megatron.training.phases.generate import generate
from tempo_megatron.training.phases.grade import GradedAnswer, graded, verdicts
from tempo_megatron.utils.atomic_files import written_whole
from tempo_megatron.utils.distributed import divided
from tempo_megatron.utils.heartbeat import Pace, expect_pace, tick

Decode = Callable[[Sequence[int]], str]
_NGRAMS = (4,)
_OBSERVED = "evaluation/unlabeled_rollouts"


class Evaluator:
    """Holds the evaluation sets and, alone, the answers to them. Every rank makes every call."""

    def __init__(
        self,
        sets: dict[str, list[Prompt]],
        answers: Answers,
        grader: Grader,
        decode: Decode,
        config: EvaluationConfig,
        max_tokens: int,
        samples_directory: Path | None,
    ) -> None:
        self._sets = sets
        self._between = {name: _part(prompts, config.questions) for name, prompts in sets.items()}
        """the questions of each set that are asked between the ends"""
        self._answers = answers
        self._grader = grader
        self._decode = decode
        self._config = config
        self._max_tokens = max_tokens
        self._samples_directory = samples_directory

    def evaluate(self, engine: Engine, iteration: int, at_an_end: bool) -> dict[str, Metrics]:
        """For each set the means over questions of `question_metrics`, avg@k, pass@k and cons@k also
        with their standard errors; for a set of several sources also those of each, named `SET/SOURCE`. Empty without
        sets.

        The same seeds are used at every iteration, so that a difference is the policy's. Sampled texts are kept where
        a directory was given (on one rank).
        """
        samples = (self._config.final_samples if at_an_end else 0) or self._config.samples
        asked = self._sets if at_an_end else self._between
        chosen = [(name, prompt) for name, prompts in asked.items() for prompt in prompts]
        if not chosen:
            return {}
        rollouts = generate(
            engine,
            chosen,
            seed=0,
            iteration=0,
            samples=samples,
            max_tokens=self._max_tokens,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
        )
        judged = verdicts(self._grader, rollouts, self._answers)
        names = [name for name, _ in chosen]
        self._keep([name for name in names for _ in range(samples)], rollouts, judged, iteration)

        def measure(mine: Sequence[int]) -> list[Metrics]:
            parts = [slice(question * samples, (question + 1) * samples) for question in mine]
            return [self._measure(rollouts[part], judged[part]) for part in parts]

        mixed = {name for name, prompts in asked.items() if len({prompt.source for prompt in prompts}) > 1}
        rows: dict[str, list[Metrics]] = {name: [] for name in asked}
        for (name, prompt), row in zip(chosen, divided(range(len(chosen)), measure), strict=True):
            rows[name].append(row)
            if name in mixed:
                rows.setdefault(f"{name}/{prompt.source}", []).append(row)
        return {name: mean_over_questions(figures) for name, figures in rows.items()}

    def observe(self, rollouts: Sequence[Rollout], rewards: Sequence[float] | None) -> Metrics:
        """How right the M-step's own rollouts are, of the questions whose answers are known; {} where none is.

        `avg` over rollouts; `pass@n` over questions, n being the fewest rollouts that one has. With `rewards`, the
        method's own of each rollout on the scale of correctness: mean reward less mean correctness (its drift), and
        how well it tells right from wrong, over all and within prompts; rewards that are not finite take no part. For
        the log alone: none of it may reach training.
        """
        known = [row for row, rollout in enumerate(rollouts) if rollout.prompt.id in self._answers]
        if not known:
            return {}
        correct = graded(self._grader, [rollouts[row] for row in known], self._answers)
        prompts = [rollouts[row].prompt.id for row in known]
        found: dict[str, float | None] = {"avg": mean(correct), **_pass_at_fewest(correct, prompts)}
        if rewards is not None:
            scores = [rewards[row] for row in known]
            drifts = [score - grade for score, grade in zip(scores, correct, strict=True) if math.isfinite(score)]
            found["reward_minus_truth"] = mean(drifts) if drifts else None
            found["reward_auroc"] = auroc(scores, correct)
            found["reward_auroc_within_prompts"] = auroc_within_groups(scores, correct, prompts)
        return {f"{_OBSERVED}/{name}": value for name, value in found.items() if value is not None}

    def _measure(self, rollouts: Sequence[Rollout], judged: Sequence[GradedAnswer]) -> Metrics:
        tick()
        samples = Samples(
            correct=[verdict.correct for verdict in judged],
            clusters=[verdict.cluster for verdict in judged],
            texts=[self._decode(rollout.response_ids) for rollout in rollouts],
            tokens=[len(rollout.response_ids) for rollout in rollouts],
            truncated=[rollout.truncated for rollout in rollouts],
        )
        k = self._config.k
        return question_metrics(samples, average_at=k, k=[k], ngrams=_NGRAMS)

    @expect_pace(Pace.untimed)
    def _keep(
        self, names: Sequence[str], rollouts: Sequence[Rollout], judged: Sequence[GradedAnswer], iteration: int
    ) -> None:
        if self._samples_directory is None:
            return
        self._samples_directory.mkdir(parents=True, exist_ok=True)
        path = self._samples_directory / f"iteration-{iteration:06d}.jsonl"
        with written_whole(path) as aside, aside.open("w") as file:
            for name, rollout, verdict in zip(names, rollouts, judged, strict=True):
                row = {"set": name, **record(rollout, verdict, self._decode)}
                file.write(json.dumps(row) + "\n")


def _part(prompts: list[Prompt], count: int) -> list[Prompt]:
    """So many of the prompts, in their order, with every source among them; all for 0."""
    if not count:
        return prompts
    chosen = {prompt.id for prompt in spread_over_sources(prompts, "evaluation")[:count]}
    return [prompt for prompt in prompts if prompt.id in chosen]


def record(rollout: Rollout, verdict: GradedAnswer, decode: Decode) -> dict[str, Any]:
    """What is kept of a sampled response."""
    return {
        "prompt": rollout.prompt.id,
        "sample": rollout.sample,
        "correct": verdict.correct,
        "answer": verdict.answer,
        "cluster": verdict.cluster,
        "tokens": len(rollout.response_ids),
        "finish_reason": rollout.finish_reason,
        "response": decode(rollout.response_ids),
    }


def _pass_at_fewest(correct: Sequence[float], prompts: Sequence[str]) -> Metrics:
    """pass@n, n being the fewest rollouts of a prompt; {} where a prompt has only one."""
    grades: dict[str, list[float]] = {}
    for grade, prompt in zip(correct, prompts, strict=True):
        grades.setdefault(prompt, []).append(grade)
    fewest = min(map(len, grades.values()))
    if fewest == 1:
        return {}
    return {f"pass@{fewest}": mean([pass_at_k(round(sum(row)), len(row), fewest) for row in grades.values()])}

"""Token samples: what critic, trainer and generator say about each token of a few responses, for the run's report.

Training reads nothing of this. An answer enters as a grade alone, and only a labeled one's enters an advantage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from tempo_megatron.algorithms.experience import values_to_correctness
from tempo_megatron.algorithms.methods import Method
from tempo_megatron.config import TOKEN_SAMPLE_RESPONSES, TOKEN_SAMPLE_TOKENS, PolicyConfig
from tempo_megatron.data.types import Rollout
from tempo_megatron.grading import RolloutGrader
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.megatron.trainer import MegatronModel, Trainer
from tempo_megatron.training.phases.advantages import (
    PolicyRollouts,
    compute_advantages,
    generator_log_probs,
    rollout_votes,
)
from tempo_megatron.training.phases.pass_rates import PassRateHistory
from tempo_megatron.training.phases.scoring import Scores, to_batch, values

Decode = Callable[[Sequence[int]], str]
_LONGEST_PART = 64
"""A run of tokens that is no valid text is shown as it is after so many of them."""


@dataclass(frozen=True)
class SampledQuestion:
    """A question with its responses in their order, and their grades."""

    question_set: str
    """`labeled`, `unlabeled` or `held_out`."""
    rollouts: list[Rollout]
    correct: list[float]

    def first(self, count: int) -> SampledQuestion:
        """Return the question with its first `count` responses."""
        return replace(self, rollouts=self.rollouts[:count], correct=self.correct[:count])


@dataclass(frozen=True)
class TokenScores:
    """Scores of the tokens of some responses, all [rows, sequence]."""

    batch: Batch
    log_probs: Float32[Tensor, "rows sequence"]
    """The trainer's log-prob of each response token."""
    difference: Float32[Tensor, "rows sequence"]
    """log p_trainer - log p_generator."""
    values: Float32[Tensor, "rows sequence"] | None
    """The critic's value after each token, in the scale of correctness. None without a critic."""
    advantages: Float32[Tensor, "rows sequence"]
    """The method's advantage before whitening; NaN where it is undefined."""


def questions_of(question_set: str, rollouts: Sequence[Rollout], correct: Sequence[float]) -> list[SampledQuestion]:
    """Return graded rollouts as questions, in the order of their first rollouts."""
    rows: dict[str, list[int]] = {}
    for row, rollout in enumerate(rollouts):
        rows.setdefault(rollout.prompt.id, []).append(row)
    return [
        SampledQuestion(question_set, [rollouts[row] for row in group], [correct[row] for row in group])
        for group in rows.values()
    ]


def score_tokens(
    questions: Sequence[SampledQuestion],
    method: Method,
    policy: Trainer,
    critic: MegatronModel | None,
    scores: Scores,
    config: PolicyConfig,
    *,
    grader: RolloutGrader,
    wrong: float,
    group_size: int,
) -> TokenScores:
    """Return the scores of all rollouts of the questions, in their order. Collective.

    Advantages are those that the method gives these rollouts. A method that compares responses is called only where
    every question has `group_size` of them, and one that reads grades only where all questions are labeled.
    """
    rollouts = [rollout for question in questions for rollout in question.rollouts]
    batch = to_batch(rollouts)
    critic_values = values(critic, batch) if critic else None
    lacks_responses = method.compares_responses and any(len(question.rollouts) != group_size for question in questions)
    lacks_grades = "correct" in method.needs and any(question.question_set != "labeled" for question in questions)
    if lacks_responses or lacks_grades:
        log_probs = policy.score(batch, scores())["log_probs"]
        advantages = torch.full(batch.tokens.shape, math.nan)
    else:
        hidden = math.nan  # the grade of a response whose answer training must not see
        grades = [
            grade if question.question_set == "labeled" else hidden
            for question in questions
            for grade in question.correct
        ]
        votes = rollout_votes(grader, rollouts, range(len(rollouts))) if "votes" in method.needs else None
        # As in a first policy step: the run's own history must not learn of questions that only an evaluation has.
        pass_rates = (
            PassRateHistory().observe(rollouts, grades, votes) if votes and "pass_rates" in method.needs else None
        )
        step = compute_advantages(
            PolicyRollouts(rollouts, grades, votes, pass_rates),
            method,
            policy,
            critic,
            None,
            scores,
            replace(config, mini_batches=1),
            wrong=wrong,
            seed=("token samples",),
            critic_values=critic_values,
        )
        log_probs, advantages = step.batch.columns["old_log_probs"], step.advantages
    correctness = None if critic_values is None else values_to_correctness(critic_values, wrong)
    return TokenScores(batch, log_probs, log_probs - generator_log_probs(batch, rollouts), correctness, advantages)


def token_records(
    questions: Sequence[SampledQuestion], scores: TokenScores, decode: Decode, *, compares_log_probs: bool
) -> list[dict[str, Any]]:
    """Return the JSON records of the first responses to each question.

    A long response is cut in its middle: `left_out` counts the tokens after the `first` ones. With
    `compares_log_probs` a record has the difference of the trainer's and the generator's log-probs.
    """
    records, row = [], 0
    for question in questions:
        for index, (rollout, correct) in enumerate(zip(question.rollouts, question.correct, strict=True)):
            if index < TOKEN_SAMPLE_RESPONSES:
                record = _record(rollout, scores, row, decode, compares_log_probs=compares_log_probs)
                records.append({"set": question.question_set, "correct": correct, **record})
            row += 1
    return records


def _record(
    rollout: Rollout, scores: TokenScores, row: int, decode: Decode, *, compares_log_probs: bool
) -> dict[str, Any]:
    prompt, tokens = len(rollout.prompt.token_ids), len(rollout.response_ids)
    half = TOKEN_SAMPLE_TOKENS // 2
    parts = [range(tokens)] if tokens <= TOKEN_SAMPLE_TOKENS else [range(half), range(tokens - half, tokens)]
    kept = [token for part in parts for token in part]

    def column(scored: Float32[Tensor, "rows sequence"] | None, digits: int = 4) -> list[float | None] | None:
        """Return the score of each kept token, None where it is undefined; None where all are."""
        numbers = [] if scored is None else [_rounded(float(scored[row, prompt + token]), digits) for token in kept]
        return numbers if any(number is not None for number in numbers) else None

    return {
        "prompt": rollout.prompt.id,
        "question": decode(rollout.prompt.token_ids),
        "sample": rollout.sample,
        "finish_reason": rollout.finish_reason,
        "tokens": tokens,
        "first": len(parts[0]),
        "left_out": tokens - len(kept),
        "texts": [text for part in parts for text in token_texts(rollout.response_ids[part.start : part.stop], decode)],
        "value_before": None if scores.values is None else _rounded(float(scores.values[row, prompt - 1])),
        "values": column(scores.values),
        "advantages": column(scores.advantages),
        "log_probs": column(scores.log_probs),
        "differences": column(scores.difference, digits=3) if compares_log_probs else None,
    }


def _rounded(number: float, digits: int = 4) -> float | None:
    """Return a number with so many significant digits; None where it is not finite, which JSON cannot hold."""
    return float(f"{number:.{digits}g}") if math.isfinite(number) else None


def token_texts(token_ids: Sequence[int], decode: Decode) -> list[str]:
    """Return the text that each token adds. Joined they are the text of all tokens.

    A character may be split over several tokens. The last of them has the whole character, the others have "".
    """
    texts: list[str] = []
    start = end = 0
    # A token's text depends on its neighbor, as a leading space does: it is decoded after the part before it.
    for position in range(1, len(token_ids) + 1):
        before, text = decode(token_ids[start:end]), decode(token_ids[start:position])
        is_last = position == len(token_ids) or position - end >= _LONGEST_PART
        if text.endswith("\ufffd") and not is_last:
            texts.append("")
            continue
        # Tokens that were shown as invalid may begin a character that this one completes.
        texts.append(text[len(before if text.startswith(before) else before.rstrip("\ufffd")) :])
        start, end = end, position
    return texts

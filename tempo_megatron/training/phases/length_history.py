"""The expected response length of each question, from its earlier rollouts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from tempo_megatron.data.types import Prompt, Rollout

MAX_QUESTIONS = 16384
"""The questions that a run remembers, about 0.7 MB of its state. Test-time training has 160 to some thousands."""

_WEIGHT = 0.5
"""The weight of the newest mean length. One mean of 16 responses is noisy, and the policy's lengths drift."""


class LengthHistory:
    """The expected number of response tokens by prompt id, on every rank the same.

    A question's expectation is the exponentially weighted mean of its mean lengths, one per call of `observe`. A
    truncated response counts with the length that it has. Of more than MAX_QUESTIONS questions, those that were not
    sampled for longest are forgotten: in a large stream of questions that come once, they would only fill the state.
    """

    def __init__(self, expected_tokens: Mapping[str, float] | None = None) -> None:
        self.expected_tokens = dict(expected_tokens or {})
        """The expectations, in the order in which their questions were last sampled."""

    def observe(self, rollouts: Iterable[Rollout]) -> None:
        """Updates the expectations of the rollouts' questions."""
        lengths: dict[str, list[int]] = {}
        for rollout in rollouts:
            lengths.setdefault(rollout.prompt.id, []).append(len(rollout.response_ids))
        for prompt_id, tokens in lengths.items():
            newest = sum(tokens) / len(tokens)
            previous = self.expected_tokens.pop(prompt_id, newest)
            self.expected_tokens[prompt_id] = previous + _WEIGHT * (newest - previous)
        for prompt_id in list(self.expected_tokens)[:-MAX_QUESTIONS]:
            del self.expected_tokens[prompt_id]

    def expectations(self, prompts: Iterable[Prompt]) -> dict[str, float]:
        """Returns the present expectations of those prompts that have one, by prompt id."""
        known = self.expected_tokens
        return {prompt.id: known[prompt.id] for prompt in prompts if prompt.id in known}


def rank_correlation(expectations: Mapping[str, float], rollouts: Sequence[Rollout]) -> float | None:
    """Returns Spearman's correlation of expected and sampled lengths, over rollouts with an expectation.

    None where it is undefined: with fewer than two of them, or if all expectations or all lengths are equal.
    """
    pairs = [
        (expectations[rollout.prompt.id], len(rollout.response_ids))
        for rollout in rollouts
        if rollout.prompt.id in expectations
    ]
    expected, sampled = zip(*pairs, strict=True) if pairs else ((), ())
    if len(set(expected)) < 2 or len(set(sampled)) < 2:
        return None
    return statistics.correlation(expected, sampled, method="ranked")

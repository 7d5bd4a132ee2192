"""Partial rollouts: when enough groups are whole, the others pause and go on under the next policy.

The responses to one unlabeled prompt are a group. More groups are in flight than an M-step learns from. The M-step
learns from `loop.unlabeled_prompts` whole groups, always as many, so that a step's size does not change. The other
groups are carried over with their tokens and log-probs. `docs/algorithms.md` ("Partial rollouts") has the mathematics.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tempo_megatron.config import LoopConfig
from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.training.phases.generate import Draft

_ID_TYPE, _LOG_PROB_TYPE = "<i4", "<f4"
"""What the tokens of a saved rollout are stored as. vLLM's log-probs are fp32."""

Complete = Callable[[Sequence[Draft], int], list[Rollout]]
"""Continues drafts until so many of their groups are whole; returns the rollouts in order."""


@dataclass(frozen=True)
class Group:
    """The responses to one prompt of the unlabeled stream."""

    rollouts: tuple[Rollout, ...]

    @property
    def started(self) -> int:
        """The iteration that took the prompt from the stream."""
        return self.rollouts[0].started

    @property
    def is_whole(self) -> bool:
        """Whether no response is paused."""
        return not any(rollout.paused for rollout in self.rollouts)

    @property
    def staleness(self) -> int:
        """The age of the oldest token, in M-steps."""
        return max(rollout.staleness for rollout in self.rollouts)

    def aged(self) -> Group:
        """Return the group as the next iteration sees it: all its tokens are of an earlier policy then."""
        return replace(self, rollouts=tuple(map(_aged, self.rollouts)))

    def to_json(self) -> dict[str, Any]:
        """Return the group as JSON can write it. Tokens and log-probs are bytes in base64, eight bytes a token."""
        return {
            "started": self.started,
            "prompt": asdict(self.rollouts[0].prompt),
            "rollouts": [
                {
                    "sample": rollout.sample,
                    "response_ids": _encode(rollout.response_ids, _ID_TYPE),
                    "generator_log_probs": _encode(rollout.generator_log_probs, _LOG_PROB_TYPE),
                    "finish_reason": rollout.finish_reason,
                    "stale_tokens": rollout.stale_tokens,
                    "staleness": rollout.staleness,
                }
                for rollout in self.rollouts
            ],
        }

    @classmethod
    def from_json(cls, json_fields: dict[str, Any]) -> Group:
        """Return the group that `to_json` wrote."""
        prompt_fields = json_fields["prompt"]
        prompt = Prompt(**{**prompt_fields, "token_ids": tuple(prompt_fields["token_ids"])})
        rollouts = [
            Rollout(
                **{
                    **rollout_fields,
                    "prompt": prompt,
                    "started": json_fields["started"],
                    "response_ids": _decode(rollout_fields["response_ids"], _ID_TYPE),
                    "generator_log_probs": _decode(rollout_fields["generator_log_probs"], _LOG_PROB_TYPE),
                }
            )
            for rollout_fields in json_fields["rollouts"]
        ]
        return cls(tuple(rollouts))


@dataclass(frozen=True)
class PartialStep:
    """The rollouts of one generate call in which groups could pause."""

    others: list[Rollout]
    """The rollouts without a group. They are complete."""
    trained: list[Group]
    """The groups that the M-step learns from, oldest first."""
    carried: list[Group]
    """The groups of the next iteration, oldest first. Some of them may be whole."""
    resumed: int
    """The number of carried responses that were offered to go on."""
    paused: int
    """The number of responses that paused or did not start."""


def sample_groups(
    complete: Complete,
    others: Sequence[Draft],
    new: Sequence[Draft],
    carried: Sequence[Group],
    *,
    samples: int,
    loop: LoopConfig,
    seed: int,
    iteration: int,
) -> PartialStep:
    """Continue carried groups and sample new ones until `loop.unlabeled_prompts` groups are whole.

    `others` are drafts that always finish. `new` has `samples` drafts of each new prompt. Nothing pauses before all
    groups are whole whose oldest token is `loop.staleness` M-steps old, and the oldest whole groups train first. No
    more groups are carried over than train, so that the next M-step can learn from all of these: no token trains that
    is older than `loop.staleness`, and none is thrown away.
    """
    new = [replace(draft, rollout=replace(draft.rollout, started=iteration)) for draft in new]
    new_groups = [
        Group(tuple(draft.rollout for draft in new[start : start + samples])) for start in range(0, len(new), samples)
    ]
    groups = [*carried, *new_groups]
    resumed_drafts = [
        Draft(
            rollout,
            _resumed_seed(seed, iteration, group, rollout),
            group=number,
            must_finish=group.staleness >= loop.staleness,
            is_carried=True,
        )
        for number, group in enumerate(carried)
        for rollout in group.rollouts
        if rollout.paused
    ]
    new_drafts = [replace(draft, group=len(carried) + row // samples) for row, draft in enumerate(new)]
    enough_groups = loop.unlabeled_prompts - sum(group.is_whole for group in carried)
    rollouts = iter(complete([*others, *resumed_drafts, *new_drafts], enough_groups))
    other_rollouts = [next(rollouts) for _ in others]
    groups = [
        replace(group, rollouts=tuple(next(rollouts) if each.paused else each for each in group.rollouts))
        for group in groups
    ]
    oldest_first = sorted(range(len(groups)), key=lambda number: -groups[number].staleness)
    trained = [number for number in oldest_first if groups[number].is_whole][: loop.unlabeled_prompts]
    left = [group for number, group in enumerate(groups) if number not in set(trained)]
    return PartialStep(
        other_rollouts,
        [groups[number] for number in trained],
        [group.aged() for group in left],
        resumed=sum(bool(draft.rollout.response_ids) for draft in resumed_drafts),
        paused=sum(rollout.paused for group in left for rollout in group.rollouts),
    )


def staleness_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return how old the tokens of an M-step's unlabeled rollouts are.

    The staleness of a rollout is that of its first token, in M-steps.
    """
    ages = [rollout.staleness for rollout in rollouts]
    tokens = sum(len(rollout.response_ids) for rollout in rollouts)
    return {
        "rollouts/staleness_mean": sum(ages) / len(ages),
        "rollouts/staleness_max": float(max(ages)),
        "rollouts/off_policy_tokens": sum(rollout.stale_tokens for rollout in rollouts) / tokens,
    }


def _aged(rollout: Rollout) -> Rollout:
    tokens = len(rollout.response_ids)
    return replace(rollout, stale_tokens=tokens, staleness=rollout.staleness + 1) if tokens else rollout


def _resumed_seed(seed: int, iteration: int, group: Group, rollout: Rollout) -> int:
    """Return the seed of a continuation. The old seed would repeat the random numbers of the first tokens."""
    return derive_seed(seed, iteration, "resumed", rollout.prompt.id, group.started, rollout.sample)


def _encode(values: Sequence[float], dtype: str) -> str:
    return base64.b64encode(np.array(values, dtype=dtype).tobytes()).decode()


def _decode(text: str, dtype: str) -> tuple[Any, ...]:
    return tuple(np.frombuffer(base64.b64decode(text), dtype=dtype).tolist())

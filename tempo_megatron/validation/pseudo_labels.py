"""Checks the settings of methods that label unlabeled questions by votes."""

from __future__ import annotations

from collections.abc import Iterator

from tempo_megatron.algorithms.methods import Method, method
from tempo_megatron.algorithms.methods.scrl import Scrl
from tempo_megatron.config import Config, ScrlConfig


def pseudo_label_problems(config: Config) -> Iterator[str]:
    """Yield a line for each setting of a method that is not the run's, and for each that no vote can meet."""
    chosen = method(config.method)
    if isinstance(chosen, Scrl):
        yield from _scrl_problems(config)
    elif config.policy.scrl != ScrlConfig():
        yield _unread("policy.scrl", config.method, Scrl)


def _scrl_problems(config: Config) -> Iterator[str]:
    """Yield a line for each threshold that contradicts another, or that the number of votes makes void."""
    scrl, votes = config.policy.scrl, max(config.loop.samples_per_prompt, config.loop.votes_per_prompt)
    if scrl.negative_share > scrl.positive_share:
        yield (
            f"policy.scrl.negative_share: at most positive_share ({scrl.positive_share}), got {scrl.negative_share}: "
            "an answer would be a positive and a negative label"
        )
    if 0 < scrl.negative_share * votes <= 1:
        yield (
            f"policy.scrl.negative_share: {scrl.negative_share} of {votes} votes is at most one response, so that no "
            f"answer could be a negative label; needs loop.votes_per_prompt above {1 / scrl.negative_share:g}, a "
            "larger share, or 0 for no negative labels"
        )


def _unread(key: str, name: str, reader: type[Method]) -> str:
    return f"{key}: method {name} does not read it, only {reader.__name__.lower()} does"

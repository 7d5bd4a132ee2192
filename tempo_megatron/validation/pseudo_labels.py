"""Checks the settings of methods that label unlabeled questions by votes."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tempo_megatron.algorithms.methods import method
from tempo_megatron.algorithms.methods.scrl import Scrl
from tempo_megatron.algorithms.methods.trapo import Trapo
from tempo_megatron.config import Config, ScrlConfig, TrapoConfig


def pseudo_label_problems(config: Config) -> Iterator[str]:
    """Yield a line for each setting of a method that is not the run's, and for each that no vote can meet."""
    chosen, policy = method(config.method), config.policy
    if policy.scrl != ScrlConfig() and not isinstance(chosen, Scrl):
        yield f"policy.scrl: method {config.method} does not read it, only scrl does"
    if policy.trapo != TrapoConfig() and not isinstance(chosen, Trapo):
        yield f"policy.trapo: method {config.method} does not read it, only trapo does"
    if isinstance(chosen, Scrl):
        yield from _scrl_problems(config)
    if isinstance(chosen, Trapo) and policy.trapo.similarity > 1 and not policy.trapo.top_share:
        yield "policy.trapo: top_share 0 and a similarity above 1 select no question"


def warm_up_problems(config: Config, labeled: int, unlabeled: int) -> Iterator[str]:
    """Yield a line if the run ends before TraPO compares the first question. `labeled` and `unlabeled` count questions.

    The labeled questions must have been sampled `warm_up_passes` times, and an unlabeled one as often.
    """
    if not isinstance(method(config.method), Trapo):
        return
    loop, passes = config.loop, config.policy.trapo.warm_up_passes
    # In its first pass over a stream, a run compares only the questions that it has had.
    labeled_prompts = passes * labeled if passes > 1 else 1
    needed = max(
        math.ceil(labeled_prompts / loop.labeled_prompts),
        (passes - 1) * unlabeled // loop.unlabeled_prompts + 1,
    )
    if math.ceil(needed / loop.m_steps) > loop.iterations:
        yield (
            f"policy.trapo.warm_up_passes: {passes} passes over {labeled} labeled and {unlabeled} unlabeled questions "
            f"take {needed} M-steps, and the run has {loop.iterations * loop.m_steps}: no unlabeled question would "
            "train; needs more loop.iterations, more prompts a step, or fewer passes"
        )


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

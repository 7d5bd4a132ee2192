"""Which checkpoint is best, by a rule that needs no hidden label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that may be the best. `value` is the mean last value, by one critic for all candidates, of its
    responses to unlabeled questions; None where no critic takes part, not finite where one of those values is not."""

    iteration: int
    accuracy: float
    """share of right answers on labeled questions that were set aside"""
    standard_error: float
    """of `accuracy`, over questions"""
    value: float | None = None


def choose(candidates: Sequence[Candidate]) -> tuple[Candidate, str]:
    """The best candidate, and why in a sentence.

    Labeled accuracy decides first: whoever is more than one standard error (its own) below the highest is out. Of the
    rest the one whose unlabeled responses the critic values most is best; the earliest of equals. Candidates whose
    value is not finite are out from the start. Without a critic's values, or without any finite value, the highest
    accuracy is best.
    """
    valued = [one for one in candidates if one.value is not None and math.isfinite(one.value)]
    top = max(valued or candidates, key=lambda one: (one.accuracy, -one.iteration))
    if not valued:
        why = (
            "no critic takes part"
            if any(one.value is None for one in candidates)
            else "no value of the critic is finite"
        )
        return top, f"highest labeled accuracy, {top.accuracy:.4f}, of {len(candidates)} candidates; {why}"
    near = [one for one in valued if one.accuracy >= top.accuracy - one.standard_error]
    best = max(near, key=lambda one: (one.value, -one.iteration))
    left_out = len(candidates) - len(valued)
    return best, (
        f"highest critic value on unlabeled questions, {best.value:.4f}, of the {len(near)} of {len(candidates)} "
        f"candidates within a standard error of the highest labeled accuracy, {top.accuracy:.4f}"
        + (f"; {left_out} left out, whose value is not finite" if left_out else "")
    )

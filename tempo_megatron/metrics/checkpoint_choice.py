"""The choice of the best checkpoint, by a rule that needs no hidden label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that may be the best."""

    iteration: int
    accuracy: float
    """The share of right answers to labeled questions that were set aside."""
    standard_error: float
    """The standard error of `accuracy` over questions."""
    value: float | None = None
    """The mean value that the critic gives the last tokens of the candidate's responses to unlabeled questions. One
    critic judges all candidates. None without a critic; not finite where one of these values is not."""


def best_checkpoint(candidates: Sequence[Candidate]) -> tuple[Candidate, str]:
    """Returns the best candidate and the reason as a sentence.

    Labeled accuracy decides first: a candidate is left out if its accuracy is more than its own standard error below
    the highest. The best of the others has the highest critic value on unlabeled responses; among equals, the earliest
    wins. Candidates without a finite value are left out. Where no candidate has one, the highest accuracy is best.
    """
    valued = [candidate for candidate in candidates if candidate.value is not None and math.isfinite(candidate.value)]
    most_accurate = max(valued or candidates, key=lambda candidate: (candidate.accuracy, -candidate.iteration))
    accuracy = f"{most_accurate.accuracy:.4f}"
    if not valued:
        reason = (
            "no critic takes part"
            if any(candidate.value is None for candidate in candidates)
            else "no value of the critic is finite"
        )
        return most_accurate, f"highest labeled accuracy, {accuracy}, of {len(candidates)} candidates; {reason}"
    near = [
        candidate for candidate in valued if candidate.accuracy >= most_accurate.accuracy - candidate.standard_error
    ]
    best = max(near, key=lambda candidate: (candidate.value, -candidate.iteration))
    left_out = len(candidates) - len(valued)
    return best, (
        f"highest critic value on unlabeled questions, {best.value:.4f}, of the {len(near)} of {len(candidates)} "
        f"candidates within a standard error of the highest labeled accuracy, {accuracy}"
        + (f"; {left_out} left out, whose value is not finite" if left_out else "")
    )

"""The error that ends grading."""

from __future__ import annotations


class GradingError(RuntimeError):
    """Grading is impossible: a worker does not start, a grader is unknown, or the judge does not answer."""

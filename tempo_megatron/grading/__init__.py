"""A response in, 0 or 1 out."""

from tempo_megatron.grading.grader import Grader

__all__ = ["Grader"]

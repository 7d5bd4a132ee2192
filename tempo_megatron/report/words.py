"""Plain words for names that a reader of the report may not know."""

from __future__ import annotations

METHODS = {
    "tempo": "TEMPO (a critic that learns from labeled questions rewards responses to unlabeled ones)",
    "tempo_reference_code": "TEMPO as its authors' code has it (a critic rewards responses to unlabeled questions)",
    "frozen_critic": "the frozen-critic baseline (TEMPO with a critic that stops learning before iteration 1)",
    "ppo": "PPO on labeled questions (right responses are rewarded)",
    "grpo": "GRPO on labeled questions (right responses are rewarded)",
    "ttrl": "TTRL (responses that agree with the most frequent answer are rewarded, without labels)",
    "empo": "EMPO (responses with frequent answers are rewarded, without labels)",
    "scrl": "SCRL (clear majorities are rewarded, rare answers of unsure responses are punished, without labels)",
    "trapo": "TraPO (right responses to labeled questions are rewarded, and majorities on unlabeled ones like them)",
}
"""Method -> what it does, in a few words."""


def set_name(question_set: str) -> str:
    """Return a question set's name as text: `held-out` for `held_out`."""
    return question_set.replace("_", "-")


def percent(share: float) -> str:
    """Return a share in percent, with one decimal below 10% and above 90%: `4.2%`, `37%`."""
    value = 100 * share
    return f"{value:.1f}%" if 0 < value < 10 or 90 < value < 100 else f"{value:.0f}%"


def points(difference: float) -> str:
    """Return a difference of shares in percentage points, with its sign: `+3.1 points`."""
    return f"{100 * difference:+.1f} points"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(seconds: float) -> str:
    """Return seconds as text with a fitting unit: `8.3 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def isolated(text: str) -> str:
    """Return a text of a run so that its direction ends with it: a right-to-left mark turns no sentence around it."""
    return text if text.isascii() else f"\u2068{text}\u2069"

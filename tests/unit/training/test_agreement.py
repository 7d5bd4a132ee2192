"""Under exact numerics one unequal bit stops the run, and the error says where it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.training.phases.agreement import LogProbsDiffer, require_equal_log_probs
from tempo_megatron.training.phases.scoring import to_batch

PROMPT = Prompt("sum-3", (5, 6), "here", "exact")
ROLLOUTS = [
    Rollout(PROMPT, 0, (7, 8), (-1.0, -2.0), "stop"),
    Rollout(PROMPT, 1, (9, 7, 8), (-0.5, -0.25, -3.0), "stop", stale_tokens=1),
]


def step(**changes: float) -> Any:
    """Returns a step whose trainer agrees with the generator, except at `rRpP` = row and position in the response."""
    batch = to_batch(ROLLOUTS)
    log_probs = torch.zeros(batch.tokens.shape)
    for row, rollout in enumerate(ROLLOUTS):
        log_probs[row, 2 : 2 + len(rollout.response_ids)] = torch.tensor(rollout.generator_log_probs)
    for name, value in changes.items():
        row, position = map(int, name[1:].split("p"))
        log_probs[row, 2 + position] = value
    return SimpleNamespace(batch=batch.with_columns(old_log_probs=log_probs))


def test_equal_log_probs_pass_and_stale_tokens_may_differ() -> None:
    """An earlier policy sampled a stale token, so its log-prob is another by right."""
    require_equal_log_probs(step(), ROLLOUTS)
    require_equal_log_probs(step(r1p0=-9.0), ROLLOUTS)


@pytest.mark.parametrize("value", [float(torch.nextafter(torch.tensor(-3.0), torch.tensor(0.0))), float("nan")])
def test_one_bit_or_a_nan_names_rollout_token_and_difference(value: float) -> None:
    """The mean over a batch would hide a single token."""
    with pytest.raises(LogProbsDiffer, match=r"1 of 4 tokens .*\n  prompt sum-3, sample 1, response token 2 \(id 8\)"):
        require_equal_log_probs(step(r1p2=value), ROLLOUTS)

"""The check of `numerics: exact`: generator and trainer have equal log-probs for every token, or the run stops."""

from __future__ import annotations

from collections.abc import Sequence

from tempo_megatron.data.types import Rollout
from tempo_megatron.training.phases.advantages import AdvantageBatch, generator_log_probs, stale_mask

_SHOWN = 5
"""The number of tokens that the error lists."""


class LogProbsDiffer(Exception):
    """Under `numerics: exact`, the generator's and the trainer's log-probs of a token are not equal to the last bit."""


def require_equal_log_probs(step: AdvantageBatch, rollouts: Sequence[Rollout]) -> None:
    """Raises LogProbsDiffer if the log-probs of a token that the present policy sampled are not equal.

    The error names the first differing tokens: their rollout, their place in the response, and both values. NaN differs
    from everything. `rollouts` are the rows of the step.
    """
    batch = step.batch
    trainer, generator = batch.columns["old_log_probs"], generator_log_probs(batch, rollouts)
    fresh = batch.response_mask & ~stale_mask(batch.response_mask, rollouts)
    differing = (fresh & (trainer != generator)).nonzero().tolist()
    if not differing:
        return
    largest = (trainer - generator)[fresh].abs().max()
    lines = [
        f"numerics exact: {len(differing)} of {int(fresh.sum())} tokens have other log-probs in trainer and generator, "
        f"up to {float(largest):.3e} apart; the first of them:"
    ]
    for row, position in differing[:_SHOWN]:
        rollout = rollouts[row]
        token = position - len(rollout.prompt.token_ids)
        trained, sampled = float(trainer[row, position]), float(generator[row, position])
        lines.append(
            f"  prompt {rollout.prompt.id}, sample {rollout.sample}, response token {token} "
            f"(id {rollout.response_ids[token]}): trainer {trained:.9g}, generator {sampled:.9g}, "
            f"difference {trained - sampled:.3e}"
        )
    lines.append("`tempo doctor --numerics` with this recipe and policy.checkpoint says in which layer and operation.")
    raise LogProbsDiffer("\n".join(lines))

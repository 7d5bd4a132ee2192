"""Counts the rollouts that an iteration generates and learns from."""

from __future__ import annotations

from dataclasses import dataclass

from tempo_megatron.config import Config, CriticTraining, LearnsFrom


@dataclass(frozen=True)
class RolloutCounts:
    """The numbers of rollouts that a recipe asks for."""

    config: Config

    @property
    def labeled(self) -> int:
        """The labeled rollouts of an iteration's first generate call."""
        loop = self.config.loop
        return loop.e_steps * self._labeled_batch if self.has_e_step else self.labeled_per_step

    @property
    def labeled_per_step(self) -> int:
        """The labeled rollouts that are generated for each further policy step."""
        learns_labeled = self.config.policy.learns_from is not LearnsFrom.unlabeled
        return learns_labeled * self._labeled_batch

    @property
    def _labeled_batch(self) -> int:
        loop = self.config.loop
        return loop.labeled_prompts * loop.samples_per_prompt

    @property
    def unlabeled(self) -> int:
        """The unlabeled rollouts of a policy step, including those that only vote."""
        loop = self.config.loop
        learns_unlabeled = self.config.policy.learns_from is not LearnsFrom.labeled
        return learns_unlabeled * loop.unlabeled_prompts * max(loop.samples_per_prompt, loop.votes_per_prompt)

    @property
    def trained(self) -> int:
        """The rollouts that one M-step learns from."""
        loop, source = self.config.loop, self.config.policy.learns_from
        unlabeled = (source is not LearnsFrom.labeled) * loop.unlabeled_prompts * loop.samples_per_prompt
        return self.labeled_per_step + unlabeled

    @property
    def has_e_step(self) -> bool:
        """Whether the critic learns in an E-step before the policy steps."""
        return self.config.critic.training is CriticTraining.calibrated

    def refills(self, labeled: int, uniform_share: float) -> list[int]:
        """Return the rollouts of each refill round, which replaces prompts whose responses all score alike.

        Each round has `uniform_share` of the prompts of the round before.
        """
        loop = self.config.loop
        prompts = labeled / loop.samples_per_prompt if loop.drop_uniform_prompts else 0.0
        replaced = [round(prompts * uniform_share**number) for number in range(1, loop.refill_tries + 1)]
        return [count * loop.samples_per_prompt for count in replaced if count]

    def generated(self, uniform_share: float) -> int:
        """Return all rollouts that an iteration generates: of its E-steps, of each policy step, and of refills."""
        collections = [self.labeled, *[self.labeled_per_step] * (self.config.loop.m_steps - 1)]
        refilled = sum(sum(self.refills(labeled, uniform_share)) for labeled in collections)
        return sum(collections) + len(collections) * self.unlabeled + refilled

"""The base class of methods: a method computes the reward of each response and the advantages of its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tempo_megatron.algorithms.experience import Experience


@runtime_checkable
class ScrlSettings(Protocol):
    """The settings of the group `policy.scrl`."""

    @property
    def positive_share(self) -> float: ...

    @property
    def margin(self) -> float: ...

    @property
    def negative_share(self) -> float: ...

    @property
    def entropy_penalty(self) -> float: ...


@runtime_checkable
class TrapoSettings(Protocol):
    """The settings of the group `policy.trapo`."""

    @property
    def warm_up_passes(self) -> int: ...

    @property
    def top_share(self) -> float: ...

    @property
    def similarity(self) -> float: ...

    @property
    def comparison(self) -> str: ...


@runtime_checkable
class MethodSettings(Protocol):
    """The settings of the `policy` group that rewards and advantages depend on."""

    @property
    def baseline(self) -> str: ...

    @property
    def gamma(self) -> float: ...

    @property
    def gae_lambda(self) -> float: ...

    @property
    def scrl(self) -> ScrlSettings: ...

    @property
    def trapo(self) -> TrapoSettings: ...


class Method:
    """A training algorithm that a recipe selects by `method:`.

    Before a run starts, a dry run applies its method to synthetic rows (`algorithms.dry_run`). It fails if the method
    reads what it does not name in `needs`.
    """

    settings: ClassVar[Mapping[str, object]] = {}
    """Recipe settings of the method, such as the loss, the rows that the policy learns from, and the critic's training.
    The recipe's own settings take precedence."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What the method reads of an Experience: `values`, `votes`, `pass_rates`, `correct`, `entropy`, `self_certainty`.
    `correct` is the verified correctness of every row, so all rows must be labeled."""
    compares_responses: ClassVar[bool] = False
    """Whether an advantage compares the responses to one prompt, so that each prompt needs several."""

    def rewards(self, experience: Experience, settings: MethodSettings) -> Float[Tensor, " rows"]:
        """Returns the reward R of each response."""
        raise NotImplementedError

    def advantages(
        self, experience: Experience, rewards: Float[Tensor, " rows"], settings: MethodSettings
    ) -> Float[Tensor, "rows sequence"]:
        """Returns the advantage A of each response token, 0 elsewhere."""
        raise NotImplementedError

    def learning_rows(self, experience: Experience, settings: MethodSettings) -> Bool[Tensor, " rows"]:
        """Returns the rows that the policy learns from: all, unless the method selects some."""
        return torch.ones_like(experience.labeled)

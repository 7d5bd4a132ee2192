"""What a method is: which reward a response gets, and which advantage its tokens get from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from torch import Tensor

from tempo_megatron.algorithms.experience import Experience


class Settings(Protocol):
    """The settings of a recipe's `policy` group that advantages read."""

    @property
    def baseline(self) -> str: ...

    @property
    def gamma(self) -> float: ...

    @property
    def gae_lambda(self) -> float: ...


class Method:
    """A page that a recipe chooses by `method:`.

    `settings` are the recipe settings that come with the method (which loss, which rows the policy learns from, how the
    critic is trained); whatever the recipe itself says wins. `needs` names what must be there in an Experience:
    `values`, `votes`, `correct` (of every row, so that all must be labeled), and of `statistics` `entropy`,
    `self_certainty`. A run rehearses its method before it starts and refuses one that reads what it does not name.
    """

    settings: ClassVar[Mapping[str, object]] = {}
    needs: ClassVar[frozenset[str]] = frozenset()
    compares_responses: ClassVar[bool] = False
    """whether an advantage compares the responses to one prompt, so that there must be several"""

    def rewards(self, experience: Experience) -> Tensor:
        """R of each response, [rows] fp32."""
        raise NotImplementedError

    def advantages(self, experience: Experience, rewards: Tensor, settings: Settings) -> Tensor:
        """A of each response token, [rows, sequence] fp32, 0 elsewhere."""
        raise NotImplementedError

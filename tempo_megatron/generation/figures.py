"""Sums figures of the generator over its replicas and calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

_SUMMED = ("requests", "tokens", "preemptions")


class FigureSums:
    """The figures of the `Generator.generate` calls since the last `take`."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._clear()

    def _clear(self) -> None:
        self._sums: Counter[str] = Counter()
        self._requests_of_replicas = [0] * self._replicas
        self._idle_nanoseconds = 0

    def add(self, replica_figures: Sequence[Mapping[str, int]]) -> None:
        """Adds one call's figures of each replica: `requests`, `tokens`, `preemptions` and `nanoseconds`."""
        longest = max(figures["nanoseconds"] for figures in replica_figures)
        for replica, figures in enumerate(replica_figures):
            self._sums.update({name: figures[name] for name in _SUMMED})
            self._requests_of_replicas[replica] += figures["requests"]
            self._idle_nanoseconds += longest - figures["nanoseconds"]

    def take(self) -> dict[str, float]:
        """Returns the figures since the last call; {} without an `add`.

        They are `requests`, generated `tokens`, `preemptions` (sequences that vLLM evicted for lack of KV cache and
        computed again), and the least and the most requests of a replica. With several replicas, `seconds/replica_idle`
        is the mean time that a replica waited for the last one.
        """
        requests, figures = self._requests_of_replicas, dict[str, float](self._sums)
        if figures:
            figures |= {"replica_requests_least": min(requests), "replica_requests_most": max(requests)}
            if self._replicas > 1:
                figures["seconds/replica_idle"] = self._idle_nanoseconds / self._replicas / 1e9
        self._clear()
        return figures

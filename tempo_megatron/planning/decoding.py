"""Estimates the seconds of a generate call from the sequences that are live in each of its decoding steps."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from tempo_megatron.config import Numerics
from tempo_megatron.planning import rates
from tempo_megatron.planning.phases import PlannedRun
from tempo_megatron.planning.workload import Workload

TAIL_SEQUENCES = 16
"""With at most this many live sequences, a replica's steps count as the tail of a generate call."""
_AGES = 64
"""The intervals into which the longest response is cut. Ages and times are counted in them."""


@dataclass(frozen=True)
class DecodingTime:
    """The seconds of a generate call."""

    seconds: float
    tail_seconds: float
    """Those with at most TAIL_SEQUENCES live sequences on a replica."""


@dataclass(frozen=True)
class Decoding:
    """Estimates the decoding time of a run under a workload, from the rates of `rates.py`.

    All replicas are assumed to be equally busy. A free slot takes the next request, whose length is independent of its
    place in the queue: what is gained by generating the longest first is not counted.
    """

    run: PlannedRun
    workload: Workload

    @property
    def mean_tokens(self) -> float:
        """The mean number of tokens of a live sequence, its prompt included."""
        squares = self.workload.average(lambda length: length**2)
        return self.workload.prompt + squares / (2 * self.workload.mean)

    @property
    def slots(self) -> int:
        """The number of sequences that a replica decodes at a time."""
        return self.run.engine.concurrent_sequences(self.mean_tokens)

    def time(self, requests: int) -> DecodingTime:
        """Return the time until this many responses are generated. It is infinite if no sequence fits the KV cache."""
        engine, workload, slots = self.run.engine, self.workload, self.slots
        if not requests or not slots:
            return DecodingTime(*[math.inf if requests else 0.0] * 2)
        replica_requests = requests * self.run.layout.replica / self.run.machine.gpus
        live_by_age = _live_by_age(workload.lengths, replica_requests, min(replica_requests, slots))
        interval = max(workload.lengths) / _AGES
        ages = [round(workload.prompt + interval * (age + 0.5)) for age in range(_AGES)]
        cache_bytes = live_by_age @ np.array(list(map(engine.sequence_cache_bytes, ages)), dtype=float)
        live = live_by_age.sum(axis=1)
        seconds = interval * self._step_seconds(live, cache_bytes)
        return DecodingTime(float(seconds.sum()), float(seconds[live <= TAIL_SEQUENCES].sum()))

    def step_seconds(self, live: int, tokens: int) -> float:
        """Return the seconds of one step of `live` sequences, each `tokens` tokens long."""
        cache_bytes = np.array([live * float(self.run.engine.sequence_cache_bytes(tokens))])
        return float(self._step_seconds(np.array([live]), cache_bytes)[0])

    def _step_seconds(self, live: np.ndarray, cache_bytes: np.ndarray) -> np.ndarray:
        """Return the seconds of steps with these numbers of live sequences and bytes of their KV cache, [steps].

        Host and device work side by side. The device reads weights and KV cache, or is bound by matrix products.
        """
        run, weight_bytes = self.run, self.run.engine.weight_bytes
        bandwidth = rates.decode_bytes_per_second(run.machine.gpu_gb)
        # An expert is idle for a token with the probability `idle`, and is read unless all live tokens leave it idle.
        expert_bytes, idle = run.engine.expert_bytes, run.engine.idle_share
        read_bytes, active_bytes = weight_bytes - expert_bytes * idle**live, weight_bytes - expert_bytes * idle
        weights = np.maximum(read_bytes / bandwidth, active_bytes * live / rates.PASS_FLOPS["policy", False])
        all_reduces = 2 * run.settings.num_layers * rates.DECODE_REDUCE_SECONDS * (run.layout.replica > 1)
        device = rates.DECODE_DEVICE_SECONDS + all_reduces + weights + cache_bytes / bandwidth
        host = rates.DECODE_HOST_SECONDS + rates.DECODE_HOST_SEQUENCE_SECONDS * live
        is_exact = run.config.numerics is Numerics.exact
        return np.maximum(device, host) / (rates.EXACT_SPEED["rollout"] if is_exact else 1.0)


@functools.lru_cache(maxsize=64)
def _live_by_age(lengths: tuple[int, ...], requests: float, slots: float) -> np.ndarray:
    """Return the number of live sequences in each interval of time by their age in intervals, [intervals, ages].

    `slots` sequences start together. When one ends, the next starts, until `requests` have started. Sequences are
    fractions of the equally likely lengths, so the result is an expectation.
    """
    ends = np.zeros(_AGES + 1)
    for length in lengths:
        ends[max(1, round(length / max(lengths) * _AGES))] += 1 / len(lengths)
    survivors = 1 - np.cumsum(ends)  # index a: the share that is longer than a intervals
    survival = np.divide(survivors[1:], survivors[:-1], out=np.zeros(_AGES), where=survivors[:-1] > 1e-9)
    live, waiting = np.zeros(_AGES), requests - slots
    live[0] = slots
    rows = []
    while live.sum() > 1e-9 * slots:
        rows.append(live)
        aged = live * survival
        started = min(waiting, live.sum() - aged.sum())
        waiting -= started
        live = np.concatenate([[started], aged[:-1]])
    return np.array(rows)

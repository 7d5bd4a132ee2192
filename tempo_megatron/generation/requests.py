"""What is asked of a generator and what it answers, and the answers of all replicas on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch.distributed as dist


@dataclass(frozen=True)
class Request:
    """One response to sample: its own seed makes it independent of what else is generated with it."""

    prompt_ids: tuple[int, ...]
    seed: int
    max_tokens: int
    temperature: float
    top_p: float


@dataclass(frozen=True)
class Completion:
    """`response_ids` end in the end-of-sequence token unless `finish_reason` is "length"."""

    response_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: str


def gather_completions(
    mine: Mapping[int, Completion], figures: Mapping[str, int], tensor_size: int
) -> tuple[dict[int, Completion], list[Mapping[str, int]]]:
    """The completions of all replicas by the numbers of their requests, and the figures of each replica. Collective.

    Arrays travel rather than tuples: of long responses these are millions of objects. fp32 holds vLLM's log-probs.
    """
    completions = mine.values()
    ids = [token for done in completions for token in done.response_ids]
    log_probs = [value for done in completions for value in done.log_probs]
    packed = (
        list(mine),
        [len(done.response_ids) for done in completions],
        [done.finish_reason for done in completions],
        np.array(ids, dtype=np.int32),
        np.array(log_probs, dtype=np.float32),
        dict(figures),
    )
    parts: list[tuple] = [()] * dist.get_world_size()
    # The tensor ranks of a replica have the same answers; the first one's are read.
    dist.all_gather_object(parts, packed if dist.get_rank() % tensor_size == 0 else ())
    found, counted = {}, []
    for numbers, lengths, reasons, id_array, log_prob_array, counts in parts[::tensor_size]:
        all_ids, all_log_probs, ends = id_array.tolist(), log_prob_array.tolist(), accumulate(lengths)
        for number, length, reason, end in zip(numbers, lengths, reasons, ends, strict=True):
            part = slice(end - length, end)
            found[number] = Completion(tuple(all_ids[part]), tuple(all_log_probs[part]), reason)
        counted.append(counts)
    return found, counted

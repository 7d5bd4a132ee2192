"""Requests to the generator, its completions, and their exchange between replicas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch.distributed as dist

from tempo_megatron.conversion.mapping import ExpertSettings
from tempo_megatron.generation.routes import MissingRoutes, read_routes

PAUSED = "paused"
"""The finish reason of a response that has not ended."""


@dataclass(frozen=True)
class Request:
    """One response to sample. Its own seed makes it independent of the other requests of a call."""

    prompt_ids: tuple[int, ...]
    seed: int
    max_tokens: int
    temperature: float
    top_p: float
    expected_tokens: float | None = field(default=None, compare=False, repr=False)
    """The expected length of the response. It decides when the request is generated, and is no part of its identity."""
    group: int | None = field(default=None, compare=False, repr=False)
    """The number of its group, whose requests may pause. None: the request always finishes."""
    must_finish: bool = field(default=False, compare=False, repr=False)
    """Whether nothing pauses before its group is whole."""
    needs_routes: bool = field(default=False, compare=False, repr=False)
    """Whether the completion has the experts that its tokens were routed to."""


@dataclass(frozen=True)
class Completion:
    """A sampled response."""

    response_ids: tuple[int, ...]
    """The tokens. They end in the end-of-sequence token if `finish_reason` is "stop"."""
    log_probs: tuple[float, ...]
    """The generator's log-probability of each token."""
    finish_reason: str
    """ "stop", "length", or `PAUSED`."""
    routes: np.ndarray | None = field(default=None, compare=False, repr=False)
    """The experts of each token but the last, prompt included: [tokens - 1, layers, experts per token] (`routes`)."""


def sampling_params(request: Request, eos_token_ids: Sequence[int]) -> Any:
    """Returns vLLM's parameters of a request.

    Flat log-probs are lists of numbers, where vLLM's default creates two objects per token.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=1,
        seed=request.seed,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        stop_token_ids=list(eos_token_ids),
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def finished_completion(request: Request, output: Any, experts: ExpertSettings | None) -> Completion:
    """Returns the completion of a finished output of vLLM. Raises MissingRoutes where routes that it needs lack.

    `experts` are those of the engine's model if it returns routes.
    """
    routes = None
    if request.needs_routes:
        if experts is None:
            raise MissingRoutes("the request needs routes, and the engine was not started to return them")
        routes = read_routes(len(request.prompt_ids), output, experts)
    return Completion(tuple(output.token_ids), tuple(output.logprobs.logprobs), output.finish_reason, routes)


def gather_completions(
    local: Mapping[int, Completion], figures: Mapping[str, int], tensor_size: int
) -> tuple[dict[int, Completion], list[Mapping[str, int]]]:
    """Returns the completions of all replicas by request number, and the figures of each replica. Collective.

    Ranks exchange arrays, because tuples of long responses are millions of objects. vLLM's log-probs are fp32.
    """
    # The tensor-parallel ranks of a replica have the same completions, so that each sends a part of them.
    sent = sorted(local)[dist.get_rank() % tensor_size :: tensor_size]
    completions = [local[number] for number in sent]
    ids = [token for completion in completions for token in completion.response_ids]
    log_probs = [value for completion in completions for value in completion.log_probs]
    packed = (
        sent,
        [len(completion.response_ids) for completion in completions],
        [completion.finish_reason for completion in completions],
        np.array(ids, dtype=np.int32),
        np.array(log_probs, dtype=np.float32),
        [completion.routes for completion in completions],
        dict(figures),
    )
    parts: list[tuple] = [()] * dist.get_world_size()
    dist.all_gather_object(parts, packed)
    gathered = {}
    for numbers, lengths, reasons, id_array, log_prob_array, all_routes, _ in parts:
        all_ids, all_log_probs, ends = id_array.tolist(), log_prob_array.tolist(), accumulate(lengths)
        for number, length, reason, routes, end in zip(numbers, lengths, reasons, all_routes, ends, strict=True):
            part = slice(end - length, end)
            gathered[number] = Completion(tuple(all_ids[part]), tuple(all_log_probs[part]), reason, routes)
    replica_figures = [part[-1] for part in parts[::tensor_size]]
    return gathered, replica_figures

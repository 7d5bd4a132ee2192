"""Section tail: milliseconds of an engine step with few live sequences, and the parts of them."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarking import clock, kernels
from benchmarking.planned import planned_run
from benchmarking.report import Figures
from benchmarking.setup import Setup
from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.generation.engine import Generator
from tempo_megatron.generation.requests import Request, sampling_params
from tempo_megatron.planning.decoding import Decoding
from tempo_megatron.planning.workload import Workload

_SETTLING_STEPS = 8
_PROFILED_STEPS = 16


def measure_tail(
    setup: Setup, generator: Generator, live_counts: Sequence[int], context_tokens: int, steps: int
) -> Figures:
    """Milliseconds of one decoding step at each number of live sequences, each `context_tokens` into its response.

    A second series of as many steps measures the host's parts, a third one the device's kernels. "waiting" is the
    time that no part accounts for, mostly the host's wait for the device. Collective.
    """
    run = planned_run(setup)
    figures: Figures = {}
    for live in live_counts:
        planned_ms = None
        if run:
            tokens = context_tokens + _SETTLING_STEPS + steps // 2
            planned_ms = Decoding(run, Workload((tokens,))).step_seconds(live, tokens) * 1e3
        figures[f"{live} live"] = _measure_live(generator, live, context_tokens, steps, setup.settings.vocab_size) | {
            "ms a step that `tempo plan` predicts": planned_ms
        }
    return figures


def response_tokens(steps: int) -> int:
    """An upper bound of the tokens that a sequence generates while `steps` steps are timed, watched and profiled."""
    return 4 * steps + 2 * (_SETTLING_STEPS + _PROFILED_STEPS)


def _measure_live(generator: Generator, live: int, context_tokens: int, steps: int, vocabulary: int) -> Figures:
    with _decoding(generator, live, context_tokens, response_tokens(steps), vocabulary) as step:
        seconds = clock.timed(lambda: _repeat(step, steps))
        with _host_parts(generator) as host_seconds:
            watched_seconds = clock.timed(lambda: _repeat(step, steps))
        device = kernels.kernel_summary(kernels.profile_kernels(lambda: _repeat(step, _PROFILED_STEPS)))
    host = {name: part / steps * 1e3 for name, part in host_seconds.items()}
    return {
        "ms a step": seconds / steps * 1e3,
        "tokens/s": live * steps / seconds,
        "host, ms a step": host | {"waiting": watched_seconds / steps * 1e3 - sum(host.values())},
        "device, ms a step": {
            "kernels": device["kernels"] / _PROFILED_STEPS,
            "running": (device["ms"] - device["ms with none running"]) / _PROFILED_STEPS,
            "by kind": {kind: ms / _PROFILED_STEPS for kind, ms in device["ms by kind"].items()},
            "by name": {name: ms / _PROFILED_STEPS for name, ms in device["ms by name"].items()},
        },
    }


def _repeat(step: Callable[[], Any], steps: int) -> None:
    for _ in range(steps):
        step()


@contextlib.contextmanager
def _decoding(
    generator: Generator, live: int, context_tokens: int, max_tokens: int, vocabulary: int
) -> Iterator[Callable[[], Any]]:
    """Yields the engine's `step` while `live` sequences decode, and aborts them afterwards."""
    from vllm.inputs.engine import tokens_input

    if not generator._loaded:
        generator.load_weights()
    generator._wake("kv_cache")
    engine = generator._llm.llm_engine
    core = engine.engine_core.engine_core
    random = torch.Generator().manual_seed(derive_seed("benchmark", "tail", live))
    prompts = torch.randint(2, vocabulary, (live, context_tokens), generator=random).tolist()
    live_requests = []
    for number, prompt in enumerate(prompts):
        request = Request(tuple(prompt), derive_seed("benchmark", "tail", live, number), max_tokens, 1.0, 1.0)
        name = engine.add_request(
            f"{live}-{number}", tokens_input(prompt), sampling_params(request, generator.eos_token_ids)
        )
        live_requests.append(core.scheduler.requests[name])
    while any(not request.num_output_tokens for request in live_requests):
        engine.step()
    _repeat(engine.step, _SETTLING_STEPS)
    try:
        yield engine.step
    finally:
        engine.abort_request([request.request_id for request in live_requests], internal=True)
        while core.scheduler.has_requests() or core.batch_queue:
            engine.step()
        generator._llm.reset_prefix_cache()


@contextlib.contextmanager
def _host_parts(generator: Generator) -> Iterator[dict[str, float]]:
    """Yields the host's seconds in each part of an engine step. The host does not wait for the device."""
    engine = generator._llm.llm_engine
    core = engine.engine_core.engine_core
    parts = {
        "scheduling": (core.scheduler, "schedule"),
        "model, launching": (core.model_executor, "execute_model"),
        "sampler, launching": (core.model_executor, "sample_tokens"),
        "tokens into requests": (core.scheduler, "update_from_output"),
        "output processing": (engine.output_processor, "process_outputs"),
    }
    seconds: dict[str, float] = Counter()
    with contextlib.ExitStack() as stack:
        for name, (owner, method) in parts.items():
            stack.enter_context(_watched(owner, method, name, seconds))
        yield seconds


@contextlib.contextmanager
def _watched(owner: Any, method: str, name: str, seconds: dict[str, float]) -> Iterator[None]:
    original = getattr(owner, method)

    def timed_call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - start

    setattr(owner, method, timed_call)
    try:
        yield
    finally:
        delattr(owner, method)  # the class's method is visible again

"""A rank of test_generation: two pipeline stages train in fp32, two vLLM replicas generate in DTYPE.

usage: generation_worker.py RECIPE EXPORT DTYPE [key=value ...]
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as dist
from torch import Tensor

from tempo_megatron.config import Numerics, load_config
from tempo_megatron.conversion import hf_files
from tempo_megatron.conversion.rows import TensorRows, assemble_tensors
from tempo_megatron.generation.checksums import expected_checksums
from tempo_megatron.generation.engine import GenerationStopped, Generator
from tempo_megatron.generation.requests import PAUSED, Completion, Request
from tempo_megatron.megatron import weights
from tempo_megatron.megatron.batch import from_sequences
from tempo_megatron.training.run import Run
from tempo_megatron.utils import heartbeat
from tests.runs import build_recorded


def random_states() -> list[object]:
    return [random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()]


def difference(run: Run, requests: Sequence[Request], completions: Sequence[Completion]) -> float:
    """Returns the mean distance between the generator's and the trainer's log-probs of the generator's responses."""
    prompts, responses = [request.prompt_ids for request in requests], [each.response_ids for each in completions]
    batch = from_sequences(prompts, responses)
    trainer = run.models.policy.score(batch, run.models.scores())["log_probs"][batch.response_mask]
    generator = torch.tensor([value for each in completions for value in each.log_probs])
    return float((trainer - generator).abs().mean())


def stops_while_steps_are_slow(generator: Generator, requests: Sequence[Request]) -> None:
    """Checks that a request to stop after one second ends a generation of nine slow steps early."""
    engine: Any = generator._llm.llm_engine
    original_step, begun = engine.step, time.monotonic()

    def slow() -> object:
        time.sleep(0.8)
        return original_step()

    engine.step, generator.should_stop = slow, lambda: time.monotonic() > begun + 1
    try:
        generator.generate(requests)
    except GenerationStopped:
        engine.step, generator.should_stop = original_step, None
    else:
        raise AssertionError("it did not hear the request before its end")


def pauses_and_continues(run: Run, generator: Generator, prompts: Sequence[tuple[int, ...]], *, is_exact: bool) -> None:
    """Checks responses that pause once two short groups are whole. With the same weights the most likely tokens follow
    as without a pause, and the log-probs of sampled ones are the trainer's from the first to the last."""

    def request(number: int, temperature: float, prefix: tuple[int, ...] = ()) -> Request:
        """The last three requests always finish; the others are four groups, of which two are long."""
        group = number // 2 if number < 8 else None
        tokens = 3 if group in (0, 1) else 24
        seed = 50 * len(prefix) + number
        return Request(prompts[number] + prefix, seed, tokens - len(prefix), temperature, 1.0, group=group)

    for temperature in (0.0, 1.0):
        whole = generator.generate([request(number, temperature) for number in range(11)])
        requests = [request(number, temperature) for number in range(11)]
        begun = generator.generate(requests, enough_groups=2)
        assert begun[:4] == whole[:4] and begun[8:] == whole[8:]  # short groups, and those that always finish
        paused = [number for number, each in enumerate(begun) if each.finish_reason == PAUSED]
        assert paused and set(paused) <= {4, 5, 6, 7}
        for number in paused:  # what a paused response has is how the whole one begins
            length = len(begun[number].response_ids)
            assert 0 < length < len(whole[number].response_ids)
            assert begun[number].response_ids == whole[number].response_ids[:length]
            assert begun[number].log_probs == whole[number].log_probs[:length]
        rest = generator.generate([request(number, temperature, begun[number].response_ids) for number in paused])
        continued = [
            Completion(first.response_ids + then.response_ids, first.log_probs + then.log_probs, then.finish_reason)
            for first, then in zip([begun[number] for number in paused], rest, strict=True)
        ]
        assert all(each.finish_reason in ("stop", "length") for each in rest)
        if is_exact and not temperature:
            expected = [whole[number].response_ids for number in paused]
            assert [each.response_ids for each in continued] == expected
        elif is_exact:
            assert difference(run, [requests[number] for number in paused], continued) < 1e-5


def starts_nothing_that_may_pause_after_the_pause(generator: Generator, prompts: Sequence[tuple[int, ...]]) -> None:
    """Checks more requests than the replicas have slots, of which the last ones always finish."""
    requests = [Request(prompts[n % 9], n, 16, 1.0, 1.0, group=0 if n < 180 else None) for n in range(184)]
    completions = generator.generate(requests, enough_groups=0)
    assert sum(not each.response_ids for each in completions) > 8
    assert all(each.finish_reason != PAUSED and each.response_ids for each in completions[180:])
    assert generator.generate(requests[180:]) == completions[180:]


def main(recipe: str, export: str, kind: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    dtype = getattr(torch, kind)
    layout = ("parallel.tensor_model_parallel_size=1", "parallel.pipeline_model_parallel_size=2")
    config = load_config(recipe, [*layout, *overrides])
    run = build_recorded(config)
    weights.BUCKET_BYTES = 2**13  # The vocabulary comes in rows.
    assert any(isinstance(sent, TensorRows) for _, sent in run.models.policy_tensors())
    policy = {name: tensor.clone() for name, tensor in assemble_tensors(run.models.policy_tensors())}
    if dist.get_rank() == 0:
        hf_files.copy_side_files(Path(config.model.hf_path), Path(export))  # The weights come from the trainer.
    dist.barrier()

    def trainers() -> Iterable[tuple[str, Tensor | TensorRows]]:
        return run.models.policy_tensors()

    before = random_states()
    generator = Generator(
        Path(export),
        config.generation,
        tensor_parallel_size=1,
        max_model_len=64,
        dtype=dtype,
        eos_token_ids=[1],
        seed=0,
        numerics=Numerics.default,
        weights=trainers,
    )
    assert generator.replicas == 2
    expected = {name: expected_checksums(name, tensor.to(dtype), 0, 1) for name, tensor in policy.items()}

    requests = [Request(tuple(3 + (7 * i + n) % 50 for i in range(40)), 1000 + n, 8, 1.0, 1.0) for n in range(9)]
    steps = heartbeat.ticks()
    together = generator.generate(requests)
    assert heartbeat.ticks() - steps >= 8  # One tick per engine step, by which the watchdog detects a hang.
    generator.check(expected)
    assert random_states() == before
    figures = generator.take_figures()
    assert figures["requests"] == 9 and figures["tokens"] == sum(len(each.response_ids) for each in together)
    assert 0 <= figures["seconds/replica_idle"] < 60
    assert figures["preemptions"] == 0 and generator.take_figures() == {}
    assert generator.generate(requests[::-1])[::-1] == together
    assert generator.generate(requests[4:5]) == together[4:5]
    reordered = [
        replace(request, expected_tokens=None if number == 7 else float(number))
        for number, request in enumerate(requests)
    ]
    assert generator.generate(reordered) == together
    assert len({each.response_ids for each in together}) > 1
    if dtype is torch.float32:
        assert difference(run, requests, together) < 1e-5

    generator.should_stop = lambda: dist.get_rank() == 1
    try:
        generator.generate(requests)
    except GenerationStopped:
        generator.should_stop = None
    else:
        raise AssertionError("one replica stopped, and not all did")
    assert generator.generate(requests) == together
    stops_while_steps_are_slow(generator, requests)

    prompts = [tuple(3 + (5 * i + n) % 50 for i in range(40)) for n in range(11)]
    pauses_and_continues(run, generator, prompts, is_exact=dtype is torch.float32)
    starts_nothing_that_may_pause_after_the_pause(generator, prompts)
    assert generator.generate(requests) == together

    changed = {name: tensor + 0.5 for name, tensor in policy.items()}
    generator.weights = changed.items
    generator.load_weights()
    others = generator.generate(requests)
    assert others != together
    assert difference(run, requests, others) > 1e-3
    generator.weights = trainers
    generator.load_weights()
    assert generator.generate(requests) == together

    changed = {**policy, "model.norm.weight": policy["model.norm.weight"] + 0.5}
    generator.weights = changed.items
    generator.load_weights()
    try:
        generator.check(expected)
    except RuntimeError as error:
        assert str(error).endswith(": model.norm.weight")
    else:
        raise AssertionError("another weight was not noticed")


if __name__ == "__main__":
    main(*sys.argv[1:])

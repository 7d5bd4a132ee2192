"""A rank of test_generation: one generator sleeps, wakes and is synced, beside a bf16 policy on the same GPU.

usage: generation_worker.py RECIPE [key=value ...]
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tempo_megatron.config import Numerics, load_config
from tempo_megatron.conversion.rows import TensorRows
from tempo_megatron.generation.engine import Generator
from tempo_megatron.generation.requests import PAUSED, Completion, Request
from tempo_megatron.megatron import weights
from tests.runs import build_recorded


def first_log_probs(completions: Sequence[Completion]) -> Tensor:
    return torch.tensor([completion.log_probs[0] for completion in completions])


def free_gib() -> float:
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0] / 2**30


def main(recipe: str, *overrides: str) -> None:
    config = load_config(recipe, overrides)
    run = build_recorded(config)
    weights.BUCKET_BYTES = 2**13  # where ranks are several, the vocabulary comes in rows
    scale = 1.0

    def source() -> Iterable[tuple[str, Tensor | TensorRows]]:
        for name, tensor in run.models.policy_tensors():
            scaled = name == "model.norm.weight" and isinstance(tensor, Tensor)
            yield name, tensor * scale if scaled else tensor

    tensor_size = config.parallel.tensor_model_parallel_size
    generator = Generator(
        Path(config.model.hf_path),
        config.generation,
        tensor_parallel_size=tensor_size,
        max_model_len=64,
        dtype=torch.bfloat16,
        eos_token_ids=[1],
        seed=0,
        numerics=Numerics.default,
        weights=source,
    )
    requests = [Request(tuple(3 + (7 * i + n) % 50 for i in range(40)), 1000 + n, 16, 1.0, 1.0) for n in range(64)]
    before = generator.generate(requests)
    assert generator.take_figures()["tokens"] == sum(len(completion.response_ids) for completion in before)
    awake = free_gib()
    generator.sleep()
    asleep = free_gib()
    assert asleep > awake + 0.5
    second_completions = generator.generate(requests)
    generator.sleep()
    assert free_gib() > asleep - 0.05  # not against the start: what NCCL takes at its first use it keeps
    torch.testing.assert_close(first_log_probs(second_completions), first_log_probs(before), rtol=0, atol=2e-2)
    scale = 3.0
    generator.load_weights()
    assert (first_log_probs(generator.generate(requests)) - first_log_probs(before)).abs().max() > 0.1
    scale = 1.0
    generator.sleep()
    generator.load_weights()
    last = generator.generate(requests)
    torch.testing.assert_close(first_log_probs(last), first_log_probs(before), rtol=0, atol=2e-2)
    pauses_and_continues(generator)


def pauses_and_continues(generator: Generator) -> None:
    """Checks that responses pause under asynchronous scheduling, leave no block behind, and go on after a sync."""

    def request(number: int, prefix: tuple[int, ...] = ()) -> Request:
        prompt = tuple(3 + (5 * i + number) % 50 for i in range(40)) + prefix
        tokens = 2 if number < 8 else 24 - len(prefix)
        return Request(prompt, 100 * len(prefix) + number, tokens, 1.0, 1.0, group=number // 4 if number < 28 else None)

    begun = generator.generate([request(number) for number in range(32)], enough_groups=2)
    paused = [number for number, completion in enumerate(begun) if completion.finish_reason == PAUSED]
    assert paused and set(paused) <= set(range(8, 28))
    assert all(len(completion.log_probs) == len(completion.response_ids) for completion in begun)
    assert any(begun[number].response_ids for number in paused)
    generator.sleep()
    generator.load_weights()
    rest = generator.generate([request(number, begun[number].response_ids) for number in paused])
    for number, completion in zip(paused, rest, strict=True):
        length = len(begun[number].response_ids) + len(completion.response_ids)
        assert completion.finish_reason in ("stop", "length") and length <= 24


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The rank of test_prefix_cache: an engine with a prefix cache, synced to other weights, beside a new engine.

usage: prefix_cache_worker.py MODEL
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import vllm
from safetensors.torch import load_file

from tempo_megatron.config import GenerationConfig, Numerics
from tempo_megatron.generation.engine import Generator, WeightSource
from tempo_megatron.generation.requests import Request

BLOCK = 16
"""Tokens of a cache block. A prompt here has two whole blocks, which its later samples find in the cache."""


def make_engines_with_prefix_cache() -> None:
    """Gives all engines a prefix cache with blocks of BLOCK tokens. On CPUs engines have none by default."""
    original: Any = vllm.LLM

    def with_cache(**settings: Any) -> Any:
        return original(**{**settings, "enable_prefix_caching": True, "block_size": BLOCK})

    vllm.LLM = with_cache


def start_engine(hf_path: Path, source: WeightSource | None, *, returns_routes: bool = False) -> Generator:
    """Returns a new engine in fp32, which reads the source at its first request and at each sync.

    Without a source it has the weights of the model's files.
    """
    return Generator(
        hf_path,
        GenerationConfig(max_num_seqs=4, kv_cache_gib=0.05),
        tensor_parallel_size=1,
        max_model_len=64,
        dtype=torch.float32,
        eos_token_ids=[1],
        seed=0,
        numerics=Numerics.default,
        weights=source,
        returns_routes=returns_routes,
    )


def cached_blocks(generator: Generator) -> int:
    scheduler = generator._llm.llm_engine.engine_core.engine_core.scheduler
    return len(scheduler.kv_cache_manager.block_pool.cached_block_hash_to_block)


def main(model: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    make_engines_with_prefix_cache()
    first = load_file(Path(model) / "model.safetensors")
    noise = torch.Generator().manual_seed(0)
    second = {name: tensor + 0.05 * torch.randn(tensor.shape, generator=noise) for name, tensor in first.items()}
    prompts = [tuple(3 + (7 * i + n) % 50 for i in range(2 * BLOCK + 3)) for n in range(4)]
    requests = [Request(prompts[n % 4], 1000 + n, 8, 1.0, 1.0) for n in range(16)]

    synced = dict(first)
    generator = start_engine(Path(model), synced.items)
    before = generator.generate(requests)
    assert cached_blocks(generator) >= 8
    synced.update(second)
    generator.load_weights()
    assert cached_blocks(generator) == 0
    after = generator.generate(requests)
    expected = start_engine(Path(model), second.items).generate(requests)
    assert after == expected and after != before

    # Blocks of the first weights would change responses to the same prompts, so that the comparison above sees them.
    synced.update(first)
    generator.load_weights()
    generator.generate(requests)
    synced.update(second)
    generator._llm.reset_prefix_cache = lambda: True
    generator.load_weights()
    assert cached_blocks(generator) >= 8
    assert generator.generate(requests) != expected


if __name__ == "__main__":
    main(*sys.argv[1:])

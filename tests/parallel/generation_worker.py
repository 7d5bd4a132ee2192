"""A rank of test_generation: two pipeline stages train, two vLLM replicas generate, in bf16 where the trainer is fp32.

usage: generation_worker.py RECIPE EXPORT [key=value ...]
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy
import torch
import torch.distributed as dist

from tempo_megatron.config import load
from tempo_megatron.generation.checksums import expected_checksums
from tempo_megatron.generation.engine import Generator, Request
from tempo_megatron.megatron import weights
from tempo_megatron.run import Run
from tests.parallel.layout_worker import Recorded

DTYPE = torch.bfloat16


def random_states() -> list[object]:
    return [random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()]


def main(recipe: str, export: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    layout = ("parallel.tensor_model_parallel_size=1", "parallel.pipeline_model_parallel_size=2")
    config = load(recipe, [*layout, *overrides])
    run = Run(config, generator=Recorded())
    policy = {name: tensor.clone() for name, tensor in weights.export(run.policy.module, run.entries, run.topology)}
    run._export(Path(export))
    dist.barrier()

    before = random_states()
    generator = Generator(
        Path(export),
        config.generation,
        tensor_parallel_size=1,
        max_model_len=32,
        dtype=DTYPE,
        eos_token_ids=[1],
        seed=0,
    )
    assert generator.replicas == 2
    expected = {name: expected_checksums(name, tensor.to(DTYPE), 0, 1) for name, tensor in policy.items()}
    generator.check(expected)

    requests = [Request((2, 10 + n, 20 + n, 30), 1000 + n, 8, 1.0, 1.0) for n in range(9)]
    together = generator.generate(requests)
    assert random_states() == before
    assert generator.generate(requests[::-1])[::-1] == together
    assert generator.generate(requests[4:5]) == together[4:5]
    assert len({done.response_ids for done in together}) > 1

    changed = {name: tensor + 0.5 for name, tensor in policy.items()}
    generator.load_weights(changed.items())
    assert generator.generate(requests) != together
    generator.load_weights(weights.export(run.policy.module, run.entries, run.topology))
    assert generator.generate(requests) == together

    changed = {**policy, "model.norm.weight": policy["model.norm.weight"] + 0.5}
    generator.load_weights(changed.items())
    try:
        generator.check(expected)
    except RuntimeError as error:
        assert str(error).endswith(": model.norm.weight")
    else:
        raise AssertionError("another weight was not noticed")


if __name__ == "__main__":
    main(*sys.argv[1:])

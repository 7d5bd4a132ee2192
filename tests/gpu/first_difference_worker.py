"""A rank of test_numerics: `tempo doctor --numerics` with the policy's SwiGLU or with another one.

usage: first_difference_worker.py DIRECTORY shared|other
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from tempo_megatron.config import load_config
from tempo_megatron.megatron.layers import SharedSwiGLU
from tempo_megatron.training.numerics_check import compare_numerics


def main(directory: str, swiglu: str) -> None:
    config = load_config(
        None,
        [
            f"run_dir={directory}/run",
            f"model.hf_path={directory}",
            "model.precision=bf16",
            "numerics=exact",
            "data.max_prompt_tokens=512",
            "generation.max_response_tokens=64",
            "policy.micro_batch_tokens=1024",
            "generation.gpu_memory_utilization=0.1",
            "generation.kv_cache_gib=0.5",
        ],
    )
    if swiglu == "other":
        SharedSwiGLU.forward = rounded_once  # type: ignore[method-assign]
    lines = compare_numerics(config)
    print("\n".join(lines) or "equal", flush=True)
    assert len(lines) == (3 if swiglu == "other" else 0)
    assert all("layer 0, SwiGLU: " in line for line in lines)


def rounded_once(activation: SharedSwiGLU, gate_and_up: Tensor) -> Tensor:
    gate, up = gate_and_up.chunk(2, -1)
    return (torch.nn.functional.silu(gate.float()) * up.float()).to(gate.dtype)


if __name__ == "__main__":
    main(*sys.argv[1:])

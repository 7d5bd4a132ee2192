"""The rank of test_fp8_recompute: loss and gradients with each `model.recompute`, by the calls that FP8 makes.

CPUs have no Transformer Engine. The stand-in for its `checkpoint` distinguishes callables as that does: a module
without layers of its own gets torch's checkpoint, which takes no keyword arguments for the module. The layers compute
in fp32.

usage: fp8_recompute_worker.py MODELS OUT MODEL; MODELS is a directory of model directories
"""

from __future__ import annotations

import copy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tempo_megatron.config import Recompute, load_config
from tempo_megatron.megatron import model, topology
from tests.parallel.family_worker import leave_groups, measured

recomputed: list[str] = []
"""The class or function names of what the last case recomputes, in the order of the forward pass."""


def stand_in(function: Any, distribute: bool, tracker: Any, group: Any, *inputs: Any, **options: Any) -> Any:
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear

    is_module = isinstance(function, torch.nn.Module)
    recomputed.append(type(function).__name__ if is_module else function.__name__)
    if is_module and not any(isinstance(module, ColumnParallelLinear) for module in function.modules()):
        return checkpoint(function, *inputs, use_reentrant=True, **options)
    return checkpoint(partial(function, **options), *inputs, use_reentrant=True, preserve_rng_state=False)


def declare_fp8(decoder: Any) -> None:
    """Lets a decoder and its layers recompute as under FP8. The modules inside layers have no FP8 on CPUs."""
    from megatron.core.transformer.moe.moe_layer import MoELayer

    for module in [*decoder.layers, *(m for m in decoder.modules() if isinstance(m, MoELayer)), decoder]:
        module.config = copy.copy(module.config)
        module.config.fp8 = "hybrid"


def main(models: str, out: str, name: str) -> None:
    torch.set_num_threads(1)
    build = model.build_model

    def build_with_fp8(*arguments: Any, **options: Any) -> list[Any]:
        chunks = build(*arguments, **options)
        from megatron.core import recompute
        from megatron.core.extensions import transformer_engine
        from megatron.core.transformer.moe import moe_layer

        for module in (recompute, transformer_engine, moe_layer):
            module.te_checkpoint = stand_in
        for chunk in chunks:
            declare_fp8(chunk.decoder)
        return chunks

    model.build_model = build_with_fp8
    results: dict[str, tuple[dict[str, Tensor], list[str]]] = {}
    for kind in Recompute:
        config = load_config(
            None, [f"model.recompute={kind}", "policy.micro_batch_tokens=2048", "model.precision=fp32"]
        )
        place = topology.initialize(config.parallel, seed=0)
        recomputed.clear()
        tensors = measured("policy", Path(models) / name, config, place)
        results[kind.value] = tensors, list(recomputed)
        leave_groups()
    torch.save(results, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

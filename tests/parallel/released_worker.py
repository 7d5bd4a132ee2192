"""A rank of the test of deleted models: a step of a policy with experts, and what is left of its experts after it.

usage: released_worker.py MODEL
"""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

from tempo_megatron.config import load_config
from tempo_megatron.megatron import model, topology
from tests.parallel.family_worker import measured


def main(hf_path: str) -> None:
    torch.set_num_threads(1)
    config = load_config(None, ["policy.router_replay=generator"])
    references: list[weakref.ref[torch.nn.Module]] = []
    build = model.build_model

    def build_referenced(*arguments: Any, **options: Any) -> Any:
        chunks = build(*arguments, **options)
        layers = [layer for chunk in chunks for layer in chunk.decoder.layers]
        references.extend(weakref.ref(layer.mlp) for layer in layers if hasattr(layer, "mlp"))
        return chunks

    model.build_model = build_referenced
    measured("policy", Path(hf_path), config, topology.initialize(config.parallel, seed=0))
    RotaryEmbedding.forward.cache_clear()
    gc.collect()
    alive = sum(reference() is not None for reference in references)
    if not references or alive:
        raise AssertionError(f"{alive} of {len(references)} layers of experts are alive")


if __name__ == "__main__":
    main(sys.argv[1])

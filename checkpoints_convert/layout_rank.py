"""One rank of `verify --tensor-parallel N ...`: loads its part of a checkpoint, exports, compares.

usage: torchrun ... -m checkpoints_convert.layout_rank HF CHECKPOINT ROLE TP PP EP OUT

Rank 0 writes the differences to the JSON file OUT.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from checkpoints_convert.verify import compare_tensors
from tempo_megatron.config import Config, Precision
from tempo_megatron.conversion.mapping import OUTPUT_BIAS, Role
from tempo_megatron.conversion.rows import assemble_tensors
from tempo_megatron.conversion.source import open_source
from tempo_megatron.megatron import model, topology, weights
from tempo_megatron.megatron.checkpointing import dist_checkpoint
from tempo_megatron.megatron.checkpointing import format as checkpoint_format


def main(hf: Path, checkpoint: Path, role: Role, sizes: Sequence[int], out: Path) -> None:
    read = checkpoint_format.CheckpointReader(checkpoint, role)
    config = Config()
    tensor, pipeline, expert = sizes
    config.parallel.tensor_model_parallel_size = tensor
    config.parallel.pipeline_model_parallel_size = pipeline
    config.parallel.expert_model_parallel_size = expert
    is_bf16 = all(description.dtype is torch.bfloat16 for description in read.descriptions.values())
    config.model.precision = Precision.bf16 if is_bf16 else Precision.fp32
    rank_topology = topology.initialize(config.parallel, seed=0)
    source = open_source(hf, role)
    chunks = model.build_model(role, source.settings, config, rank_topology, head_bias=OUTPUT_BIAS in read.descriptions)
    dist_checkpoint.load_weights(checkpoint, role, chunks)
    exported = assemble_tensors(weights.export_hf_weights(chunks, source.mappings, rank_topology))
    differences = list(compare_tensors(hf, source, exported))
    if rank_topology.rank == 0:
        out.write_text(json.dumps(differences))
    topology.shutdown()


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        sys.argv[3],  # type: ignore[arg-type]
        [int(size) for size in sys.argv[4:7]],
        Path(sys.argv[7]),
    )

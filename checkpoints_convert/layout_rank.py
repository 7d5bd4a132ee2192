"""One rank of `verify --tensor-parallel N --pipeline-parallel M`: load its part of a checkpoint, export, compare.

usage: torchrun ... -m checkpoints_convert.layout_rank HF CHECKPOINT ROLE TP PP ANSWER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from checkpoints_convert.verify import compare
from tempo_megatron.config import Config, Precision
from tempo_megatron.conversion.mapping import OUTPUT_BIAS, Role
from tempo_megatron.conversion.rows import whole
from tempo_megatron.conversion.source import open_source
from tempo_megatron.megatron import model, topology, weights
from tempo_megatron.megatron.checkpointing import dist_checkpoint
from tempo_megatron.megatron.checkpointing import format as checkpoint_format


def main(hf: Path, saved: Path, role: Role, tensor: int, pipeline: int, answer: Path) -> None:
    read = checkpoint_format.CheckpointReader(saved, role)
    config = Config()
    config.parallel.tensor_model_parallel_size = tensor
    config.parallel.pipeline_model_parallel_size = pipeline
    narrow = all(described.dtype is torch.bfloat16 for described in read.descriptions.values())
    config.model.precision = Precision.bf16 if narrow else Precision.fp32
    place = topology.initialize(config.parallel, seed=0)
    source = open_source(hf, role)
    module = model.build_model(role, source.settings, config, place, head_bias=OUTPUT_BIAS in read.descriptions)
    dist_checkpoint.load_weights(saved, role, module)
    differing = list(compare(hf, source, whole(weights.export_hf_weights(module, source.entries, place))))
    if place.rank == 0:
        answer.write_text(json.dumps(differing))
    topology.shutdown()


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        sys.argv[3],  # type: ignore[arg-type]
        int(sys.argv[4]),
        int(sys.argv[5]),
        Path(sys.argv[6]),
    )

"""A rank of test_logits: logits of several models under one layout.

usage: logits_worker.py MODELS OUT TP PP, where MODELS is a directory of model directories
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from checkpoints_convert import decoder, hf_files
from checkpoints_convert.families import family
from tempo_megatron.config import Config, OptimizerConfig, Precision
from tempo_megatron.megatron import model, topology, weights
from tempo_megatron.megatron.batch import Batch, from_sequences
from tempo_megatron.megatron.trainer import Rows, Trainer

LENGTHS = (96, 41)


def sequences(vocab_size: int) -> list[list[int]]:
    random = torch.Generator().manual_seed(1)
    return [torch.randint(vocab_size, (length,), generator=random).tolist() for length in LENGTHS]


def main(models: str, out: str, tensor_size: str, pipeline_size: str) -> None:
    torch.set_num_threads(1)
    config = Config()
    config.model.precision = Precision.fp32
    config.parallel.tensor_model_parallel_size = int(tensor_size)
    config.parallel.pipeline_model_parallel_size = int(pipeline_size)
    place = topology.initialize(config.parallel, seed=0)

    def whole(logits: torch.Tensor, _: Batch) -> Rows:
        parts = [torch.empty_like(logits) for _ in range(place.tensor_size)]
        dist.all_gather(parts, logits.contiguous(), group=place.tensor_group)
        return {"logits": torch.cat(parts, -1)}

    found = {}
    for directory in sorted(Path(models).iterdir()):
        described = hf_files.read_config(directory)
        settings = family(described).settings(described)
        module = model.build("policy", settings, config, place)
        weights.load(module, decoder.policy(settings), hf_files.Reader(directory), place, critic=False)
        trainer = Trainer(module, OptimizerConfig(), config, place, micro_batch=1)
        batch = from_sequences(sequences(settings.vocab_size), [[] for _ in LENGTHS])
        found[directory.name] = trainer.score(batch, whole)["logits"][..., : settings.vocab_size]
    if place.rank == 0:
        torch.save(found, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

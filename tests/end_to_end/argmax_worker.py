"""A rank of test_smollm2: computes the most probable next token at every position of a batch by several models.

usage: argmax_worker.py SEQUENCES OUT PP DIRECTORY ..., each a Hugging Face directory or a checkpoint of a policy
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tempo_megatron.config import Config, Precision
from tempo_megatron.conversion import decoder, hf_config, hf_files
from tempo_megatron.megatron import model, topology, weights
from tempo_megatron.megatron.batch import from_sequences
from tempo_megatron.megatron.checkpointing import dist_checkpoint
from tempo_megatron.megatron.trainer import MegatronModel, Score


def main(sequences: str, out: str, pipeline_size: str, *directories: str) -> None:
    torch.set_num_threads(1)
    config = Config()
    config.model.precision = Precision.fp32
    config.parallel.pipeline_model_parallel_size = int(pipeline_size)
    place = topology.initialize(config.parallel, seed=0)
    rows = torch.load(sequences)
    batch = from_sequences(rows, [[] for _ in rows])
    next_tokens = {}
    for directory in map(Path, directories):
        saved = (directory / "policy").is_dir()
        described = hf_files.read_config(directory / "huggingface" if saved else directory)
        settings = hf_config.backbone_settings(described)
        chunks = model.build_model("policy", settings, config, place)
        if saved:
            dist_checkpoint.load_weights(directory, "policy", chunks)
        else:
            weights.load_hf_weights(
                chunks, decoder.policy_mappings(settings), hf_files.HfReader(directory), place, critic=False
            )
        reader = MegatronModel(chunks, config, place, micro_batch_tokens=0)
        cut = settings.vocab_size
        score = Score(
            lambda hidden, _, weight, cut=cut: {"next": (hidden @ weight[:cut].t()).argmax(-1)}, about_next=False
        )  # type: ignore
        next_tokens[str(directory)] = reader.score(batch, score)["next"].long()
    if place.rank == 0:
        torch.save(next_tokens, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

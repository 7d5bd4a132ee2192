"""A rank of test_logits: saves the logits and values of several models under one parallel layout.

usage: logits_worker.py MODELS OUT TP PP DTYPE [key=value ...]

MODELS is a directory of model directories. One called `NAME.critic` is a checkpoint with a critic of the model NAME.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tempo_megatron.config import OptimizerConfig, Precision, load_config
from tempo_megatron.conversion import decoder, hf_config, hf_files
from tempo_megatron.megatron import cpu, model, topology, weights
from tempo_megatron.megatron.batch import from_sequences
from tempo_megatron.megatron.checkpointing import dist_checkpoint
from tempo_megatron.megatron.trainer import NamedTensors, Score, Trainer

LENGTHS = (96, 41)


def sequences(vocab_size: int) -> list[list[int]]:
    random = torch.Generator().manual_seed(1)
    return [torch.randint(vocab_size, (length,), generator=random).tolist() for length in LENGTHS]


def visible_positions(chunks: list[Any], length: int) -> dict[int, list[int]]:
    """Return the positions that the last token sees, by the Hugging Face index of this rank's layers."""
    from megatron.core.packed_seq_params import PackedSeqParams

    positions = {}
    for layer in itertools.chain(*(chunk.decoder.layers for chunk in chunks)):
        if not hasattr(layer.self_attention, "core_attention"):
            continue
        attention = layer.self_attention
        core = attention.core_attention
        heads, groups = attention.num_attention_heads_per_partition, attention.num_query_groups_per_partition
        channels = attention.hidden_size_per_attention_head
        query, key = torch.zeros(length, heads, channels), torch.zeros(length, groups, channels)
        core.angles = torch.zeros(length, 1, 1, channels)
        one_sequence = PackedSeqParams(cu_seqlens_q=torch.tensor([0, length]))
        attention_weights = []
        for position in range(length):
            value = torch.zeros(length, groups, channels)
            value[position] = 1.0
            output = core(query, key, value, None, packed_seq_params=one_sequence)
            attention_weights.append(float(output[-1].sum()))
        index = (layer.layer_number - 1) // 2
        positions[index] = [position for position, weight in enumerate(attention_weights) if weight > 0]
    return positions


def main(models: str, out: str, tensor_size: str, pipeline_size: str, dtype: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    config = load_config(None, overrides)
    config.model.precision = Precision(dtype)
    config.parallel.tensor_model_parallel_size = int(tensor_size)
    config.parallel.pipeline_model_parallel_size = int(pipeline_size)
    rank_topology = topology.initialize(config.parallel, seed=0)

    def full_logits(hidden: torch.Tensor, _: torch.Tensor, weight: torch.Tensor) -> NamedTensors:
        logits = hidden.float() @ weight.float().t()
        shards = [torch.empty_like(logits) for _ in range(rank_topology.tensor_size)]
        dist.all_gather(shards, logits, group=rank_topology.tensor_group)
        return {"output": torch.cat(shards, -1)}

    outputs: dict[str, Any] = {}
    for directory in sorted(Path(models).iterdir()):
        critic = directory.suffix == ".critic"
        hf_settings = hf_files.read_config(directory / "huggingface" if critic else directory)
        settings = hf_config.backbone_settings(hf_settings)
        chunks = model.build_model("critic" if critic else "policy", settings, config, rank_topology)
        if critic:
            dist_checkpoint.load_weights(directory, "critic", chunks)
        else:
            weights.load_hf_weights(
                chunks, decoder.policy_mappings(settings), hf_files.HfReader(directory), rank_topology, critic=False
            )
            visible_by_rank: list[dict[int, list[int]]] = [{}] * rank_topology.world_size
            with cpu.accelerator_names():
                on_cpu = dtype == "fp32" and rank_topology.device.type == "cpu"
                visible = visible_positions(chunks, 40) if on_cpu else {}
            dist.all_gather_object(visible_by_rank, visible)
            outputs[f"{directory.name} seen"] = {
                layer: positions for visible in visible_by_rank for layer, positions in visible.items()
            }
        trainer = Trainer(chunks, OptimizerConfig(), config, rank_topology, micro_batch_tokens=0)
        batch = from_sequences(sequences(settings.vocab_size), [[] for _ in LENGTHS])
        read = (lambda values, _, __: {"output": values}) if critic else full_logits
        scores = trainer.score(batch, Score(read, about_next=False))
        outputs[directory.name] = scores["output"][..., : settings.vocab_size]
    if rank_topology.rank == 0:
        torch.save(outputs, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A rank of test_logits: outputs of several models under one layout.

usage: logits_worker.py MODELS OUT TP PP DTYPE; MODELS is a directory of model directories, and one called `NAME.critic`
is a checkpoint with a critic of the model NAME.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tempo_megatron.config import Config, OptimizerConfig, Precision
from tempo_megatron.conversion import decoder, hf_config, hf_files
from tempo_megatron.megatron import cpu, model, topology, weights
from tempo_megatron.megatron.batch import from_sequences
from tempo_megatron.megatron.checkpointing import dist_checkpoint
from tempo_megatron.megatron.trainer import NamedTensors, Score, Trainer

LENGTHS = (96, 41)


def sequences(vocab_size: int) -> list[list[int]]:
    random = torch.Generator().manual_seed(1)
    return [torch.randint(vocab_size, (length,), generator=random).tolist() for length in LENGTHS]


def seen_from_last_token(module: Any, length: int) -> dict[int, list[int]]:
    """Returns the positions that the last token attends to, by Hugging Face number of each layer on this rank."""
    from megatron.core.packed_seq_params import PackedSeqParams

    seen = {}
    for layer in module.decoder.layers:
        if not hasattr(layer.self_attention, "core_attention"):
            continue
        core = layer.self_attention.core_attention
        around = layer.self_attention
        heads, groups = around.num_attention_heads_per_partition, around.num_query_groups_per_partition
        channels = around.hidden_size_per_attention_head
        query, key = torch.zeros(length, heads, channels), torch.zeros(length, groups, channels)
        core.angles = torch.zeros(length, 1, 1, channels)
        whole = PackedSeqParams(cu_seqlens_q=torch.tensor([0, length]))
        weights_of_last = []
        for position in range(length):
            value = torch.zeros(length, groups, channels)
            value[position] = 1.0
            output = core(query, key, value, None, packed_seq_params=whole)
            weights_of_last.append(float(output[-1].sum()))
        number = (layer.layer_number - 1) // 2
        seen[number] = [position for position, weight in enumerate(weights_of_last) if weight > 0]
    return seen


def main(models: str, out: str, tensor_size: str, pipeline_size: str, dtype: str) -> None:
    torch.set_num_threads(1)
    config = Config()
    config.model.precision = Precision(dtype)
    config.parallel.tensor_model_parallel_size = int(tensor_size)
    config.parallel.pipeline_model_parallel_size = int(pipeline_size)
    place = topology.initialize(config.parallel, seed=0)

    def whole(hidden: torch.Tensor, _: torch.Tensor, weight: torch.Tensor) -> NamedTensors:
        logits = hidden.float() @ weight.float().t()
        parts = [torch.empty_like(logits) for _ in range(place.tensor_size)]
        dist.all_gather(parts, logits, group=place.tensor_group)
        return {"output": torch.cat(parts, -1)}

    outputs: dict[str, Any] = {}
    for directory in sorted(Path(models).iterdir()):
        critic = directory.suffix == ".critic"
        described = hf_files.read_config(directory / "huggingface" if critic else directory)
        settings = hf_config.backbone_settings(described)
        module = model.build_model("critic" if critic else "policy", settings, config, place)
        if critic:
            dist_checkpoint.load_weights(directory, "critic", module)
        else:
            weights.load_hf_weights(module, decoder.policy(settings), hf_files.HfReader(directory), place, critic=False)
            seen: list[dict[int, list[int]]] = [{}] * place.world_size
            with cpu.accelerator_names():
                local = dtype == "fp32" and place.device.type == "cpu"
                local_seen = seen_from_last_token(module, 40) if local else {}
            dist.all_gather_object(seen, local_seen)
            outputs[f"{directory.name} seen"] = {number: part[number] for part in seen for number in part}
        trainer = Trainer(module, OptimizerConfig(), config, place, micro_batch_tokens=0)
        batch = from_sequences(sequences(settings.vocab_size), [[] for _ in LENGTHS])
        read = (lambda values, _, __: {"output": values}) if critic else whole
        outputs[directory.name] = trainer.score(batch, Score(read, about_next=False))["output"][
            ..., : settings.vocab_size
        ]
    if place.rank == 0:
        torch.save(outputs, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

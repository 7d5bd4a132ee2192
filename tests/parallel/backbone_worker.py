"""A rank of the test of a copied backbone: a policy's weights go to a critic whose stages have other layers.

usage: backbone_worker.py MODEL OUT [key=value ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tempo_megatron.config import load_config
from tempo_megatron.conversion import decoder, hf_config, hf_files
from tempo_megatron.conversion.mapping import OUTPUT_LAYER
from tempo_megatron.conversion.rows import assemble_tensors
from tempo_megatron.megatron import model, topology, weights


def main(hf_path: str, out: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    weights.BUCKET_BYTES = 2**16  # Several buckets, and the vocabulary in rows.
    config = load_config(None, ["model.precision=fp32", *overrides])
    place = topology.initialize(config.parallel, seed=0)
    settings = hf_config.backbone_settings(hf_files.read_config(Path(hf_path)))
    entries = decoder.policy_mappings(settings)
    policy, critic = (model.build_model(role, settings, config, place) for role in ("policy", "critic"))
    weights.load_hf_weights(policy, entries, hf_files.HfReader(Path(hf_path)), place, critic=False)
    with torch.no_grad():
        for name, parameter in weights.canonical_parameters(critic).items():
            if name != OUTPUT_LAYER:
                parameter.fill_(torch.nan)
    weights.copy_backbone(policy, critic, entries, place)
    mappings = decoder.critic_mappings(settings, "score", bias=False)
    exported = {
        name: tensor.clone() for name, tensor in assemble_tensors(weights.export_hf_weights(critic, mappings, place))
    }
    layers: list[tuple[list[int], list[int]]] = [([], [])] * place.world_size
    of_rank = tuple([len(chunk.decoder.layers) // 2 for chunk in chunks] for chunks in (policy, critic))
    torch.distributed.all_gather_object(layers, of_rank)
    if place.rank == 0:
        torch.save({"critic": exported, "layers": layers}, out)
    topology.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])

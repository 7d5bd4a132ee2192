"""A rank of test_export: one exporter sends a model's weights before and after they change.

usage: export_worker.py MODEL OUT [key=value ...]
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from tempo_megatron.config import load_config
from tempo_megatron.conversion import decoder, hf_config, hf_files
from tempo_megatron.conversion.rows import TensorRows, assemble_tensors
from tempo_megatron.megatron import model, topology, weights


def copied(exported: Iterable[tuple[str, Tensor | TensorRows]]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in assemble_tensors(exported)}


def main(hf_path: str, out: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    weights.BUCKET_BYTES = 2**14  # Several buckets.
    config = load_config(None, ["model.precision=fp32", *overrides])
    place = topology.initialize(config.parallel, seed=0)
    settings = hf_config.backbone_settings(hf_files.read_config(Path(hf_path)))
    entries, reader = decoder.policy_mappings(settings), hf_files.HfReader(Path(hf_path))
    chunks = model.build_model("policy", settings, config, place)
    weights.load_hf_weights(chunks, entries, reader, place, critic=False)
    exporter = weights.WeightExporter(chunks, entries, place)
    before = copied(exporter.export())

    doubled = {name: 2 * reader(name) for name in before}
    for parameter in weights.canonical_parameters(chunks).values():
        parameter.data = torch.empty_like(parameter)  # An optimizer moves parameters to its buffer.
    weights.load_hf_weights(chunks, entries, doubled.__getitem__, place, critic=False)

    def refuse(*_: object) -> None:
        raise AssertionError("buckets are cut once")

    weights._buckets = weights._locations = weights.canonical_parameters = refuse  # type: ignore[assignment]
    after = copied(exporter.export())
    if place.rank == 0:
        torch.save({"before": before, "after": after}, out)
    topology.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])

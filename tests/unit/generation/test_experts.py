"""Experts in vLLM's live parameters, as each tensor-parallel rank holds them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tempo_megatron.generation.checksums import checksum, expected_checksums
from tempo_megatron.generation.experts import LiveExperts, expert_tensors, is_expert

EXPERTS, WIDTH, HIDDEN = 3, 4, 5
PATH = "model.layers.1.mlp.experts"
HOLDER = f"{PATH}.routed_experts"


def projections() -> dict[str, Tensor]:
    """Returns whole random projections by their Hugging Face names, gate, up and down of one expert after another."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"gate": (WIDTH, HIDDEN), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
    return {
        f"{PATH}.{expert}.{name}_proj.weight": torch.randn(shape, generator=generator)
        for expert in range(EXPERTS)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 2), (1, 2)])
def test_each_rank_holds_its_part_of_every_projection(rank: int, ranks: int) -> None:
    """Gate and up projections are one tensor in vLLM. A rank has its rows of both, and its columns of the down
    projection. The checksum of each part is the expected one, and one changed element changes it."""
    layer = SimpleNamespace(
        w13_weight=torch.zeros(EXPERTS, 2 * WIDTH // ranks, HIDDEN),
        w2_weight=torch.zeros(EXPERTS, HIDDEN, WIDTH // ranks),
    )
    live = LiveExperts(SimpleNamespace(get_submodule={HOLDER: layer}.__getitem__), rank, ranks)
    whole = projections()
    for name, tensor in whole.items():
        assert is_expert(name) and not live.complete_parameters()
        live.load(name, tensor)
    assert live.complete_parameters() == {f"{HOLDER}.w13_weight", f"{HOLDER}.w2_weight"}
    second = [whole[f"{PATH}.1.{name}_proj.weight"] for name in ("gate", "up", "down")]
    rows = torch.cat([second[0].chunk(ranks)[rank], second[1].chunk(ranks)[rank]])
    assert torch.equal(layer.w13_weight[1], rows)
    assert torch.equal(layer.w2_weight[1], second[2].chunk(ranks, 1)[rank])
    held = dict(expert_tensors(HOLDER, layer))
    assert held.keys() == whole.keys()
    for name, part in held.items():
        assert torch.equal(checksum(part), expected_checksums(name, whole[name], rank, ranks))
        part[0, 0] += 1
        assert not torch.equal(checksum(part), expected_checksums(name, whole[name], rank, ranks))


@pytest.mark.parametrize("name", ["model.layers.0.mlp.gate.weight", "model.layers.0.mlp.up_proj.weight"])
def test_routers_and_dense_mlps_are_no_experts(name: str) -> None:
    """vLLM's own loaders write them."""
    assert not is_expert(name)

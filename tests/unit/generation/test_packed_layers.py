"""Weights of linear layers that vLLM has packed for a CPU are compared with the trainer's, whichever CPU runs this."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vllm.distributed import parallel_state
from vllm.model_executor.layers import linear

from tempo_megatron.generation.checksums import checksum, compare, expected_checksums

HIDDEN, WIDTH, EXPERTS, CHANNELS = 6, 8, 4, 2
RANK, RANKS = 1, 2
SHAPES = {
    "self_attn.q_proj.weight": (2 * CHANNELS, HIDDEN),
    "self_attn.k_proj.weight": (2 * CHANNELS, HIDDEN),
    "self_attn.v_proj.weight": (2 * CHANNELS, HIDDEN),
    "self_attn.q_proj.bias": (2 * CHANNELS,),
    "self_attn.k_proj.bias": (2 * CHANNELS,),
    "self_attn.v_proj.bias": (2 * CHANNELS,),
    "self_attn.o_proj.weight": (HIDDEN, 2 * CHANNELS),
    "mlp.gate_proj.weight": (WIDTH, HIDDEN),
    "mlp.up_proj.weight": (WIDTH, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, WIDTH),
    "mlp.gate.weight": (EXPERTS, HIDDEN),
}


def vllm_layers() -> dict[str, Any]:
    """Returns one of vLLM's linear layers of each kind, as the second of two tensor-parallel ranks has them."""
    options = {"params_dtype": torch.float32}
    return {
        "self_attn.qkv_proj": linear.QKVParallelLinear(HIDDEN, CHANNELS, 2, 2, bias=True, **options),
        "self_attn.o_proj": linear.RowParallelLinear(2 * CHANNELS, HIDDEN, bias=False, **options),
        "mlp.gate_up_proj": linear.MergedColumnParallelLinear(HIDDEN, [WIDTH, WIDTH], bias=False, **options),
        "mlp.down_proj": linear.RowParallelLinear(WIDTH, HIDDEN, bias=False, **options),
        "mlp.gate": linear.ReplicatedLinear(HIDDEN, EXPERTS, bias=False, **options),
    }


class Packed:
    """Stands in for vLLM's product of a layer on a CPU that packs: the layer itself has no weight any more."""

    def __init__(self, layer: Any) -> None:
        self._weight = layer.weight.detach()
        layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)

    def apply(self, layer: Any, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        return nn.functional.linear(rows, self._weight, bias)


def packed_model(layers: dict[str, Any], whole: dict[str, Tensor]) -> nn.Module:
    """Returns a model whose layers have this rank's parts of the whole tensors, packed."""
    parts = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    model = nn.ModuleDict({"self_attn": nn.ModuleDict(), "mlp": nn.ModuleDict()})
    for path, layer in layers.items():
        parent, name = path.split(".")
        dimension = 1 if isinstance(layer, linear.RowParallelLinear) else 0
        for kind, parameter in list(layer.named_parameters()):
            sent = [whole[f"{parent}.{part}.{kind}"] for part in parts.get(name, (name,))]
            split = [t if name == "gate" else t.chunk(RANKS, dimension)[RANK] for t in sent]
            parameter.data.copy_(torch.cat(split))
        layer.quant_method = Packed(layer)
        model[parent][name] = layer  # type: ignore[index]
    model.config = SimpleNamespace(head_dim=CHANNELS, num_attention_heads=2, num_key_value_heads=2)  # type: ignore
    return model


def test_layers_of_every_kind_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The router's layer is held whole by each rank, and has other attributes than layers that ranks split. Protects
    runs on CPUs where vLLM packs it too. A negative zero, which a product turns into 0, is no difference. One changed
    element of any tensor is."""
    group = SimpleNamespace(rank_in_group=RANK, world_size=RANKS)
    monkeypatch.setattr(parallel_state, "get_tp_group", lambda: group)
    random = torch.Generator().manual_seed(0)
    whole = {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}
    for tensor in whole.values():
        tensor.view(-1)[-1] = -0.0
    model = packed_model(vllm_layers(), whole)
    expected = {name: expected_checksums(name, tensor, RANK, RANKS) for name, tensor in whole.items()}
    compare(model, expected, RANKS)
    for name, tensor in whole.items():
        changed = tensor.clone()
        changed.view(-1)[-1] = 1e-3
        with pytest.raises(RuntimeError, match=f"trainer's: {name}$"):
            compare(model, {**expected, name: expected_checksums(name, changed, RANK, RANKS)}, RANKS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_sign_of_zero_is_no_difference(dtype: torch.dtype) -> None:
    """Numbers next to zero and the other sign of a number change the checksum. Subnormals in bf16 do not."""
    values = torch.tensor([0.0, 1.0, -2.0, 3.0]).to(dtype)
    variants = {0: -0.0, 1: -1.0, 2: 2.0, 3: -3.0}
    same = []
    for position, value in variants.items():
        other = values.clone()
        other[position] = value
        same.append(torch.equal(checksum(other), checksum(values)))
    assert same == [True, False, False, False]
    smallest = values.clone()
    smallest[0] = torch.finfo(dtype).tiny
    assert not torch.equal(checksum(smallest), checksum(values))
    subnormal = values.clone()
    subnormal[0] = -0.5 * torch.finfo(dtype).tiny
    assert subnormal[0] and torch.equal(checksum(subnormal), checksum(values)) == (dtype is torch.bfloat16)


@pytest.mark.parametrize("flushes", [True, False])
def test_a_subnormal_that_a_product_in_bf16_loses_is_no_difference(flushes: bool) -> None:
    """Such a weight would stop a run at its first sync, on some CPUs alone. The layer is wide enough for this CPU's own
    product to flush, if it has one that does."""
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    smallest = torch.finfo(torch.bfloat16).tiny
    weight[0, :3] = torch.tensor([1e-39, -1e-39, smallest])
    flushed = weight.masked_fill(weight.abs() < smallest, 0) if flushes else weight
    layer: Any = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    layer.input_size, layer.params_dtype = 64, torch.bfloat16
    layer.weight.data.copy_(flushed)
    layer.quant_method = Packed(layer)
    model = nn.ModuleDict({"mlp": nn.ModuleDict({"gate": layer})})
    model.config = SimpleNamespace(head_dim=1, num_attention_heads=1, num_key_value_heads=1)  # type: ignore
    name = "mlp.gate.weight"
    compare(model, {name: expected_checksums(name, weight, 0, 1)}, 1)
    weight[0, 2] = 0
    with pytest.raises(RuntimeError, match=name):
        compare(model, {name: expected_checksums(name, weight, 0, 1)}, 1)

"""The layer spec of a HybridModel, with Transformer Engine's modules on GPUs and megatron-core's own on CPUs.

A Hugging Face layer is two HybridModel layers: attention (`*`), and MLP (`-`) or experts (`E`). Transformer Engine
fuses a norm into the projection that follows it. Checkpoints use the unfused names, so GPUs and CPUs read each other's
checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tempo_megatron.config import Numerics
from tempo_megatron.conversion.mapping import BackboneSettings, Role
from tempo_megatron.kernels.swiglu import swiglu

CANONICAL_NAMES = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}
"""Fused name -> unfused name, as prefixes within a layer."""


@dataclass(frozen=True)
class _Parts:
    """Module classes for one kind of device.

    `normed_column` is a column-parallel layer with a fused norm before it, or None where nothing is fused.
    """

    column: Any
    normed_column: Any
    row: Any
    attention: Any
    norm: Any
    experts: Any
    """The experts of one layer: a grouped product on GPUs, one MLP after the other on CPUs."""
    activation: Any = None
    """A module class for the MLP's activation, or None for megatron-core's function."""


class SharedSwiGLU(torch.nn.Module):
    """SwiGLU by the generator's kernel. The constructor has megatron-core's signature."""

    def __init__(self, config: Any) -> None:
        super().__init__()

    def forward(self, gate_and_up: Tensor) -> Tensor:
        """Returns silu(gate) * up [..., ffn] of [..., 2 * ffn]."""
        return swiglu(gate_and_up)


def stack_spec(settings: BackboneSettings, numerics: Numerics) -> Any:
    """Returns the ModuleSpec of the decoder for this machine."""
    from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
    from megatron.core.models.hybrid.hybrid_block import HybridStack, HybridStackSubmodules
    from megatron.core.ssm.mlp_layer import MLPLayer
    from megatron.core.transformer.attention import SelfAttentionSubmodules
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.mlp import MLP, MLPSubmodules
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

    from tempo_megatron.megatron.attention import AttentionLayer, LayerwiseSelfAttention

    parts = _transformer_engine_parts() if torch.cuda.is_available() else _local_parts()
    if numerics is Numerics.exact:
        parts = _with_shared_kernels(parts)
    fused = parts.normed_column and not settings.norm_after
    column = parts.normed_column if fused else parts.column
    row = _row_then_norm(parts.row, parts.norm) if settings.norm_after else parts.row
    norm_before = None if fused or settings.norm_after else parts.norm
    attention = SelfAttentionSubmodules(
        linear_qkv=column, core_attention=parts.attention, linear_proj=row, **_qk_norms(settings, parts.norm)
    )
    attention_layer = TransformerLayerSubmodules(
        self_attention=ModuleSpec(
            LayerwiseSelfAttention, {"attn_mask_type": AttnMaskType.causal, "settings": settings}, attention
        ),
        self_attn_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map=CANONICAL_NAMES,
        **({"input_layernorm": norm_before} if norm_before else {}),
    )
    mlp = MLPSubmodules(linear_fc1=column, linear_fc2=row, activation_func=parts.activation)
    mlp_layer = TransformerLayerSubmodules(
        mlp=partial(MLP.as_mlp_submodule, submodules=mlp),
        mlp_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map=CANONICAL_NAMES,
        **({"pre_mlp_layernorm": norm_before} if norm_before else {}),
    )
    layers = HybridStackSubmodules(
        attention_layer=ModuleSpec(AttentionLayer, submodules=attention_layer),
        mlp_layer=ModuleSpec(MLPLayer, submodules=mlp_layer),
        **({"moe_layer": _expert_layer(parts)} if settings.experts else {}),
    )
    return ModuleSpec(HybridStack, submodules=layers)


def layer_pattern(settings: BackboneSettings, chunks: int, role: Role) -> str:
    """Returns HybridModel's pattern: a symbol for each of its layers, and `|` between the chunks of all stages.

    A micro-batch passes the chunks in this order. Chunk c belongs to stage c modulo PP.
    """
    symbols = ["*E" if is_sparse else "*-" for is_sparse in settings.sparse_layers]
    return "|".join("".join(symbols[layer] for layer in layers) for layers in settings.chunk_layers(chunks, role))


def _expert_layer(parts: _Parts) -> Any:
    """Returns the spec of a layer with experts. Its norm is not fused, because the router reads its output too."""
    from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
    from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_layer import MoETransformerLayer, TransformerLayerSubmodules

    from tempo_megatron.megatron.load_balancing import BalancedRouter

    layer = TransformerLayerSubmodules(
        pre_mlp_layernorm=parts.norm,
        mlp=partial(MoELayer, submodules=MoESubmodules(experts=parts.experts, router=BalancedRouter)),
        mlp_bda=get_bias_dropout_add,
    )
    return ModuleSpec(MoETransformerLayer, submodules=layer)


def _qk_norms(settings: BackboneSettings, norm: Any) -> dict[str, Any]:
    from tempo_megatron.megatron.norm import HeadsNorm

    if settings.qk_norm == "none":
        return {}
    if settings.qk_norm == "each_head":
        return {"q_layernorm": norm, "k_layernorm": norm}
    return {
        "q_layernorm": partial(HeadsNorm, heads=settings.num_attention_heads),
        "k_layernorm": partial(HeadsNorm, heads=settings.num_query_groups),
    }


def _row_then_norm(row: Any, norm: Any) -> Any:
    """Returns a row-parallel layer class that normalizes its output.

    megatron-core has no place for a norm before the residual addition.
    """

    class RowThenNorm(row):
        def __init__(self, input_size: int, output_size: int, *, config: Any, **options: Any) -> None:
            super().__init__(input_size, output_size, config=config, **options)
            self.post_layernorm = norm(config, output_size, eps=config.layernorm_epsilon)

        def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor | None]:
            output, bias = super().forward(*inputs)
            return self.post_layernorm(output), bias

    return RowThenNorm


def _with_shared_kernels(parts: _Parts) -> _Parts:
    """Returns parts whose norm, RoPE, attention and activation are the generator's kernels, with the same products."""
    from tempo_megatron.megatron.attention import SharedAttention
    from tempo_megatron.megatron.norm import SharedRMSNorm

    return replace(parts, normed_column=None, attention=SharedAttention, norm=SharedRMSNorm, activation=SharedSwiGLU)


def _transformer_engine_parts() -> _Parts:
    from megatron.core.extensions import transformer_engine as te
    from megatron.core.transformer.moe.experts import GroupedMLPSubmodules, TEGroupedMLP

    grouped = GroupedMLPSubmodules(te.TEColumnParallelGroupedLinear, te.TERowParallelGroupedLinear)
    return _Parts(
        column=te.TEColumnParallelLinear,
        normed_column=te.TELayerNormColumnParallelLinear,
        row=te.TERowParallelLinear,
        attention=te.TEDotProductAttention,
        norm=te.TENorm,
        experts=partial(TEGroupedMLP, submodules=grouped),
    )


def _local_parts() -> _Parts:
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.mlp import MLPSubmodules
    from megatron.core.transformer.moe.experts import SequentialMLP

    from tempo_megatron.megatron.attention import PackedAttention
    from tempo_megatron.megatron.norm import RMSNorm

    return _Parts(
        column=ColumnParallelLinear,
        normed_column=None,
        row=RowParallelLinear,
        attention=PackedAttention,
        norm=RMSNorm,
        experts=partial(SequentialMLP, submodules=MLPSubmodules(ColumnParallelLinear, RowParallelLinear)),
    )

"""The layer spec of a HybridModel: Transformer Engine's modules on GPUs, megatron-core's own on CPUs.

A Hugging Face layer is two HybridModel layers, attention (`*`) and MLP (`-`). Transformer Engine fuses the norm before
a projection into it; checkpoints carry the unfused names, so that either device reads what the other wrote.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

CANONICAL_NAMES = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}
"""fused name -> unfused name, as prefixes within a layer"""


def stack_spec(qk_layernorm: bool) -> Any:
    """The ModuleSpec of the decoder for this machine."""
    from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
    from megatron.core.models.hybrid.hybrid_block import HybridStack, HybridStackSubmodules
    from megatron.core.ssm.mlp_layer import MLPLayer
    from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.mlp import MLP, MLPSubmodules
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

    parts = _transformer_engine_parts() if torch.cuda.is_available() else _local_parts()
    heads_norm = {"q_layernorm": parts["norm"], "k_layernorm": parts["norm"]} if qk_layernorm else {}
    attention = SelfAttentionSubmodules(
        linear_qkv=parts["column"], core_attention=parts["attention"], linear_proj=parts["row"], **heads_norm
    )
    attention_layer = TransformerLayerSubmodules(
        self_attention=ModuleSpec(SelfAttention, {"attn_mask_type": AttnMaskType.causal}, attention),
        self_attn_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map=CANONICAL_NAMES,
        **({} if parts["fused"] else {"input_layernorm": parts["norm"]}),
    )
    mlp = MLPSubmodules(linear_fc1=parts["column"], linear_fc2=parts["row"])
    mlp_layer = TransformerLayerSubmodules(
        mlp=partial(MLP.as_mlp_submodule, submodules=mlp),
        mlp_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map=CANONICAL_NAMES,
        **({} if parts["fused"] else {"pre_mlp_layernorm": parts["norm"]}),
    )
    layers = HybridStackSubmodules(
        attention_layer=ModuleSpec(TransformerLayer, submodules=attention_layer),
        mlp_layer=ModuleSpec(MLPLayer, submodules=mlp_layer),
    )
    return ModuleSpec(HybridStack, submodules=layers)


def _transformer_engine_parts() -> dict[str, Any]:
    from megatron.core.extensions import transformer_engine as te

    return {
        "fused": True,
        "column": te.TELayerNormColumnParallelLinear,
        "row": te.TERowParallelLinear,
        "attention": te.TEDotProductAttention,
        "norm": te.TENorm,
    }


def _local_parts() -> dict[str, Any]:
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    from tempo_megatron.megatron.norm import RMSNorm

    return {
        "fused": False,
        "column": ColumnParallelLinear,
        "row": RowParallelLinear,
        "attention": DotProductAttention,
        "norm": RMSNorm,
    }

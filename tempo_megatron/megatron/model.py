"""Builds policy and critic as Megatron Core HybridModels: the same backbone with different output layers."""

from __future__ import annotations

from typing import Any

import torch

from tempo_megatron.config import Config, Fp8, ModelConfig, Numerics, Precision, Recompute, ReplayedRoutes
from tempo_megatron.conversion.critics import fresh_value_head
from tempo_megatron.conversion.mapping import BackboneSettings, Role
from tempo_megatron.megatron import accelerators, cpu
from tempo_megatron.megatron.layers import layer_pattern, stack_spec
from tempo_megatron.megatron.norm import SharedRMSNorm
from tempo_megatron.megatron.router_replay import forget_routers
from tempo_megatron.megatron.topology import Topology


class ValueHead(torch.nn.Module):
    """The critic's output layer, from hidden state to one value per token in fp32.

    One output cannot be split over TP, so every TP rank has the whole weight, [1, hidden]. A bias, [1], exists if the
    loaded critic has one or `rescale` needs one. Under sequence parallelism the hidden states are gathered first. Their
    gradient is split in the backward pass, not reduced: every TP rank computes the same full gradient of the weight,
    which must count once.
    """

    def __init__(self, config: Any, seed: int, bias: bool) -> None:
        super().__init__()
        self.sequence_parallel = config.sequence_parallel
        self.weight = torch.nn.Parameter(fresh_value_head(config.hidden_size, seed).to(config.params_dtype))
        self.bias = torch.nn.Parameter(torch.zeros(1, dtype=config.params_dtype)) if bias else None
        self._mark()

    def _mark(self) -> None:
        for parameter in self.parameters():
            parameter.is_embedding_or_output_parameter = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def rescale(self, scale: float, offset: float) -> None:
        """Changes every value v to scale * v + offset.

        This may add a bias, so call it before the model is wrapped for training.
        """
        if self.bias is None:
            self.bias = torch.nn.Parameter(self.weight.new_zeros(1))
            self._mark()
        self.weight.mul_(scale)
        self.bias.mul_(scale).add_(offset)

    def forward(
        self, hidden_states: torch.Tensor, weight: None = None, runtime_gather_output: bool | None = None
    ) -> tuple[torch.Tensor, None]:
        """Returns values [sequence, micro_batch, 1] fp32; hidden_states [sequence (/ TP), micro_batch, hidden]."""
        if self.sequence_parallel:
            from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

            hidden_states = gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=False)
        bias = None if self.bias is None else self.bias.float()
        return torch.nn.functional.linear(hidden_states.float(), self.weight.float(), bias), None


def policy_head(output_layer: Any) -> Any:
    """Changes HybridModel's output layer so that it returns hidden states instead of logits; returns the layer.

    The hidden states, [sequence, micro_batch, hidden], are whole on every TP rank. `log_probs.token_scores` multiplies
    them with the weight, a chunk at a time.
    """
    from megatron.core.tensor_parallel import (
        ColumnParallelLinear,
        copy_to_tensor_model_parallel_region,
        gather_from_sequence_parallel_region,
    )

    class PolicyHead(ColumnParallelLinear):
        def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
            # In both cases the backward pass sums the gradients of all TP ranks' parts of the vocabulary.
            if self.sequence_parallel:
                return gather_from_sequence_parallel_region(hidden_states, group=self.tp_group), None
            return copy_to_tensor_model_parallel_region(hidden_states, group=self.tp_group), None

    output_layer.__class__ = PolicyHead  # The same object keeps all attributes that HybridModel has set on its weight.
    return output_layer


def transformer_config(
    settings: BackboneSettings,
    config: Config,
    numerics: Numerics,
    replays_routes: bool = False,
    aux_loss_coefficient: float = 0.0,
) -> Any:
    """Returns megatron-core's TransformerConfig for a backbone under this run's layout and precision.

    `aux_loss_coefficient` weighs the load-balancing loss of a model with experts.
    """
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.transformer.transformer_config import TransformerConfig

    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if config.model.precision is Precision.bf16 else torch.float32
    chunks = config.parallel.virtual_pipeline_model_parallel_size
    transformer = TransformerConfig(
        num_layers=2 * settings.num_layers,
        hidden_size=settings.hidden_size,
        ffn_hidden_size=settings.ffn_hidden_size,
        num_attention_heads=settings.num_attention_heads,
        num_query_groups=settings.num_query_groups,
        kv_channels=settings.kv_channels,
        qk_layernorm=settings.qk_norm != "none",
        layernorm_epsilon=settings.rms_norm_eps,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=settings.mlp_bias,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        tensor_model_parallel_size=config.parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
        overlap_p2p_comm=chunks > 1,  # Otherwise two stages with chunks confuse what they send in both directions.
        batch_p2p_comm=chunks == 1,
        context_parallel_size=config.parallel.context_parallel_size,
        sequence_parallel=config.parallel.sequence_parallel,
        moe_enable_routing_replay=replays_routes,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",  # The default refuses variable lengths, even without experts.
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        use_cpu_initialization=not on_gpu,
        perform_initialization=False,
        gradient_accumulation_fusion=accelerators.apex_accumulates_gradients(),
        bias_activation_fusion=on_gpu and numerics is Numerics.default,
        use_te_activation_func=numerics is Numerics.exact,  # The layer spec then names the activation's module.
        # Without a bias only the residual addition is left, which is one kernel already. torch.compile makes a variant
        # for each length, gradients or none, and the strides of an embedding, until it reaches its limit.
        bias_dropout_fusion=on_gpu and (settings.mlp_bias or settings.attention_bias),
        masked_softmax_fusion=False,
        apply_rope_fusion=on_gpu,
        persist_layer_norm=on_gpu,
        **_experts(settings, config, aux_loss_coefficient, on_gpu),
        **_fp8(config.model),
        **_recompute(config.model, settings),
    )
    transformer.finalize_model_grads_func = finalize_model_grads
    return transformer


def _experts(settings: BackboneSettings, config: Config, aux_loss_coefficient: float, on_gpu: bool) -> dict[str, Any]:
    """Returns the settings of router and experts: fp32 routing, no dropped token."""
    if settings.experts is None:
        return {}
    return {
        "num_moe_experts": settings.experts.num_experts,
        "moe_ffn_hidden_size": settings.experts.ffn_hidden_size,
        "moe_router_topk": settings.experts.experts_per_token,
        "moe_router_score_function": "softmax",
        "moe_router_pre_softmax": not settings.experts.weights_sum_to_one,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "aux_loss" if aux_loss_coefficient else "none",
        "moe_aux_loss_coeff": aux_loss_coefficient,
        "moe_z_loss_coeff": None,
        "moe_expert_capacity_factor": None,
        "moe_grouped_gemm": on_gpu,
        "moe_permute_fusion": accelerators.transformer_engine_permutes_tokens(),
        "expert_model_parallel_size": config.parallel.expert_model_parallel_size,
        "expert_tensor_parallel_size": 1,
    }


def _fp8(settings: ModelConfig) -> dict[str, Any]:
    if settings.fp8 is Fp8.none:
        return {}
    edges = 2 * settings.fp8_edges_in_bf16  # A transformer layer is two layers of a HybridModel.
    return {
        "fp8": "hybrid",
        "fp8_recipe": settings.fp8.value,
        "first_last_layers_bf16": edges > 0,
        "num_layers_at_start_in_bf16": edges,
        "num_layers_at_end_in_bf16": edges,
    }


def _recompute(model: ModelConfig, settings: BackboneSettings) -> dict[str, Any]:
    if model.recompute is Recompute.full:
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if model.recompute is Recompute.mlp:
        modules = ["mlp", "moe"] if settings.experts else ["mlp"]  # `mlp` passes by layers with experts.
        return {"recompute_granularity": "selective", "recompute_modules": modules}
    return {}


def _mark_experts(model: Any) -> None:
    """Marks the experts' parameters, so that gradients are reduced over the ranks that hold the same experts.

    megatron-core marks them where EP or TP is above 1. It gives marked parameters an optimizer of their own, and a
    checkpoint's optimizers must be the same in every layout.
    """
    for name, parameter in model.named_parameters():
        if ".mlp.experts." in name:
            parameter.allreduce = False


def is_expert(parameter: torch.nn.Parameter) -> bool:
    """Returns whether the parameter belongs to an expert."""
    return not getattr(parameter, "allreduce", True)


def rotary_frequencies(settings: BackboneSettings) -> torch.Tensor:
    """Returns the radians per position of every RoPE of the model, concatenated: [ropes * channels / 2] fp32."""
    return torch.cat([rope.inverse_frequencies(settings.kv_channels) for rope in settings.ropes])


def build_model(
    role: Role, settings: BackboneSettings, config: Config, topology: Topology, *, head_bias: bool = False
) -> list[Any]:
    """Returns this rank's part of the policy or the critic, before its weights are loaded.

    The part is a list of HybridModels, one for each chunk of the rank's stage, in the order of their layers. They share
    one TransformerConfig. `settings` comes from the Hugging Face config. The critic is untied. Its value head exists in
    the last chunk of the last stage alone and depends on the run's seed, not on the layout. `head_bias` gives the value
    head a bias. The setting `numerics` is about the policy: no generator computes what the critic does.
    """
    with cpu.accelerator_names():
        from megatron.core.models.hybrid.hybrid_model import HybridModel

        numerics = config.numerics if role == "policy" else Numerics.default
        replays_routes = role == "policy" and config.policy.router_replay is not ReplayedRoutes.none
        learning = config.policy if role == "policy" else config.critic
        transformer = transformer_config(settings, config, numerics, replays_routes, learning.aux_loss_coefficient)
        count = config.parallel.virtual_pipeline_model_parallel_size
        chunks = []
        for number in range(count):
            is_last = topology.is_last_stage and number == count - 1
            chunk = HybridModel(
                transformer,
                stack_spec(settings, numerics),
                vocab_size=settings.padded_vocab_size,
                max_sequence_length=config.data.max_prompt_tokens + config.generation.max_response_tokens,
                hybrid_layer_pattern=layer_pattern(settings, topology.pipeline_size * count, role),
                pre_process=topology.is_first_stage and number == 0,
                post_process=is_last,
                share_embeddings_and_output_weights=role == "policy" and settings.tied,
                position_embedding_type="rope",
                vp_stage=number,
            )
            chunk.rotary_pos_emb.inv_freq = rotary_frequencies(settings).to(chunk.rotary_pos_emb.inv_freq.device)
            if is_last:
                chunk.output_layer = (
                    ValueHead(transformer, config.seed, head_bias)
                    if role == "critic"
                    else policy_head(chunk.output_layer)
                )
                if numerics is Numerics.exact:  # megatron-core names the last norm's class itself.
                    chunk.decoder.final_norm = SharedRMSNorm(transformer, settings.hidden_size, settings.rms_norm_eps)
            accelerators.let_transformer_engine_accumulate_gradients(chunk)
            _mark_experts(chunk)
            chunks.append(chunk.to(topology.device))
        forget_routers()
        if settings.qk_norm == "all_heads":
            # In a built model this flag sums gradients of these norms over TP, but each rank has its own part of them.
            transformer.qk_layernorm = False
        return chunks

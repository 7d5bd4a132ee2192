"""Policy and critic as Megatron Core HybridModels: one backbone, two output layers."""

from __future__ import annotations

from typing import Any, Literal

import torch

from checkpoints_convert.mapping import BackboneSettings
from tempo_megatron.config import Config, Precision
from tempo_megatron.megatron import cpu
from tempo_megatron.megatron.layers import stack_spec
from tempo_megatron.megatron.topology import Topology

Role = Literal["policy", "critic"]
_HEAD_STANDARD_DEVIATION = 0.02


class ValueHead(torch.nn.Module):
    """The critic's output layer: hidden state to one value a token, in fp32.

    One output cannot be split over TP, so the weight, [1, hidden], is replicated. Under sequence parallelism the
    hidden states are gathered first with a backward that splits (not reduces) their gradient: every TP rank computes
    the same full gradient of the weight, so that it counts once.
    """

    def __init__(self, config: Any, seed: int) -> None:
        super().__init__()
        self.sequence_parallel = config.sequence_parallel
        noise = torch.randn(1, config.hidden_size, generator=torch.Generator().manual_seed(seed))
        self.weight = torch.nn.Parameter((noise * _HEAD_STANDARD_DEVIATION).to(config.params_dtype))

    def forward(
        self, hidden_states: torch.Tensor, weight: None = None, runtime_gather_output: bool | None = None
    ) -> tuple[torch.Tensor, None]:
        """hidden_states [sequence (/ TP), micro_batch, hidden] -> values [sequence, micro_batch, 1], fp32."""
        if self.sequence_parallel:
            from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

            hidden_states = gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=False)
        return torch.nn.functional.linear(hidden_states.float(), self.weight.float()), None


def transformer_config(settings: BackboneSettings, config: Config) -> Any:
    """megatron-core's TransformerConfig for a backbone under this run's layout and precision."""
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.transformer.transformer_config import TransformerConfig

    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if config.model.precision is Precision.bf16 else torch.float32
    made = TransformerConfig(
        num_layers=2 * settings.num_layers,
        hidden_size=settings.hidden_size,
        ffn_hidden_size=settings.ffn_hidden_size,
        num_attention_heads=settings.num_attention_heads,
        num_query_groups=settings.num_query_groups,
        kv_channels=settings.kv_channels,
        qk_layernorm=settings.qk_layernorm,
        layernorm_epsilon=settings.rms_norm_eps,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        tensor_model_parallel_size=config.parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.parallel.pipeline_model_parallel_size,
        sequence_parallel=config.parallel.sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        use_cpu_initialization=not on_gpu,
        perform_initialization=False,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=on_gpu,
        bias_dropout_fusion=on_gpu,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=on_gpu,
    )
    made.finalize_model_grads_func = finalize_model_grads
    return made


def build(role: Role, settings: BackboneSettings, config: Config, topology: Topology) -> Any:
    """This rank's part of the policy or the critic, its weights not yet loaded.

    `settings` comes from the Hugging Face config. The critic is untied, and its value head exists on the last stage
    only, initialised from the run's seed whatever the layout.
    """
    with cpu.accelerator_names():
        from megatron.core.models.hybrid.hybrid_model import HybridModel

        made = transformer_config(settings, config)
        stages = topology.pipeline_size
        model = HybridModel(
            made,
            stack_spec(settings.qk_layernorm),
            vocab_size=settings.padded_vocab_size,
            max_sequence_length=config.data.max_prompt_tokens + config.generation.max_response_tokens,
            hybrid_layer_pattern="|".join(["*-" * (settings.num_layers // stages)] * stages),
            pre_process=topology.is_first_stage,
            post_process=topology.is_last_stage,
            share_embeddings_and_output_weights=role == "policy" and settings.tied,
            position_embedding_type="rope",
        )
        frequencies = settings.rope.inverse_frequencies(settings.kv_channels)
        model.rotary_pos_emb.inv_freq = frequencies.to(model.rotary_pos_emb.inv_freq.device)
        if role == "critic" and topology.is_last_stage:
            model.output_layer = ValueHead(made, config.seed)
            model.output_layer.weight.is_embedding_or_output_parameter = True
        return model.to(topology.device)

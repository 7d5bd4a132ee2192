"""Raw Megatron Core on the same shape: the reference for the trainer's speed.

Model, loss and loop are Megatron's own, with its fastest settings: HybridModel of Transformer Engine layers, fused
cross-entropy of labels, weight gradients accumulated in the product, sequences of equal length in micro-batches of one.
DistributedDataParallel and distributed Adam have our trainer's settings. If Megatron lacks a detail of the model, the
nearest model is used: OLMo 3's norms precede the sub-layers, and its layers attend to everything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarking.setup import Setup, randomize
from tempo_megatron.config import Fp8, Numerics
from tempo_megatron.conversion.mapping import BackboneSettings
from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.megatron import accelerators, cpu
from tempo_megatron.megatron.expert_load import ExpertLoad
from tempo_megatron.megatron.layers import layer_pattern, stack_spec
from tempo_megatron.megatron.topology import Topology


class RawLoop:
    """Megatron's training loop: `sequences` micro-batches on every data-parallel rank, then an optimizer step."""

    def __init__(self, setup: Setup, sequence: int, sequences: int, ddp: Any, optimizer: Any) -> None:
        """`ddp` is a DistributedDataParallelConfig, `optimizer` an OptimizerConfig."""
        self.sequence, self.sequences = sequence, sequences
        with cpu.accelerator_names():
            from megatron.core.distributed import DistributedDataParallel
            from megatron.core.optimizer import get_megatron_optimizer
            from megatron.core.pipeline_parallel import get_forward_backward_func

            self._passes = get_forward_backward_func()
            config = _transformer_config(setup)
            chunks = _model(config, setup, sequence)
            self.chunks = [
                DistributedDataParallel(config, ddp, chunk, disable_bucketing=number > 0)
                for number, chunk in enumerate(chunks)
            ]
            if ddp.overlap_grad_reduce:
                without_sync = [chunk.no_sync for chunk in self.chunks]
                config.no_sync_func = without_sync if len(chunks) > 1 else without_sync[0]
            self.optimizer = get_megatron_optimizer(optimizer, self.chunks)
        self.expert_load = ExpertLoad(chunks, setup.topology.device)
        self._batches = [_batch(setup, sequence, number) for number in range(sequences)]

    def step(self) -> None:
        """Runs one step. Raises RuntimeError if the optimizer did not step."""
        with cpu.accelerator_names():
            for chunk in self.chunks:
                chunk.zero_grad_buffer()
            self.optimizer.zero_grad()
            self._passes(
                forward_step_func=self._forward,
                data_iterator=[iter(self._batches) for _ in self.chunks],
                model=self.chunks,
                num_microbatches=self.sequences,
                seq_length=self.sequence,
                micro_batch_size=1,
                forward_only=False,
            )
            stepped, norm, _ = self.optimizer.step()
        if not stepped or not float(norm) > 0:
            raise RuntimeError(f"raw Megatron did not step: gradient norm {norm}")

    def _forward(self, remaining: Iterator[Any], model: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
        tokens, labels, positions = next(remaining)
        return model(tokens, positions, None, labels=labels), lambda losses: (losses.float().mean(), {})


def _transformer_config(setup: Setup) -> Any:
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.transformer.transformer_config import TransformerConfig

    shape, parallel, fp8 = setup.settings, setup.config.parallel, setup.config.model.fp8
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    chunks = parallel.virtual_pipeline_model_parallel_size
    config = TransformerConfig(
        num_layers=2 * shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_query_groups,
        kv_channels=shape.kv_channels,
        qk_layernorm=shape.qk_norm != "none",
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
        overlap_p2p_comm=chunks > 1,
        batch_p2p_comm=chunks == 1,
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.tensor_model_parallel_size > 1,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=on_gpu,
        use_cpu_initialization=not on_gpu,
        gradient_accumulation_fusion=accelerators.apex_accumulates_gradients(),
        bias_activation_fusion=on_gpu,
        bias_dropout_fusion=on_gpu,
        masked_softmax_fusion=False,
        apply_rope_fusion=on_gpu,
        persist_layer_norm=on_gpu,
        cross_entropy_loss_fusion=on_gpu,
        cross_entropy_fusion_impl="te" if on_gpu else "native",
        **_experts(shape, parallel.expert_model_parallel_size, on_gpu),
        **({} if fp8 is Fp8.none else {"fp8": "hybrid", "fp8_recipe": fp8.value}),
    )
    config.finalize_model_grads_func = finalize_model_grads
    return config


def _experts(shape: BackboneSettings, ranks: int, on_gpu: bool) -> dict[str, Any]:
    """Returns settings of experts: grouped products, fused permutation, fp32 routing without an auxiliary loss."""
    experts = shape.experts
    if experts is None:
        return {}
    return {
        "num_moe_experts": experts.num_experts,
        "moe_ffn_hidden_size": experts.ffn_hidden_size,
        "moe_router_topk": experts.experts_per_token,
        "moe_router_pre_softmax": not experts.weights_sum_to_one,
        "moe_router_load_balancing_type": "none",
        "moe_router_dtype": "fp32",
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": on_gpu,
        "moe_permute_fusion": accelerators.transformer_engine_permutes_tokens(),
        "expert_model_parallel_size": ranks,
        "expert_tensor_parallel_size": 1,
    }


def _model(config: Any, setup: Setup, sequence: int) -> list[torch.nn.Module]:
    """The chunks of this rank's pipeline stage."""
    from megatron.core.models.hybrid.hybrid_model import HybridModel

    shape, topology = setup.settings, setup.topology
    count = setup.config.parallel.virtual_pipeline_model_parallel_size
    chunks = [
        HybridModel(
            config,
            _stack_spec(shape),
            vocab_size=shape.padded_vocab_size,
            max_sequence_length=sequence,
            hybrid_layer_pattern=layer_pattern(shape, topology.pipeline_size * count, "policy"),
            pre_process=topology.is_first_stage and number == 0,
            post_process=topology.is_last_stage and number == count - 1,
            share_embeddings_and_output_weights=shape.tied,
            position_embedding_type="rope",
            rotary_base=500000,
            vp_stage=number,
        ).to(topology.device)
        for number in range(count)
    ]
    for chunk in chunks:
        accelerators.let_transformer_engine_accumulate_gradients(chunk)
    randomize(chunks, topology)
    return chunks


def _stack_spec(shape: BackboneSettings) -> Any:
    if torch.cuda.is_available():
        from megatron.core.extensions.transformer_engine import TENorm
        from megatron.core.models.hybrid.hybrid_layer_specs import hybrid_stack_spec

        spec = copy.deepcopy(hybrid_stack_spec)
        attention = spec.submodules.attention_layer.submodules.self_attention.submodules
        if shape.qk_norm != "none":
            attention.q_layernorm = attention.k_layernorm = TENorm
        return spec
    # Megatron has no HybridModel without Transformer Engine. Our layers are used, with Megatron's own attention.
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    spec = stack_spec(shape, Numerics.default)
    spec.submodules.attention_layer.submodules.self_attention.submodules.core_attention = DotProductAttention
    return spec


def _batch(setup: Setup, sequence: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, labels and positions, [1, sequence / CP] each: this rank's pieces of a random sequence.

    Each micro-batch has a sequence of its own, as in training. Equal ones would send equally many tokens to an expert,
    and cuBLAS would know every product from the micro-batch before.
    """
    topology: Topology = setup.topology
    random = torch.Generator().manual_seed(derive_seed("benchmark", "raw", topology.data_rank, number))
    ids = torch.randint(0, setup.settings.vocab_size, (1, sequence + 1), generator=random).to(topology.device)
    full = (ids[:, :-1], ids[:, 1:], torch.arange(sequence, device=topology.device)[None])
    if topology.context_size == 1:
        tokens, labels, positions = (part.contiguous() for part in full)
        return tokens, labels, positions
    piece_indices = (topology.context_rank, 2 * topology.context_size - 1 - topology.context_rank)
    chunks = [part.chunk(2 * topology.context_size, 1) for part in full]
    tokens, labels, positions = (torch.cat([pieces[index] for index in piece_indices], 1) for pieces in chunks)
    return tokens, labels, positions

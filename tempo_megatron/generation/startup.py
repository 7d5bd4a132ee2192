"""Starts a vLLM engine in a trainer's process: the environment that vLLM reads, and its settings."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tempo_megatron.config import GenerationConfig, Numerics, RolloutPrecision
from tempo_megatron.conversion import hf_config, hf_files
from tempo_megatron.generation import cpu_experts, row_invariance, shared_kernels, shared_memory
from tempo_megatron.generation.loading import reset_attention_scales


def prepare_process(on_gpu: bool, numerics: Numerics) -> None:
    """Sets the environment variables that vLLM reads. Installs row-invariant products and experts on CPUs, and on GPUs
    the trainer's kernels if `numerics` is exact.

    Call it before `start_engine`.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # Its warnings concern choices that `start_engine` makes.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # A run reports no usage unless its user asks for it.
    if not on_gpu:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # It would override generation.kv_cache_gib.
        # vLLM compiles one small function there. Each process would first try compilers, for about 10 s.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        row_invariance.install()
        cpu_experts.install()
    elif numerics is Numerics.exact:
        shared_kernels.install()


def start_engine(
    hf_path: Path,
    config: GenerationConfig,
    numerics: Numerics,
    *,
    tensor_parallel_size: int,
    max_model_len: int,
    dtype: torch.dtype,
    seed: int,
    random_weights: bool,
    sleeps: bool,
    returns_routes: bool,
    on_gpu: bool,
) -> Any:
    """Starts the engine and returns it. It has random weights or those of `hf_path`. With `sleeps` it can sleep, and
    with `returns_routes` it returns which experts it chose.

    vLLM 0.26's defaults suit rollouts in all other settings: chunked prefill of 16,384 tokens per step and
    asynchronous scheduling on GPUs, CUDA graphs up to 512 sequences, no statistics.
    """
    from vllm import LLM

    model_config = hf_files.read_config(hf_path)
    settings = hf_config.backbone_settings(model_config)
    if model_config["model_type"] == "olmo2":
        register_olmo2()
    is_exact = on_gpu and numerics is Numerics.exact
    token = None if on_gpu else shared_memory.use_unique_names()
    llm = LLM(
        model=str(hf_path),
        load_format="dummy" if random_weights else "auto",
        skip_tokenizer_init=True,
        dtype=str(dtype).removeprefix("torch."),
        # A bf16 logit of 20 is off by up to 0.06. The trainer's are in fp32 too (`log_probs.token_scores`).
        hf_overrides={"head_dtype": "float32"} if on_gpu else None,
        quantization="fp8" if config.precision is RolloutPrecision.fp8 else None,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        tensor_parallel_size=tensor_parallel_size,
        distributed_executor_backend="external_launcher",
        gpu_memory_utilization=config.gpu_memory_utilization if on_gpu else 0.1,
        kv_cache_memory_bytes=fixed_kv_cache_bytes(config, on_gpu),
        enforce_eager=config.enforce_eager or not on_gpu,
        enable_prefix_caching=on_gpu,  # The samples of a prompt share its prefill.
        enable_sleep_mode=sleeps,
        # Some of vLLM's other kernels of experts rearrange the weights, and some choose experts without the router.
        moe_backend="triton" if settings.experts and on_gpu else "auto",
        enable_return_routed_experts=returns_routes,
        logprobs_mode="processed_logprobs",
        use_tqdm_on_load=False,
        seed=seed,
        **(shared_kernels.ENGINE_SETTINGS if is_exact else {}),
    )
    if token:
        shared_memory.unlink(token)
        shared_memory.drop_queue()
    if random_weights:
        llm.apply_model(reset_attention_scales)
    if returns_routes and not on_gpu:
        llm.apply_model(cpu_experts.report_routes)
    if is_exact:
        llm.apply_model(partial(shared_kernels.set_rotary_tables, settings=settings))
    return llm


def register_olmo2() -> None:
    """Registers the class that vLLM has for OLMo 2 anyway, that of its transformers backend.

    vLLM describes a class that is not imported by a Python of its own, which takes 10 s. It keeps descriptions of its
    own models in files, but none of this class.
    """
    from vllm import ModelRegistry
    from vllm.model_executor.models.transformers import TransformersForCausalLM

    ModelRegistry.register_model("Olmo2ForCausalLM", TransformersForCausalLM)


def fixed_kv_cache_bytes(config: GenerationConfig, on_gpu: bool) -> int | None:
    """Returns the size of the KV cache; None where vLLM measures the GPU's free memory.

    Engines that share a GPU need a fixed size: each would count the others' memory as its own.
    """
    gib = config.kv_cache_gib or (0.0 if on_gpu else 1.0)
    return round(gib * 2**30) or None

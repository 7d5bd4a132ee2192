"""The cluster, and how the models of a run are spread over its GPUs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from tempo_megatron.config import Config, Fp8, ParallelConfig, RolloutPrecision
from tempo_megatron.conversion.mapping import BackboneSettings, Role

USABLE_GIB_PER_GB = 0.989
"""The GiB that CUDA reports for each nominal GB of a GPU: 79.1 of an H100's 80."""

_ATTENTION_HEADS, KV_HEADS = "attention heads", "KV heads"
"""The names of parts of a model that ranks share, in messages."""


@dataclass(frozen=True)
class Machine:
    """The nodes and GPUs that a run gets."""

    nodes: int
    gpus_per_node: int
    gpu_gb: float
    """The nominal memory of a GPU in GB, such as 80 or 141."""
    host_gib: float
    """The host memory of a node."""

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def usable_gib(self) -> float:
        """The memory of a GPU in GiB, as CUDA reports it."""
        return self.gpu_gb * USABLE_GIB_PER_GB


@dataclass(frozen=True)
class Layout:
    """Parallel sizes."""

    tensor: int
    pipeline: int
    context: int
    data: int
    sequence_parallel: bool
    expert: int
    replica: int
    """The tensor parallel size of the generator."""
    chunks: int = 1
    """The chunks of each pipeline stage."""

    @classmethod
    def from_config(cls, config: Config, gpus: int) -> Layout:
        parallel = config.parallel
        tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
        context = parallel.context_parallel_size
        return cls(
            tensor=tensor,
            pipeline=pipeline,
            context=context,
            data=gpus // (tensor * pipeline * context),
            sequence_parallel=parallel.sequence_parallel,
            expert=parallel.expert_model_parallel_size,
            replica=config.generation.tensor_parallel_size or tensor,
            chunks=parallel.virtual_pipeline_model_parallel_size,
        )

    @property
    def optimizer_ranks(self) -> int:
        """The number of ranks that share the optimizer state of one shard of the model, without experts."""
        return self.data * self.context

    @property
    def expert_optimizer_ranks(self) -> int:
        """The number of ranks that hold the same experts, and share their optimizer state."""
        return self.tensor * self.context * self.data // self.expert

    def __str__(self) -> str:
        sizes = {"TP": self.tensor, "PP": self.pipeline, "VPP": self.chunks, "CP": self.context, "EP": self.expert}
        return " ".join([f"{name}{size}" for name, size in sizes.items() if size > 1] + [f"DP{self.data}"])


def divisibility_problems(parallel: ParallelConfig, settings: BackboneSettings) -> Iterator[str]:
    """Yield one line for each parallel size that does not divide the model."""
    parts = {
        "tensor_model_parallel_size": {
            _ATTENTION_HEADS: settings.num_attention_heads,
            KV_HEADS: settings.num_query_groups,
            **({} if all(settings.sparse_layers) else {"MLP channels": settings.ffn_hidden_size}),
            "padded vocabulary entries": settings.padded_vocab_size,
        },
        "expert_model_parallel_size": {"experts": settings.experts.num_experts} if settings.experts else {},
    }
    for key, counts in parts.items():
        size = getattr(parallel, key)
        if undivided := _undivided(counts, size):
            yield f"parallel.{key}: {size} does not divide the model's {undivided}"
    stages, chunks = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    if stages > settings.num_layers:
        yield f"parallel.pipeline_model_parallel_size: {stages} is more than the model's {settings.num_layers} layers"
    elif stages * chunks > settings.num_layers:
        yield (
            f"parallel.virtual_pipeline_model_parallel_size: PP x VPP = {stages * chunks} is more than the model's "
            f"{settings.num_layers} layers"
        )
    if parallel.expert_model_parallel_size > 1 and not settings.experts:
        yield (
            f"parallel.expert_model_parallel_size: {parallel.expert_model_parallel_size}, but the model has no experts"
        )


def chunk_problems(parallel: ParallelConfig) -> Iterator[str]:
    """Yield a line if stages are to have chunks although there is one stage."""
    if parallel.virtual_pipeline_model_parallel_size > 1 and parallel.pipeline_model_parallel_size == 1:
        yield "parallel.virtual_pipeline_model_parallel_size: needs pipeline_model_parallel_size above 1"


def expert_group_problems(parallel: ParallelConfig, ranks: int) -> Iterator[str]:
    """Yield a line if the ranks of a pipeline stage cannot be cut into groups that share the experts."""
    experts, stages = parallel.expert_model_parallel_size, parallel.pipeline_model_parallel_size
    if experts > 0 and stages > 0 and ranks % (experts * stages):
        yield (
            f"parallel.expert_model_parallel_size: {ranks} processes cannot be cut into PP x EP = {stages * experts}; "
            "experts are shared by ranks of TP x CP x DP"
        )


def expert_setting_problems(config: Config, settings: BackboneSettings) -> Iterator[str]:
    """Yield each setting that models with experts do not support, and why."""
    if not settings.experts:
        return
    if config.parallel.tensor_model_parallel_size > 1 and not config.parallel.sequence_parallel:
        yield (
            "parallel.sequence_parallel: a model with experts needs it where tensor_model_parallel_size is above 1: "
            "otherwise every rank would route all tokens"
        )
    if config.model.fp8 is Fp8.delayed:
        yield (
            "model.fp8: delayed is not supported for a model with experts: different experts would share a scale; use "
            "tensorwise or blockwise"
        )
    if config.generation.precision is RolloutPrecision.fp8:
        yield (
            "generation.precision: fp8 is not supported for a model with experts: no sync quantizes them yet; use same"
        )


def edge_problems(config: Config, settings: BackboneSettings) -> Iterator[str]:
    """Yield why the first and last layers cannot stay in bf16. They are those of the first and the last stage."""
    edges, parallel = config.model.fp8_edges_in_bf16, config.parallel
    chunks = max(1, parallel.pipeline_model_parallel_size * parallel.virtual_pipeline_model_parallel_size)
    roles: tuple[Role, ...] = ("policy", "critic")
    chunk = min(len(layers) for role in roles for layers in settings.chunk_layers(chunks, role))
    if edges and config.model.fp8 in (Fp8.none, Fp8.delayed):
        yield f"model.fp8_edges_in_bf16: from 0 on, with fp8 tensorwise or blockwise; got {edges}"
    elif edges > chunk:
        yield f"model.fp8_edges_in_bf16: at most the {chunk} layers of a pipeline stage, got {edges}"


def replica_problems(config: Config, settings: BackboneSettings) -> Iterator[str]:
    """Yield what the ranks of one vLLM replica cannot share.

    vLLM would copy KV heads to the surplus ranks, and the check of synced weights does not support copies. An unset
    size is TP, whose own check covers all heads. It leaves the channels of experts out: training does not divide them.
    """
    size = config.generation.tensor_parallel_size
    replica = size or config.parallel.tensor_model_parallel_size
    undivided = undivided_by_replica(settings, replica, leave_out=() if size else (_ATTENTION_HEADS, KV_HEADS))
    if undivided:
        yield f"generation.tensor_parallel_size: {replica} does not divide the model's {undivided}"


def undivided_by_replica(settings: BackboneSettings, ranks: int, *, leave_out: Collection[str]) -> str:
    """Return the parts of the model that `ranks` ranks of one vLLM replica cannot share, each with its number.

    The text is empty if there are none. `leave_out` names parts that are not looked at.
    """
    counts = {_ATTENTION_HEADS: settings.num_attention_heads, KV_HEADS: settings.num_query_groups}
    if settings.experts:
        counts["channels of an expert"] = settings.experts.ffn_hidden_size
    return _undivided({name: count for name, count in counts.items() if name not in leave_out}, ranks)


def _undivided(counts: Mapping[str, int], ranks: int) -> str:
    """Return the counts that `ranks` does not divide, with their names; empty if there are none."""
    return ", ".join(f"{count} {name}" for name, count in counts.items() if ranks > 0 and count % ranks)


def window_problems(parallel: ParallelConfig, settings: BackboneSettings) -> Iterator[str]:
    """Yield problems of context parallelism, which distributes the heads of layers with a window over its ranks."""
    ranks = max(1, parallel.tensor_model_parallel_size) * max(1, parallel.context_parallel_size)
    if parallel.context_parallel_size < 2 or not any(layer.window for layer in settings.attention):
        return
    for name, count in (("attention", settings.num_attention_heads), ("KV", settings.num_query_groups)):
        if count % ranks:
            yield (
                f"parallel.context_parallel_size: layers with a sliding window need TP x CP = {ranks} to divide the "
                f"model's {count} {name} heads"
            )
